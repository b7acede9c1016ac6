import { randomUUID } from "node:crypto";
import { noteAudit } from "@tephra/control";
import { type AnswerOf, requests, type Session } from "@tephra/wire";
import { rulesOf } from "../http/policy.ts";
import { noSessionCookie, sessionCookie, tokenOfCookie } from "../http/session-cookie.ts";
import { version } from "../version.ts";
import { defineOps, definePublic } from "./serve.ts";

export const session = {
  /** Who asks, and what they may do: by a cookie or by a token. */
  show: defineOps({
    handle: async ({ config, sessions, authenticate }, { principal, token }) => {
      const { expiresAt } = await authenticate(token, principal.requestId);
      const own = [{ id: principal.projectId, name: principal.projectId }];
      const shown: Session = {
        mode: config.auth.mode,
        user_id: principal.userId,
        project_id: principal.projectId,
        roles: [...principal.roles],
        may: rulesOf(principal),
        projects: (await sessions.projectsOf(token)) ?? own,
        expires_at: expiresAt?.toISOString() ?? null,
        idle_minutes: config.console.idle_minutes,
        server: { version, now: new Date().toISOString() },
      };
      return { status: 200, body: { session: shown } satisfies AnswerOf<"GET /ops/session"> };
    },
  }),

  signIn: definePublic({
    ...requests["POST /ops/session"],
    handle: async ({ database, sessions }, { req, body }) => {
      const address = req.socket.remoteAddress ?? "";
      const current = "other_project_id" in body ? tokenOfCookie(req) : undefined;
      const from = { address, current, requestId: String(req.id) };
      const { token, principal } = await sessions.signIn(body, from);
      const { projectId } = principal;
      await noteAudit(database, principal, {
        ...{ resource: "session", resourceId: randomUUID(), projectId, to: "signed in", reason: address },
      });
      return { status: 204, cookie: sessionCookie(req.base, token) };
    },
  }),

  /** Signed out already: nothing to do. */
  signOut: definePublic({
    handle: async ({ sessions }, { req }) => {
      const token = tokenOfCookie(req);
      if (token !== undefined) await sessions.revoke(token);
      return { status: 204, cookie: noSessionCookie(req.base) };
    },
  }),
};
