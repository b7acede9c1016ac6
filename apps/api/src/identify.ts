import type { Principal } from "@tephra/control";
import type { RequestHandler } from "express";
import type { Context } from "./context.ts";

declare module "express-serve-static-core" {
  interface Request {
    /** Who asks; set by `identify`. */
    principal?: Principal;
  }
}

/** Token → `req.principal`. An unknown one ends the request before its route is looked up, as Keystone's middleware does. */
export function identify({ authenticate }: Pick<Context, "authenticate">): RequestHandler {
  return async (req, _res, next) => {
    req.principal = await authenticate(req.get("x-auth-token"), String(req.id));
    next();
  };
}
