import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { type RequestHandler, Router } from "express";
import sirv from "sirv";
import { endFault } from "./fault.ts";

const { resolve } = createRequire(import.meta.url);

/**
 * Nothing is loaded from elsewhere, no script or style stands in a page, and no page of others frames it. The hash is that of the one fixed
 * style that the component library sets on iOS.
 */
const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self' 'sha256-gYiS/BvZvRcK27JIXTuwhZ3hs2+VJ1X+2gUlE+farlg='",
  "img-src 'self'",
  "font-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'self'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
].join("; ");

const permissions = ["camera", "geolocation", "microphone", "payment", "usb", "display-capture", "clipboard-read"];

const headers: Readonly<Record<string, string>> = {
  "content-security-policy": contentSecurityPolicy,
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": permissions.map((name) => `${name}=()`).join(", "),
};

const yearSeconds = 31_536_000;

/** Files whose names contain their hash never change; the page that names them is asked for each time. */
const cacheOf = (path: string): string =>
  path.startsWith("/assets/") ? `public, max-age=${yearSeconds}, immutable` : "no-cache";

/**
 * The files of the console, to be mounted where its pages are: every path that is no file is one of its pages. They are listed once, at the start
 * of the process. 404 with one sentence where it was not built.
 */
export function consoleFiles(): RequestHandler {
  const folder = join(dirname(resolve("@tephra/console/package.json")), "dist");
  const isBuilt = existsSync(join(folder, "index.html"));
  const files = isBuilt
    ? sirv(folder, {
        ...{ brotli: true, gzip: true, etag: true, dotfiles: false },
        setHeaders: (res, path) => res.setHeader("cache-control", cacheOf(path)),
      })
    : null;
  const router = Router({ strict: true });
  router.use((req, res, next) => {
    if (req.method !== "GET" && req.method !== "HEAD") return next();
    for (const [name, value] of Object.entries(headers)) res.setHeader(name, value);
    if (req.base.startsWith("https://")) res.setHeader("strict-transport-security", `max-age=${yearSeconds}`);
    if (files === null)
      return endFault(res, { status: 404, message: "The console is not built: run `npm run build`." });
    if (req.originalUrl === req.baseUrl) return res.redirect(301, `${req.baseUrl}/`);
    files(req, res, () => {
      if (req.path.startsWith("/assets/")) return next();
      req.url = "/";
      files(req, res, next);
    });
  });
  return router;
}
