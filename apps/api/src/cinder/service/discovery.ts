import { type Request, type Response, Router } from "express";
import { endJson } from "../../http/fault.ts";
import { malformedRequest, versionMax, versionMin, versionText } from "../../openstack/microversions.ts";
import { announceVersion } from "../../openstack/serve.ts";

/** The version document (cinder-api 2.1). `origin` has no trailing slash. */
function versionDocument(origin: string): Record<string, unknown> {
  return {
    versions: [
      {
        id: "v3.0",
        status: "CURRENT",
        version: versionText(versionMax),
        min_version: versionText(versionMin),
        updated: "2023-08-31T00:00:00Z",
        links: [
          { rel: "describedby", type: "text/html", href: "https://docs.openstack.org/" },
          { rel: "self", href: `${origin}/v3/` },
        ],
        "media-types": [{ base: "application/json", type: "application/vnd.openstack.volume+json;version=3" }],
      },
    ],
  };
}

/** Answers every method, but refuses requests that have a body. */
const answer = (status: number) => (req: Request, res: Response) => {
  announceVersion(req, res);
  if (req.headers["transfer-encoding"] !== undefined || Number(req.headers["content-length"] ?? 0) > 0) {
    throw malformedRequest();
  }
  endJson(res, status, versionDocument(req.base));
};

/** oslo's health check: text, or JSON for clients that accept it. */
const healthcheck = (req: Request, res: Response): void => {
  const body = { detailed: false, reasons: ["OK"] };
  if (req.method === "HEAD") res.writeHead(204).end();
  else if (req.accepts(["text/plain", "application/json"]) === "application/json") endJson(res, 200, body);
  else res.writeHead(200, { "content-type": "text/plain; charset=UTF-8" }).end("OK");
};

/** What clients request before they have a token (cinder-api 2.1). */
export function discovery(): Router {
  const router = Router({ caseSensitive: true, strict: true });
  router.all("/", answer(300));
  router.all("/healthcheck", healthcheck);
  return router;
}

/** The document of version 3 only; requires a token. */
export function versionThree(): Router {
  const router = Router({ caseSensitive: true, strict: true });
  router.all("/v3", (req, res) => {
    res
      .writeHead(302, {
        location: `${req.base}/v3/`,
        "content-type": "text/plain; charset=utf8",
        "content-length": 0,
      })
      .end();
  });
  router.all("/v3/", answer(200));
  return router;
}
