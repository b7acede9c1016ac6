import type { Role } from "./config.ts";

/** The caller. Admins and observers see every project's rows; everybody else only those of `projectId`. */
export interface Principal {
  readonly userId: string;
  readonly projectId: string;
  readonly roles: readonly Role[];
  readonly isAdmin: boolean;
  /** `req-<uuid>`, carried from HTTP to operation, job and log line. */
  readonly requestId: string;
}

/**
 * Whether the caller sees every project's rows. Verbs that change rows find them by the same conditions: an observer is kept from those by
 * having no role that may call them (`rolesInForce`).
 */
export const seesAll = (principal: Pick<Principal, "isAdmin" | "roles">): boolean =>
  principal.isAdmin || principal.roles.includes("observer");

/** The roles that count: an observer changes nothing, so that `member` has no effect beside it. */
export const rolesInForce = (roles: readonly Role[]): readonly Role[] =>
  roles.includes("observer") && !roles.includes("admin") ? roles.filter((role) => role !== "member") : roles;

/** The WHERE condition that separates projects: empty for who sees all. */
export function visibleTo(principal: Principal): { projectId?: string } {
  return seesAll(principal) ? {} : { projectId: principal.projectId };
}

/** The same for a row that was read. */
export const mayLook = (principal: Principal, row: { projectId: string }): boolean =>
  seesAll(principal) || row.projectId === principal.projectId;

/** The WHERE condition of a list: the caller's own project, unless one who sees all lists all of them. Apply it after the filters. */
export function projectOf(principal: Principal, allProjects: boolean): { projectId?: string } {
  return seesAll(principal) && allProjects ? {} : { projectId: principal.projectId };
}
