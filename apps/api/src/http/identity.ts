import type { Principal } from "@tephra/control";

/** The owner of a token. `expiresAt` is absent where tokens do not expire. */
export interface Identity extends Pick<Principal, "userId" | "projectId" | "roles"> {
  readonly expiresAt?: Date;
}

/**
 * Token → its owner.
 *
 * @throws UnauthenticatedError for a token that is missing where one is required, malformed or unknown
 * @throws IdentityUnavailableError when the owner cannot be determined
 */
export type IdentifyToken = (token: string | undefined) => Identity | Promise<Identity>;
