import { createHash, timingSafeEqual } from "node:crypto";
import type { Config, Principal } from "@tephra/control";
import { UnauthenticatedError } from "./refusals.ts";

/** Who a caller is who sends no token in mode `none`. */
const anonymous = { userId: "admin", projectId: "00000000000000000000000000000001" } as const;

/** USER:PROJECT, in characters that are safe in URLs, logs and rows. */
const plainToken = /^([\w.@-]{1,255}):([\w.-]{1,255})$/;

/**
 * Token → Principal of this request.
 *
 * @throws UnauthenticatedError for a token that is missing where one is needed, malformed or unknown
 */
export type Authenticate = (token: string | undefined, requestId: string) => Principal;

export function authenticator(auth: Config["auth"]): Authenticate {
  return auth.mode === "none" ? takenAsGiven : amongTokens(auth.tokens);
}

/** Cinder's noauth: every caller is admin of the project that it names. */
const takenAsGiven: Authenticate = (token, requestId) => {
  if (token === undefined) return { ...anonymous, roles: ["admin"], isAdmin: true, requestId };
  const [, userId, projectId] = plainToken.exec(token) ?? [];
  if (userId === undefined || projectId === undefined) throw new UnauthenticatedError();
  return { userId, projectId, roles: ["admin"], isAdmin: true, requestId };
};

function amongTokens(tokens: Config["auth"]["tokens"]): Authenticate {
  const known = tokens.map((token) => ({ ...token, digest: Buffer.from(token.sha256, "hex") }));
  return (token, requestId) => {
    if (token === undefined) throw new UnauthenticatedError();
    const digest = createHash("sha256").update(token).digest();
    // Every entry is compared, so that the time says nothing about which one matched.
    const found = known.reduce<(typeof known)[number] | null>(
      (match, entry) => (timingSafeEqual(entry.digest, digest) ? entry : match),
      null,
    );
    if (!found) throw new UnauthenticatedError();
    const { user_id: userId, project_id: projectId, roles } = found;
    return { userId, projectId, roles, isAdmin: roles.includes("admin"), requestId };
  };
}
