import { randomUUID } from "node:crypto";
import type { ServerResponse } from "node:http";
import { currentTrace } from "@tephra/control/process";
import type { Request, RequestHandler } from "express";
import { pinoHttp } from "pino-http";
import type { Context } from "../context.ts";
import { type Fault, identityFault, outageFault } from "./fault.ts";

/** Polled by machines every few seconds: not worth a log line. */
const quiet = new Set(["/healthz", "/readyz", "/metrics", "/healthcheck"]);

/**
 * Gives every request an id (`req.id`, header `x-openstack-request-id`; where it is traced, `traceresponse`) and a log line at its end, and counts the response. Headers are
 * never logged, so tokens are not either.
 */
export function logRequests({ log, metrics }: Pick<Context, "log" | "metrics">): RequestHandler {
  const logger = pinoHttp<Request, ServerResponse>({
    logger: log,
    // Our serializers need the request itself, and errors use the log's own.
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
    const trace = currentTrace();
    if (trace !== null) res.setHeader("traceresponse", trace);
    res.once("finish", () => metrics.countRequest(res.statusCode));
    next();
  };
}

/** Logs under the request id what the response does not contain: one line for an outage, full details for an unexpected error. */
export function logFault({ log }: Pick<Context, "log">, req: Request, fault: Fault, error: unknown): void {
  if (fault.status < 500) return;
  const about = { event: "request.failed", request_id: req.id, method: req.method, path: req.path };
  if (fault === outageFault) log.warn({ ...about, reason: (error as Error).message }, "the database cannot be asked");
  else if (fault === identityFault)
    log.warn({ ...about, reason: (error as Error).message }, "tokens cannot be validated");
  else log.error({ ...about, err: error }, "request failed");
}
