import { BlockList, isIP } from "node:net";
import type { Config } from "@tephra/control";
import type { Request, RequestHandler } from "express";

declare module "express-serve-static-core" {
  interface Request {
    /** Where the caller reaches the service: scheme, host and prefix, with no slash at the end. Links begin with it. */
    base: string;
    /** The name, with a port where one was said, by which the caller asked; null where it said none. */
    askedHost: string | null;
  }
}

/** Whether an address is one of the networks. Addresses of IPv4 in IPv6 are those of IPv4. */
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

/** The element that the nearest proxy has written. */
const lastOf = (req: Request, name: string): string | undefined => req.get(name)?.split(",").at(-1)?.trim();

/** Without what could make another URL of a link. */
const isHost = (text: string): boolean => /^[a-z0-9._-]{1,253}(:\d{1,5})?$|^\[[0-9a-f:.]+\](:\d{1,5})?$/i.test(text);
const isPrefix = (text: string): boolean => /^(\/[\w.~-]+)+\/?$/.test(text);

function withPort(host: string, port: string | undefined, proto: string): string {
  const isDefault = port === (proto === "https" ? "443" : "80");
  return port === undefined || !/^\d{1,5}$/.test(port) || isDefault || /:\d+$/.test(host) ? host : `${host}:${port}`;
}

/** What a trusted proxy says of the request that it was asked. */
function forwardedBase(req: Request, host: string): string {
  const port = lastOf(req, "x-forwarded-port");
  const prefix = lastOf(req, "x-forwarded-prefix");
  const proto = lastOf(req, "x-forwarded-proto")?.toLowerCase() === "https" ? "https" : "http";
  const path = prefix && isPrefix(prefix) ? prefix.replace(/\/$/, "") : "";
  return `${proto}://${withPort(host, port, proto)}${path}`;
}

/**
 * Sets `req.askedHost` and `req.base`: the configured endpoint, else what a proxy of `trust_proxy` says in its headers, else where the
 * request came in. What those headers say is believed of nobody else: links would lead wherever a caller wants.
 */
export function findBase({ public_endpoint: endpoint, trust_proxy: trusted }: Config): RequestHandler {
  const isTrusted = networksOf(trusted);
  return (req, _res, next) => {
    const byProxy = isTrusted(req.socket.remoteAddress ?? "");
    const said = byProxy ? lastOf(req, "x-forwarded-host") : undefined;
    req.askedHost = said && isHost(said) ? said : (req.headers.host ?? null);
    const host = req.askedHost || `${req.socket.localAddress}:${req.socket.localPort}`;
    if (endpoint !== null) req.base = endpoint.replace(/\/v\d+$/, "");
    else req.base = byProxy ? forwardedBase(req, host) : `http://${host}`;
    next();
  };
}
