import type { Principal } from "@tephra/control";

/** Whose a token is. */
export type Identity = Pick<Principal, "userId" | "projectId" | "roles">;

/**
 * Token → who it belongs to.
 *
 * @throws UnauthenticatedError for a token that is missing where one is needed, malformed or unknown
 * @throws IdentityUnavailableError when that cannot be found out
 */
export type IdentifyToken = (token: string | undefined) => Identity | Promise<Identity>;
