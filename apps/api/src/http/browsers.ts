import { isIPv4 } from "node:net";
import type { Config } from "@tephra/control";
import type { Request, RequestHandler } from "express";
import { Refusal } from "./refusals.ts";

/**
 * What web pages may do here. A page of another site can send requests from its visitor's machine to any address that machine can reach;
 * in mode `none` each of them would have admin rights.
 */

const hostnameOf = (url: string): string | null =>
  URL.canParse(url) ? new URL(url).hostname.replace(/^\[|\]$/g, "").replace(/\.$/, "") : null;

const isLoopback = (name: string): boolean =>
  name === "localhost" || name.endsWith(".localhost") || name === "::1" || (isIPv4(name) && name.startsWith("127."));

/**
 * Refuses requests whose Host is not one of the service's names: a page's host name may have been re-pointed to our address (DNS
 * rebinding), which the browser treats as the same site. Where tokens are required, a page has none to send, and names are checked only
 * if `allowed_hosts` is not empty.
 */
export function checkHost(config: Config): RequestHandler {
  const { auth, allowed_hosts: listed, public_endpoint: endpoint, host } = config;
  if (auth.mode !== "none" && listed.length === 0) return (_req, _res, next) => next();
  const known = new Set([...listed, host, ...(endpoint === null ? [] : [hostnameOf(endpoint)])]);
  return (req, _res, next) => {
    // A request without a Host is not from a browser.
    const asked = req.askedHost === null ? "localhost" : hostnameOf(`http://${req.askedHost}`);
    if (asked !== null && (isLoopback(asked) || known.has(asked))) return next();
    throw new Refusal(403, "The service is not known by this name: see allowed_hosts in its configuration.");
  };
}

const isSafe = (method: string): boolean => ["GET", "HEAD", "OPTIONS"].includes(method);

/** Whether the request's origin has the host and port of this service. */
export function isOwnOrigin(req: Request, origin: string): boolean {
  const hosts = [`http://${req.askedHost}`, req.base].flatMap((url) => (URL.canParse(url) ? new URL(url).host : []));
  // An origin on port 80 or 443 omits the port, whichever of the two schemes we see.
  return /^https?:\/\//.test(origin) && hosts.includes(origin.toLowerCase().replace(/^https?:\/\//, ""));
}

/** Refuses state-changing requests from pages of other sites, except those in `cors.allowed_origins`. */
export function checkOrigin({ cors }: Config): RequestHandler {
  return (req, _res, next) => {
    if (isSafe(req.method)) return next();
    const [origin, site] = [req.get("origin"), req.get("sec-fetch-site")];
    if (origin !== undefined && cors.allowed_origins.includes(origin)) return next();
    const foreign = origin !== undefined && !isOwnOrigin(req, origin);
    if (!foreign && (site === undefined || site === "same-origin" || site === "none")) return next();
    throw new Refusal(
      403,
      "Pages of other sites may change nothing here: see cors.allowed_origins in the configuration.",
    );
  };
}

const allowedMethods = "GET, PUT, POST, DELETE, HEAD";
const allowedHeaders = "Content-Type, X-Auth-Token, OpenStack-API-Version, X-OpenStack-Request-ID";
const exposedHeaders = "OpenStack-API-Version, X-OpenStack-Request-ID, X-Compute-Request-ID, Retry-After";

/** Lets pages of the configured origins read responses, and answers preflight requests. Cookies are for our own: others send tokens. */
export function answerOrigins({ cors }: Config): RequestHandler {
  return (req, res, next) => {
    if (cors.allowed_origins.length === 0) return next();
    res.vary("Origin");
    const origin = req.get("origin");
    if (origin === undefined || !cors.allowed_origins.includes(origin)) return next();
    res.setHeader("access-control-allow-origin", origin);
    res.setHeader("access-control-expose-headers", exposedHeaders);
    res.setHeader("cross-origin-resource-policy", "cross-origin");
    if (req.method !== "OPTIONS" || req.get("access-control-request-method") === undefined) return next();
    res.setHeader("access-control-allow-methods", allowedMethods);
    res.setHeader("access-control-allow-headers", allowedHeaders);
    res.setHeader("access-control-max-age", String(cors.max_age_seconds));
    res.writeHead(200, { "content-length": 0 }).end();
  };
}
