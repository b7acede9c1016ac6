import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { ExpressAdapter } from "@bull-board/express";
import type { Logger } from "@tephra/control";
import { laneQueues, liveQueues } from "@tephra/control/process";
import { type ErrorRequestHandler, type Request, type RequestHandler, Router } from "express";
import helmet from "helmet";
import type { Context } from "../context.ts";
import { endFault } from "../http/fault.ts";
import { allow, assertRule, type Rule } from "../http/policy.ts";
import { Refusal, UnauthenticatedError } from "../http/refusals.ts";
import { tokenOfVisit } from "../http/session-cookie.ts";
import { faultOf } from "./errors.ts";
import type { RedisQueues } from "./redis-queues.ts";

const basePath = "/ops/queues";

/** Queues of live workers as adapters for the board. */
function adapters({ queueOf }: RedisQueues) {
  const known = new Map<string, BullMQAdapter>();
  return (name: string): BullMQAdapter => {
    const adapter = known.get(name) ?? new BullMQAdapter(queueOf(name), { readOnlyMode: true });
    known.set(name, adapter);
    return adapter;
  };
}

/** Browsers cannot send X-Auth-Token, so the HTTP Basic password is also accepted as the token. */
function tokenOf(headers: {
  authorization?: string | undefined;
  "x-auth-token"?: string | string[] | undefined;
}): string | undefined {
  const token = headers["x-auth-token"];
  if (typeof token === "string") return token;
  const [, encoded] = /^Basic ([A-Za-z0-9+/=]+)$/i.exec(headers.authorization ?? "") ?? [];
  if (encoded === undefined) return undefined;
  const pair = Buffer.from(encoded, "base64").toString("utf8");
  return pair.slice(pair.indexOf(":") + 1);
}

/** Beside tokens, the board takes the cookie of the console, which links to it. */
const shownBy = (req: Request): string | undefined => tokenOf(req.headers) ?? tokenOfVisit(req);

const answerErrors =
  (log: Logger): ErrorRequestHandler =>
  (error: unknown, _req, res, next) => {
    if (res.headersSent) return next(error);
    if (error instanceof UnauthenticatedError) res.setHeader("www-authenticate", 'Basic realm="tephra"');
    const fault = faultOf(error);
    if (fault.status >= 500) log.warn({ event: "board.failed", err: error }, "queue board");
    endFault(res, fault.status === 500 ? { status: 503, message: "The queues cannot be shown now." } : fault);
  };

/**
 * A read-only dashboard of all queues that live workers serve. When Redis is down, the board answers 503 and every other route keeps
 * working.
 */
export function queueBoard(context: Context, rule: Rule): Router {
  const { config, database, log } = context;
  assertRule(rule, basePath);
  const adapterOf = adapters(context.queues);
  const server = new ExpressAdapter().setBasePath(basePath);
  const board = createBullBoard({ queues: [], serverAdapter: server, options: { uiConfig: { boardTitle: "Tephra" } } });
  const guard: RequestHandler = async (req, _res, next) => {
    allow(await context.authenticate(shownBy(req), String(req.id)), rule);
    if (req.method !== "GET" && req.method !== "HEAD") throw new Refusal(405, "The queues can only be looked at here.");
    next();
  };
  const refresh: RequestHandler = async (_req, _res, next) => {
    const queues = await liveQueues(database, config.worker.down_ms);
    await context.queues.reach();
    board.replaceQueues([...new Set(queues.flatMap((q) => Object.values(laneQueues(q.queue))))].map(adapterOf));
    next();
  };
  const router = Router();
  router.use(helmet({ contentSecurityPolicy: { useDefaults: false, directives: boardPolicy } }));
  router.use(guard);
  router.use("/api", refresh);
  router.use(server.getRouter() as RequestHandler);
  router.use(answerErrors(log));
  return router;
}

/** Nothing is loaded from other sites. Inline styles are allowed because the board's loading screen needs them. */
const boardPolicy = {
  defaultSrc: ["'none'"],
  scriptSrc: ["'self'"],
  styleSrc: ["'self'", "'unsafe-inline'"],
  imgSrc: ["'self'", "data:"],
  fontSrc: ["'self'"],
  connectSrc: ["'self'"],
  baseUri: ["'self'"],
  formAction: ["'none'"],
  frameAncestors: ["'none'"],
};
