import type { Config } from "@tephra/control";
import { type Request, type Response, Router } from "express";
import type { Context } from "../context.ts";
import { endJson } from "../fault.ts";
import { badRequest } from "../refusals.ts";
import { originOf } from "./links.ts";
import { versionMax, versionMin, versionText } from "./microversions.ts";
import { announceVersion } from "./serve.ts";

/** The version document (API spec 3.1). `origin` has no slash at its end. */
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

const answer = (config: Config, status: number) => (req: Request, res: Response) => {
  announceVersion(req, res);
  endJson(res, status, versionDocument(originOf(req, config)));
};

const getOnly = (req: Request, res: Response): void => {
  announceVersion(req, res);
  throw badRequest("The server could not comply with the request since it is either malformed or otherwise incorrect.");
};

/** What clients ask for before they have a token (API spec 3). */
export function discovery({ config }: Pick<Context, "config">): Router {
  const router = Router({ caseSensitive: true, strict: true });
  router.get("/", answer(config, 300));
  router.all("/", getOnly);
  router.get("/healthcheck", (_req, res) => {
    res.setHeader("content-type", "text/plain; charset=UTF-8");
    res.end("OK");
  });
  return router;
}

/** The document of version 3 alone; a token is needed for it. */
export function versionThree({ config }: Pick<Context, "config">): Router {
  const router = Router({ caseSensitive: true, strict: true });
  router.get("/v3", (req, res) => {
    res
      .writeHead(302, {
        location: `${originOf(req, config)}/v3/`,
        "content-type": "text/plain; charset=utf8",
        "content-length": 0,
      })
      .end();
  });
  router.get("/v3/", answer(config, 200));
  router.all("/v3/", getOnly);
  return router;
}
