import type { ServerResponse } from "node:http";
import { actorOf, type Principal } from "@tephra/control";
import { actAs } from "@tephra/control/process";
import { type ErrorRequestHandler, type Request, type RequestHandler, Router, raw } from "express";
import type { z } from "zod";
import type { Context } from "../context.ts";
import { endFault, endJson } from "../http/fault.ts";
import { bodyText, parseJson } from "../http/json-body.ts";
import { allow, assertRule, isPublic, type Rule } from "../http/policy.ts";
import { refuseUnreadable } from "../http/readable-url.ts";
import { badRequest, NoRouteError, Refusal } from "../http/refusals.ts";
import { logFault } from "../http/request-log.ts";
import { tokenOf } from "../http/session-cookie.ts";
import { throttledText } from "../http/throttle.ts";
import { faultOf } from "./errors.ts";

/** One authenticated request to one of our own routes. `Body` and `Query` are the outputs of the action's schemas. */
export interface OpsCall<Body = unknown, Query = unknown> {
  readonly principal: Principal;
  readonly params: Readonly<Record<string, string>>;
  readonly query: Query;
  readonly body: Body;
  /** What the caller has shown; undefined where none is asked for. */
  readonly token: string | undefined;
  /** Of a reader of events that comes back. */
  readonly lastEventId: string | undefined;
  /** Whether the caller asks for a line of JSON each, without an end of pages. */
  readonly wantsLines: boolean;
}

export interface OpsAnswer {
  status: number;
  /** JSON, or text where `contentType` is given; no body is sent when undefined. */
  body?: unknown;
  contentType?: string;
  /** Where the caller is sent. */
  location?: string;
  /** The Set-Cookie header. */
  cookie?: string;
  /** The page's Content-Security-Policy header; not sent when absent. */
  contentSecurityPolicy?: string;
  /** Answers by itself, for as long as it takes: nothing else of this is sent. */
  stream?: (res: ServerResponse) => void;
}

/** A request to a route that is open to everybody. */
export interface PublicCall<Body = unknown> {
  readonly req: Request;
  readonly body: Body;
}

/** What a route does once policy allows the caller; a query or body without a schema is ignored. */
export interface OpsAction<Body = unknown, Query = unknown> {
  query?: z.ZodType<Query>;
  body?: z.ZodType<Body>;
  handle: (context: Context, call: OpsCall<Body, Query>) => Promise<OpsAnswer>;
}
export interface PublicAction<Body = unknown> {
  body?: z.ZodType<Body>;
  handle: (context: Context, call: PublicCall<Body>) => Promise<OpsAnswer>;
}

/** Ties the types of an action's schemas to its handler, and erases them for the route table. */
export const defineOps = <Body, Query>(action: OpsAction<Body, Query>): OpsAction => action as OpsAction;

export const definePublic = <Body>(action: PublicAction<Body>): PublicAction => action as PublicAction;

export type OpsRoute =
  | readonly [method: "GET" | "POST" | "DELETE", path: string, rule: "public", action: PublicAction]
  | readonly [
      method: "GET" | "POST" | "PUT" | "DELETE",
      path: string,
      rule: Exclude<Rule, "public">,
      action: OpsAction,
    ];

const bodyBytesMax = 65_536;

/** @throws Refusal 400 listing every problem with its key; what is wrong with `whole` itself goes by that name */
function parse<T>(schema: z.ZodType<T>, input: unknown, whole: "query" | "body"): T {
  const parsed = schema.safeParse(input);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map((i) => `${i.path.join(".") || whole}: ${i.message}`);
  throw badRequest(`Invalid input received: ${problems.join("; ")}`);
}

/** @throws Refusal 400 or 415 */
function sentJson(req: Request): unknown {
  const text = bodyText(req);
  return text === null ? undefined : parseJson(text);
}

async function answer(context: Context, route: OpsRoute, req: Request): Promise<OpsAnswer> {
  if (route[2] === "public") {
    const { body: schema, handle } = route[3];
    return handle(context, { req, body: schema && parse(schema, sentJson(req), "body") });
  }
  const [, , rule, action] = route;
  const token = tokenOf(req);
  const principal = await context.authenticate(token, String(req.id));
  const retryAfter = await context.throttle(principal, req.method);
  if (retryAfter !== null) throw new Refusal(429, throttledText, { retryAfter });
  allow(principal, rule);
  refuseUnreadable(req);
  const asked = Object.fromEntries(new URL(req.url, "http://localhost").searchParams);
  const query = action.query && parse(action.query, asked, "query");
  const sent = sentJson(req);
  const body = action.body && parse(action.body, sent, "body");
  const lastEventId = req.get("last-event-id");
  const wantsLines = /\bapplication\/x-ndjson\b/i.test(req.get("accept") ?? "");
  const params = req.params as Record<string, string>;
  const call = { principal, params, query, body, token, lastEventId, wantsLines };
  return actAs(actorOf(principal), () => action.handle(context, call));
}

const handlerOf =
  (context: Context, route: OpsRoute): RequestHandler =>
  async (req, res) => {
    const answered = await answer(context, route, req);
    if (answered.stream) return answered.stream(res);
    const { status, body, contentType, contentSecurityPolicy, location, cookie } = answered;
    if (contentSecurityPolicy !== undefined) res.setHeader("content-security-policy", contentSecurityPolicy);
    if (location !== undefined) res.setHeader("location", location);
    if (cookie !== undefined) res.setHeader("set-cookie", cookie);
    if (contentType === undefined) return endJson(res, status, body);
    res.setHeader("content-type", contentType);
    res.statusCode = status;
    res.end(String(body));
  };

const answerErrors =
  (context: Context): ErrorRequestHandler =>
  (error: unknown, req, res, next) => {
    if (res.headersSent) return next(error);
    const fault = faultOf(error);
    logFault(context, req, fault, error);
    // Which form the console's page for signing in has.
    if (fault.status === 401) res.setHeader("www-authenticate", `Token mode="${context.config.auth.mode}"`);
    endFault(res, fault);
  };

/** The path up to its second slash. */
const beginningOf = (path: string): string => /^\/[^/]*/.exec(path)?.[0] ?? "";

/** Mounts a route table; a path that begins like none of its routes is not compared with each. @throws when a rule is not in the policy table */
export function opsRouter(context: Context, routes: readonly OpsRoute[]): RequestHandler {
  const router = Router({ caseSensitive: true, strict: true });
  const readBody = raw({ limit: bodyBytesMax, type: () => true, inflate: false });
  for (const route of routes) {
    const [method, path, rule] = route;
    assertRule(rule, `${method} ${path}`);
    const verb = method.toLowerCase() as "get" | "post" | "put" | "delete";
    const readers = method === "POST" || method === "PUT" ? [readBody] : [];
    router[verb](path, ...readers, handlerOf(context, route));
    if (rule !== "public" && isPublic(rule)) throw new Error(`route ${path} is public by mistake`);
  }
  // The board is mounted beside.
  router.use("/ops", (req, _res, next) => next(/^\/queues(\/|$)/.test(req.path) ? undefined : new NoRouteError()));
  router.use(answerErrors(context));
  const beginnings = new Set(routes.map(([, path]) => beginningOf(path)));
  return (req, res, next) => (beginnings.has(beginningOf(req.path)) ? router(req, res, next) : next());
}
