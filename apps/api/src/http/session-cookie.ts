import type { IncomingMessage } from "node:http";
import type { Request } from "express";
import { isOwnOrigin } from "./browsers.ts";
import { Refusal } from "./refusals.ts";

/**
 * A browser's session is the caller's own token in a cookie that no script can read: nothing is stored, and every request is checked as
 * one with X-Auth-Token is. A browser attaches cookies by itself, to requests of any page of the same host on any port, so a cookie counts only
 * where the console itself has asked.
 */

const isSecure = (base: string): boolean => base.startsWith("https://");

/** Browsers accept a name with this prefix only from this host, over HTTPS and for all paths: no neighbour can set it. */
const nameOf = (base: string): string => (isSecure(base) ? "__Host-tephra_session" : "tephra_session");

const attributes = (base: string): string => `Path=/; HttpOnly; SameSite=Strict${isSecure(base) ? "; Secure" : ""}`;

/** The Set-Cookie header that signs a browser in until it ends. */
export const sessionCookie = (base: string, token: string): string =>
  `${nameOf(base)}=${encodeURIComponent(token)}; ${attributes(base)}`;

/** The Set-Cookie header that signs it out. */
export const noSessionCookie = (base: string): string => `${nameOf(base)}=; Max-Age=0; ${attributes(base)}`;

function cookieOf(headers: IncomingMessage["headers"], base: string): string | undefined {
  const start = `${nameOf(base)}=`;
  const found = headers.cookie?.split(/;\s*/).find((pair) => pair.startsWith(start));
  if (found === undefined || found === start) return undefined;
  try {
    return decodeURIComponent(found.slice(start.length));
  } catch {
    return undefined;
  }
}

/**
 * The caller's token: of X-Auth-Token, otherwise of the cookie.
 *
 * @throws Refusal 403 for a cookie in a request that is not the console's
 */
export function tokenOf(req: Request): string | undefined {
  const sent = req.get("x-auth-token");
  return sent === undefined ? tokenOfCookie(req) : sent;
}

/** As `tokenOf`, without X-Auth-Token. */
export function tokenOfCookie(req: Request): string | undefined {
  const token = cookieOf(req.headers, req.base);
  if (token === undefined) return undefined;
  const [origin, site] = [req.get("origin"), req.get("sec-fetch-site")];
  const isOurs =
    // Only scripts can send it, and those of another origin only after a preflight request, which nobody answers.
    req.get("x-tephra-console") === "1" &&
    (origin === undefined || isOwnOrigin(req, origin)) &&
    (site === undefined || site === "same-origin");
  if (!isOurs) throw new Refusal(403, "A session's cookie counts only in requests of the console: send X-Auth-Token.");
  return token;
}

/**
 * The token of the cookie for a page that changes nothing and is opened by a link or typed as an address, so cannot send a header.
 *
 * @throws Refusal 403 when a page of another origin has asked for it
 */
export function tokenOfVisit(req: Request): string | undefined {
  const token = cookieOf(req.headers, req.base);
  if (token === undefined) return undefined;
  const site = req.get("sec-fetch-site");
  if (site !== undefined && site !== "same-origin" && site !== "none") {
    throw new Refusal(403, "Pages of other sites may not open this one.");
  }
  return token;
}
