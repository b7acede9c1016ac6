import { actorOf, NotFoundError } from "@tephra/control";
import { actAs } from "@tephra/control/process";
import type { ErrorRequestHandler, Request, RequestHandler, Response } from "express";
import { Router, raw } from "express";
import type { Context } from "../context.ts";
import { endFault, endJson, type Fault, identityFault } from "../http/fault.ts";
import { bodyText, malformedBody, parseJson } from "../http/json-body.ts";
import { allow, assertRule, may, type Rule } from "../http/policy.ts";
import { refuseUnreadable } from "../http/readable-url.ts";
import { badRequest, IdentityUnavailableError, NoRouteError, Refusal, UnauthenticatedError } from "../http/refusals.ts";
import { logFault } from "../http/request-log.ts";
import type { Action, Answer, Call } from "./call.ts";
import { faultOf } from "./errors.ts";
import { uuidOf } from "./fields.ts";
import { checkMetadataOf } from "./metadata-limits.ts";
import { type Microversion, malformedRequest, negotiate, VersionRangeError, versionText } from "./microversions.ts";
import { parseBody } from "./schema-errors.ts";

/** oslo.middleware's request body limit. */
const bodyBytesMax = 114_688;

/** Method, path, rule and action. A route with `action` is selected by its body's only key, as in OpenStack's action calls. */
export type Route =
  | readonly [method: "GET" | "POST" | "PUT" | "DELETE", path: string, rule: Rule, action: Action]
  | readonly [method: "ACTION", path: string, actions: Readonly<Record<string, readonly [rule: Rule, action: Action]>>];

declare module "express-serve-static-core" {
  interface Request {
    /** The project id in the URL; null when it had none. */
    urlProject?: string | null;
  }
}

const projectPart = /^\/([0-9a-f-]+)(\/.+)$/;
/** The optional format suffix of a path. */
const formatPart = /^([^?]*[^?/])\.json(?=\?|$)/;

/**
 * `/v3/{project}/backups` and `/v3/backups` are the same route: the project is removed from the URL (cinder-api 1.1). So is a trailing
 * `.json`, which has no effect: every response is JSON. Repeated slashes count as one.
 */
const takeProject: RequestHandler = (req, _res, next) => {
  const [path = "", ...query] = req.url.split("?");
  const url = [path.replace(/\/{2,}/g, "/"), ...query].join("?");
  const [, project, rest] = projectPart.exec(url) ?? [];
  req.urlProject = project ?? null;
  req.url = (rest ?? url).replace(formatPart, "$1");
  next();
};

/**
 * The request's version, also announced in the response headers (cinder-api 1.2). @throws Refusal, after setting a header that echoes an
 * unsupported version
 */
export function announceVersion(req: Request, res: Response): Microversion {
  res.setHeader("x-compute-request-id", String(req.id));
  const announce = (text: string): void => {
    res.setHeader("openstack-api-version", `volume ${text}`);
    res.vary("OpenStack-API-Version");
  };
  try {
    const version = negotiate(req.get("openstack-api-version"));
    announce(versionText(version));
    return version;
  } catch (error) {
    // The two versions that once had their own endpoints are not echoed.
    if (error instanceof VersionRangeError && !["1.0", "2.0"].includes(error.asked)) announce(error.asked);
    throw error;
  }
}

const noSuchAction = (name: string): Refusal =>
  badRequest(`There is no such action: ${name}. Verify the request body and Content-Type header and try again.`);

const notFound = (): Refusal => new Refusal(404, "The resource could not be found.");

/** The action that a body names. */
function chooseAction<T>(actions: Readonly<Record<string, T>>, body: unknown): T {
  if (typeof body !== "object" || body === null) throw notFound();
  const [name, ...others] = Array.isArray(body) ? [] : Object.keys(body);
  if (name === undefined || others.length > 0) throw malformedBody();
  const found = Object.hasOwn(actions, name) ? actions[name] : undefined;
  if (found === undefined) throw noSuchAction(name);
  return found;
}

/** Ids in a body may be upper-case: a not-found error quotes the id as it was written. */
function asWritten(error: unknown, { body, params }: Call): unknown {
  if (!(error instanceof NotFoundError) || typeof body !== "object" || body === null) return error;
  if (Object.values(params).includes(error.id)) return error;
  const fields = Object.values(body).flatMap((part) => Object.values((part as object | null) ?? {}));
  const written = fields.find((value) => typeof value === "string" && uuidOf(value) === error.id);
  return typeof written === "string" ? new NotFoundError(error.resource, written) : error;
}

async function perform(context: Context, call: Call, rule: Rule, action: Action): Promise<Answer> {
  const body = action.body ? parseBody(action.body(call.version), call.body) : undefined;
  checkMetadataOf(context.config, body);
  const parsed: Call = { ...call, body };
  const project = action.projectOf?.(parsed);
  try {
    if (!may(call.principal, rule, project)) await action.load?.(context, parsed);
    allow(call.principal, rule, project);
    return await actAs(actorOf(call.principal), () => action.handle(context, parsed));
  } catch (error) {
    throw asWritten(error, call);
  }
}

function goneOf(res: Response): AbortSignal {
  const controller = new AbortController();
  // An answered caller is not gone, and what is aborted makes an error, with its stack.
  res.once("close", () => {
    if (!res.writableFinished) controller.abort();
  });
  return controller.signal;
}

function handlerOf(context: Context, route: Route): RequestHandler {
  return async (req, res) => {
    const version = announceVersion(req, res);
    refuseUnreadable(req);
    const text = bodyText(req);
    const [method] = route;
    if (method === "ACTION" && text === null) throw noSuchAction("None");
    const takesBody = method === "ACTION" || route[3].body !== undefined;
    const body = text === null ? undefined : parseJson(text);
    const [rule, action] = method === "ACTION" ? chooseAction(route[2], body) : [route[2], route[3]];
    const { principal } = req;
    if (principal === undefined) throw new UnauthenticatedError();
    const project = req.urlProject ?? null;
    if (project !== null && project !== principal.projectId) throw badRequest("Malformed request url");
    if (version < (action.since ?? 0)) throw notFound();
    if (takesBody && text === null) throw malformedBody();
    if (!takesBody && text !== null) throw malformedRequest();
    const url = new URL(req.url, "http://localhost");
    const place = { origin: req.base, project, path: url.pathname };
    const call = {
      principal,
      token: req.get("x-auth-token") ?? "",
      version,
      place,
      params: req.params as Record<string, string>,
      query: url.searchParams,
      listMax: context.config.list_max,
      gone: goneOf(res),
      body,
    };
    const answer = await perform(context, call, rule, action);
    for (const [name, value] of Object.entries(answer.headers ?? {})) res.setHeader(name, value);
    endJson(res, answer.status, answer.body);
  };
}

/** Cinder's response for an unknown path or method, in the format that the caller accepts (cinder-api 4.5). */
function endPlain(req: Request, res: Response, status: number, title: string, text: string, detail = ""): void {
  const form = req.headers.accept ? req.accepts(["text/html", "application/json"]) : false;
  if (req.method === "HEAD") {
    res.writeHead(status, { "content-type": "text/html; charset=UTF-8" }).end();
  } else if (form === "application/json") {
    endJson(res, status, { message: `${text}<br /><br />\n${detail}\n\n`, code: `${status} ${title}`, title });
  } else if (form === "text/html") {
    const head = ` <head>\n  <title>${status} ${title}</title>\n </head>`;
    const body = ` <body>\n  <h1>${status} ${title}</h1>\n  ${text}<br /><br />\n${detail}\n\n\n </body>`;
    res.writeHead(status, { "content-type": "text/html; charset=UTF-8" }).end(`<html>\n${head}\n${body}\n</html>`);
  } else {
    res.writeHead(status, { "content-type": "text/plain; charset=UTF-8" });
    res.end(`${status} ${title}\n\n${text}\n\n ${detail}  `);
  }
}

function endTooLarge(req: Request, res: Response): void {
  const text = `Request is too large. Larger than max_request_body_size (${bodyBytesMax}).`;
  endPlain(req, res, 413, "Request Entity Too Large", text);
}

/** The message of Keystone's middleware when it cannot validate a token. */
const unavailableText = "The server is currently unavailable. Please try again at a later time.";

function endUnauthenticated({ config }: Context, req: Request, res: Response): void {
  const { mode, keystone } = config.auth;
  const identity = mode === "keystone" ? (keystone?.www_authenticate_uri ?? keystone?.url) : null;
  const error = { code: 401, title: "Unauthorized", message: "The request you have made requires authentication." };
  res.setHeader("www-authenticate", `Keystone uri="${identity ?? req.base}"`);
  endJson(res, 401, { error });
}

/** Renders every error of this dialect. */
export function answerErrors(context: Context): ErrorRequestHandler {
  return (error: unknown, req, res, _next) => {
    if (res.headersSent) {
      res.destroy();
      return;
    }
    if (error instanceof NoRouteError) return endPlain(req, res, 404, "Not Found", "The resource could not be found.");
    if (error instanceof UnauthenticatedError) return endUnauthenticated(context, req, res);
    if (error instanceof IdentityUnavailableError) {
      logFault(context, req, identityFault, error);
      return endPlain(req, res, 503, "Service Unavailable", unavailableText, identityFault.message);
    }
    const fault = bodyFault(req, res, error) ?? faultOf(error);
    if (fault === "answered") return;
    logFault(context, req, fault, error);
    endFault(res, fault);
  };
}

/** Errors thrown by the body parser: too long, truncated, or in an unknown encoding. */
function bodyFault(req: Request, res: Response, error: unknown): Fault | "answered" | null {
  const { type, status } = error as { type?: unknown; status?: unknown };
  if (typeof type !== "string" || typeof status !== "number") return null;
  if (type === "entity.too.large") {
    endTooLarge(req, res);
    return "answered";
  }
  return status === 415
    ? { status, message: "Unsupported Content-Type" }
    : { status: 400, message: "Malformed request body" };
}

/** HTML form pages that Cinder's router knows but its controllers lack: `/{collection}/new`, `/{collection}/{id}/edit`. */
const noForm: RequestHandler = (req, res) => {
  announceVersion(req, res);
  throw notFound();
};

/** The announced length of a request is checked before anything else, as in oslo.middleware. */
export const limitBodies: RequestHandler = (req, res, next) => {
  if (Number(req.get("content-length") ?? 0) > bodyBytesMax) return endTooLarge(req, res);
  next();
};

/** The response of Cinder's CORS middleware for every path, before a token is required. */
export const answerOptions: RequestHandler = (req, res, next) => {
  if (req.method !== "OPTIONS") return next();
  res.writeHead(200, { "content-length": 0 }).end();
};

/** Mounts a route table. @throws when a rule is not in the policy table */
export function v3Router(context: Context, routes: readonly Route[]): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const readBody = raw({ type: () => true, limit: bodyBytesMax, inflate: false });
  router.use(takeProject);
  router.use((req, _res, next) => {
    // Cinder does not support HEAD: Express would answer it from the GET route.
    if (req.method === "HEAD") throw new NoRouteError();
    next();
  });
  for (const route of routes) {
    const [method, path] = route;
    const rules = method === "ACTION" ? Object.values(route[2]).map(([rule]) => rule) : [route[2]];
    for (const rule of rules) assertRule(rule, `${method} ${path}`);
    if (method === "GET" && path.endsWith("/:id")) {
      router.get([path.replace(/:id$/, "new"), `${path}/edit`], noForm);
    }
    const verb = method === "ACTION" ? "post" : (method.toLowerCase() as "get" | "post" | "put" | "delete");
    router[verb](path, readBody, handlerOf(context, route));
  }
  return router;
}
