import { issueToken, revokeToken } from "@tephra/control";
import { type Request, type RequestHandler, type Response, Router, raw } from "express";
import type { Context } from "../context.ts";
import { endJson } from "../http/fault.ts";
import { BareStatus } from "./faults.ts";
import type { Users } from "./users.ts";

/** Forms of a login have a few hundred bytes. */
const formBytesMax = 16_384;

const scope = "ovirt-app-api";

/** Refusals of the single sign-on are JSON, with a code of OAuth's (ovirt 2.1). */
const refuse = (res: Response, code: string, error: string): void => endJson(res, 400, { error_code: code, error });

const formOf = (req: Request): URLSearchParams =>
  new URLSearchParams(Buffer.isBuffer(req.body) ? req.body.toString() : "");

function logIn({ config, database }: Context, users: Users): RequestHandler {
  return async (req, res) => {
    const form = formOf(req);
    const [grant, name, password] = ["grant_type", "username", "password"].map((key) => form.get(key) ?? "");
    if (grant !== "password") {
      return refuse(
        res,
        grant ? "unsupported_grant_type" : "invalid_request",
        `The grant type '${grant}' is not supported`,
      );
    }
    if (!name || password === undefined) return refuse(res, "invalid_request", "username and password are required");
    const from = { address: req.socket.remoteAddress ?? "", requestId: String(req.id) };
    const found = await users.byPassword(name, password, from);
    if (!found) {
      const why = "The username or password is incorrect..";
      return refuse(res, "access_denied", `Cannot authenticate user '${name}': ${why}`);
    }
    const owner = { userName: found.user.name, credential: found.user.password_hash };
    const login = { projectId: found.principal.projectId, ...from };
    const { token, expiresAt } = await issueToken(database, owner, config.ovirt.token_seconds, login);
    res.setHeader("cache-control", "no-store");
    endJson(res, 200, { access_token: token, scope, exp: String(expiresAt.getTime()), token_type: "bearer" });
  };
}

function logOut({ database }: Context): RequestHandler {
  return async (req, res) => {
    const token = formOf(req).get("token");
    if (token) await revokeToken(database, token);
    endJson(res, 200, {});
  };
}

/** Tokens by password, and their end. Logins by Kerberos are refused. */
export function signOnRoutes(context: Context, users: Users): Router {
  const router = Router({ caseSensitive: true, strict: false });
  const readForm = raw({ type: () => true, limit: formBytesMax, inflate: false });
  router.post("/ovirt-engine/sso/oauth/token", readForm, logIn(context, users));
  router.post("/ovirt-engine/services/sso-logout", readForm, logOut(context));
  router.all("/ovirt-engine/sso/oauth/token-http-auth", (_req, res) => {
    refuse(res, "unsupported_grant_type", "Only logins by name and password are supported");
  });
  router.all(["/ovirt-engine/sso/oauth/token", "/ovirt-engine/services/sso-logout"], () => {
    throw new BareStatus(405, { allow: "POST" });
  });
  return router;
}
