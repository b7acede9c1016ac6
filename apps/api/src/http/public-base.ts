import { BlockList, isIP } from "node:net";
import { TLSSocket } from "node:tls";
import type { Config } from "@tephra/control";
import type { Request, RequestHandler } from "express";

declare module "express-serve-static-core" {
  interface Request {
    /** The URL by which the caller reaches the service: scheme, host and prefix, without a trailing slash. Links start with it. */
    base: string;
    /** The host name, with any port, that the caller requested; null where it sent none. */
    askedHost: string | null;
  }
}

/** Whether an address is in one of the networks. IPv4-mapped IPv6 addresses count as IPv4. */
function networksOf(networks: readonly string[]): (address: string) => boolean {
  const list = new BlockList();
  for (const network of networks) {
    const [address = "", bits] = network.split("/");
    const family = isIP(address) === 6 ? "ipv6" : "ipv4";
    list.addSubnet(address, bits === undefined ? (family === "ipv6" ? 128 : 32) : Number(bits), family);
  }
  return (address) => {
    const plain = address.replace(/^::ffff:(?=\d+\.)/i, "");
    const family = isIP(plain);
    return family !== 0 && list.check(plain, family === 6 ? "ipv6" : "ipv4");
  };
}

/** The element added by the nearest proxy. */
const lastOf = (req: Request, name: string): string | undefined => req.get(name)?.split(",").at(-1)?.trim();

/** Rejects anything that could turn a link into a different URL. */
const isHost = (text: string): boolean => /^[a-z0-9._-]{1,253}(:\d{1,5})?$|^\[[0-9a-f:.]+\](:\d{1,5})?$/i.test(text);
const isPrefix = (text: string): boolean => /^(\/[\w.~-]+)+\/?$/.test(text);

function withPort(host: string, port: string | undefined, proto: string): string {
  const isDefault = port === (proto === "https" ? "443" : "80");
  return port === undefined || !/^\d{1,5}$/.test(port) || isDefault || /:\d+$/.test(host) ? host : `${host}:${port}`;
}

/** What a trusted proxy reports about the original request. */
function forwardedBase(req: Request, host: string, own: "http" | "https"): string {
  const port = lastOf(req, "x-forwarded-port");
  const prefix = lastOf(req, "x-forwarded-prefix");
  const said = lastOf(req, "x-forwarded-proto")?.toLowerCase();
  const proto = said === undefined ? own : said === "https" ? "https" : "http";
  const path = prefix && isPrefix(prefix) ? prefix.replace(/\/$/, "") : "";
  return `${proto}://${withPort(host, port, proto)}${path}`;
}

/**
 * Sets `req.askedHost` and `req.base`: the configured endpoint, otherwise what a proxy in `trust_proxy` states in its headers, otherwise
 * where the request arrived. Those headers are trusted from nobody else: callers could make links lead anywhere.
 */
export function findBase({ public_endpoint: endpoint, trust_proxy: trusted }: Config): RequestHandler {
  const isTrusted = networksOf(trusted);
  return (req, _res, next) => {
    const byProxy = isTrusted(req.socket.remoteAddress ?? "");
    const said = byProxy ? lastOf(req, "x-forwarded-host") : undefined;
    req.askedHost = said && isHost(said) ? said : (req.headers.host ?? null);
    const own = req.socket instanceof TLSSocket ? "https" : "http";
    const host = req.askedHost || `${req.socket.localAddress}:${req.socket.localPort}`;
    if (endpoint !== null) req.base = endpoint.replace(/\/v\d+$/, "");
    else req.base = byProxy ? forwardedBase(req, host, own) : `${own}://${host}`;
    next();
  };
}
