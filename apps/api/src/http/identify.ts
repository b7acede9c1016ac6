import type { Principal } from "@tephra/control";
import type { RequestHandler } from "express";
import type { Context } from "../context.ts";
import { Refusal } from "./refusals.ts";
import { tokenOf } from "./session-cookie.ts";
import { throttledText } from "./throttle.ts";

declare module "express-serve-static-core" {
  interface Request {
    /** The caller; set by `identify`. */
    principal?: Principal;
  }
}

/**
 * Token → `req.principal`. An unknown token ends the request before its route is looked up, as in Keystone's middleware; a request over
 * the project's rate limit ends with the 413 of Cinder's limiter, whose `Retry-After` its clients honour.
 */
export function identify({ authenticate, throttle }: Pick<Context, "authenticate" | "throttle">): RequestHandler {
  return async (req, _res, next) => {
    req.principal = await authenticate(tokenOf(req), String(req.id));
    const retryAfter = await throttle(req.principal, req.method);
    if (retryAfter !== null) throw new Refusal(413, throttledText, { retryAfter });
    next();
  };
}
