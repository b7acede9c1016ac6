import { createHash, timingSafeEqual } from "node:crypto";
import { type Config, type Principal, rolesInForce } from "@tephra/control";
import type { IdentifyToken, Identity } from "./identity.ts";
import { amongKeystoneTokens } from "./keystone.ts";
import { UnauthenticatedError } from "./refusals.ts";

/** The identity of callers without a token in mode `none`. */
const anonymous = { userId: "admin", projectId: "00000000000000000000000000000001" } as const;

/** USER:PROJECT, in characters that are safe in URLs, logs and rows. */
const plainToken = /^([\w.@-]{1,255}):([\w.-]{1,255})$/;

/** Like `IdentifyToken`, for one request. */
export type Authenticate = (
  token: string | undefined,
  requestId: string,
) => Promise<Principal & Pick<Identity, "expiresAt">>;

export function authenticator(auth: Config["auth"]): Authenticate {
  const identify = identifierOf(auth);
  return async (token, requestId) => {
    const { userId, projectId, roles, expiresAt } = await identify(token);
    // Cinder's deprecated defaults require a project token but no role (cinder-api 3.3).
    const granted = rolesInForce(auth.enforce_new_defaults ? roles : [...new Set([...roles, "member" as const])]);
    return {
      userId,
      projectId,
      roles: granted,
      isAdmin: roles.includes("admin"),
      requestId,
      ...(expiresAt && { expiresAt }),
    };
  };
}

function identifierOf(auth: Config["auth"]): IdentifyToken {
  if (auth.mode === "static") return amongTokens(auth.tokens);
  return auth.mode === "keystone" && auth.keystone !== null ? amongKeystoneTokens(auth.keystone) : takenAsGiven;
}

/** Cinder's noauth: every caller is an admin of the project it names. */
const takenAsGiven: IdentifyToken = (token) => {
  if (token === undefined) return { ...anonymous, roles: ["admin"] };
  const [, userId, projectId] = plainToken.exec(token) ?? [];
  if (userId === undefined || projectId === undefined) throw new UnauthenticatedError();
  return { userId, projectId, roles: ["admin"] };
};

function amongTokens(tokens: Config["auth"]["tokens"]): IdentifyToken {
  const known = tokens.map((token) => ({ ...token, digest: Buffer.from(token.sha256, "hex") }));
  return (token) => {
    if (token === undefined) throw new UnauthenticatedError();
    const digest = createHash("sha256").update(token).digest();
    // Compares every entry, so that timing does not reveal which one matched.
    const found = known.reduce<(typeof known)[number] | null>(
      (match, entry) => (timingSafeEqual(entry.digest, digest) ? entry : match),
      null,
    );
    if (!found) throw new UnauthenticatedError();
    return { userId: found.user_id, projectId: found.project_id, roles: found.roles };
  };
}
