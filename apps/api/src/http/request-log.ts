import { randomUUID } from "node:crypto";
import type { ServerResponse } from "node:http";
import type { Request, RequestHandler } from "express";
import { pinoHttp } from "pino-http";
import type { Context } from "../context.ts";
import { type Fault, identityFault, outageFault } from "./fault.ts";

/** Asked every few seconds by machines: not worth a line. */
const quiet = new Set(["/healthz", "/readyz", "/metrics", "/healthcheck"]);

/**
 * Gives every request its id (`req.id`, header `x-openstack-request-id`), a log line at its end, and counts the answer. Headers are
 * never logged, so that no token is.
 */
export function logRequests({ log, metrics }: Pick<Context, "log" | "metrics">): RequestHandler {
  const logger = pinoHttp<Request, ServerResponse>({
    logger: log,
    // Ours see the request itself, and errors are the log's own.
    wrapSerializers: false,
    genReqId: () => `req-${randomUUID()}`,
    quietReqLogger: true,
    customAttributeKeys: { reqId: "request_id" },
    autoLogging: { ignore: (req) => quiet.has(req.url ?? "") },
    customLogLevel: (_req, res) => (res.statusCode >= 500 ? "error" : "info"),
    customSuccessMessage: () => "request",
    customErrorMessage: () => "request",
    serializers: {
      req: (req: Request) => ({ method: req.method, url: req.originalUrl }),
      res: (res: ServerResponse) => ({ status: res.statusCode }),
    },
  });
  return (req, res, next) => {
    logger(req, res);
    res.setHeader("x-openstack-request-id", String(req.id));
    res.once("finish", () => metrics.countRequest(res.statusCode));
    next();
  };
}

/** Says under the request's id what the answer does not: one line for an outage, everything for what nobody foresaw. */
export function logFault({ log }: Pick<Context, "log">, req: Request, fault: Fault, error: unknown): void {
  if (fault.status < 500) return;
  const about = { event: "request.failed", request_id: req.id, method: req.method, path: req.path };
  if (fault === outageFault) log.warn({ ...about, reason: (error as Error).message }, "the database cannot be asked");
  else if (fault === identityFault)
    log.warn({ ...about, reason: (error as Error).message }, "tokens cannot be validated");
  else log.error({ ...about, err: error }, "request failed");
}
