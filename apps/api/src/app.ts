import { atPoint, besideSettings } from "@tephra/control/process";
import express, { type Express, type RequestHandler } from "express";
import helmet from "helmet";
import { forwardRest } from "./cinder/beside/forward.ts";
import { besideRoutes, cinderRoutes } from "./cinder/routes.ts";
import { discovery, versionThree } from "./cinder/service/discovery.ts";
import type { Context } from "./context.ts";
import { answerOrigins, checkHost, checkOrigin } from "./http/browsers.ts";
import { consoleFiles } from "./http/console-files.ts";
import { identify } from "./http/identify.ts";
import { findBase } from "./http/public-base.ts";
import { makeReadable } from "./http/readable-url.ts";
import { NoRouteError } from "./http/refusals.ts";
import { logRequests } from "./http/request-log.ts";
import { instanceGroupRoutes } from "./instance-groups/routes.ts";
import { answerErrors, answerOptions, limitBodies, type Route, v3Router } from "./openstack/serve.ts";
import { queueBoard } from "./ops/queue-board.ts";
import { opsRoutesBeside } from "./ops/routes.ts";
import { type OpsRoute, opsRouter } from "./ops/serve.ts";
import { ovirtRoutes } from "./ovirt/routes.ts";
import { answerOvirtErrors, ovirtRouter } from "./ovirt/serve.ts";

/** All routes below `/v3` of an installation with volumes of its own. */
export const v3Routes: readonly Route[] = [...cinderRoutes, ...instanceGroupRoutes];

/** Our own routes. Their OpenAPI document describes the whole API. */
export const opsRoutes: readonly OpsRoute[] = opsRoutesBeside({ v3: v3Routes, ovirt: ovirtRoutes });

const publishPoints: RequestHandler = (_req, res, next) => {
  atPoint("request.received");
  res.once("finish", () => atPoint("request.answered"));
  next();
};

/**
 * The whole HTTP side. Order: log and request id → what a Cinder has that this is the endpoint of → Host and Origin checks → oVirt's API → our own routes → the console's files → discovery (no token) → token → Cinder's
 * routes.
 *
 * @throws when a route has no entry in the policy table
 */
export function buildApp(context: Context): Express {
  const app = express();
  app.disable("x-powered-by").disable("etag").enable("case sensitive routing").enable("strict routing");
  app.use(logRequests(context));
  if (besideSettings(context.config)?.forward) app.use(forwardRest(context));
  app.use(helmet({ contentSecurityPolicy: false, crossOriginOpenerPolicy: false, strictTransportSecurity: false }));
  app.use(findBase(context.config), checkHost(context.config), answerOrigins(context.config));
  app.use(checkOrigin(context.config), makeReadable);
  // Beside a Cinder, volumes and what is made of them are its own.
  const own = context.cinder === null;
  if (own) app.use(ovirtRouter(context, ovirtRoutes));
  app.use(opsRouter(context, opsRoutes));
  app.use("/console", consoleFiles());
  app.use("/ops/queues", queueBoard(context, "ops:queues"));
  app.use(answerOptions, limitBodies, discovery());
  app.use("/v3", publishPoints, identify(context));
  app.use(versionThree());
  app.use("/v3", v3Router(context, own ? v3Routes : besideRoutes));
  app.use(() => {
    throw new NoRouteError();
  });
  app.use(answerOvirtErrors(context), answerErrors(context));
  return app;
}
