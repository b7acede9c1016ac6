import type { Role } from "./config.ts";

/** The caller. `isAdmin` sees every project's rows; everybody else only those of `projectId`. */
export interface Principal {
  readonly userId: string;
  readonly projectId: string;
  readonly roles: readonly Role[];
  readonly isAdmin: boolean;
  /** `req-<uuid>`, carried from HTTP to operation, job and log line. */
  readonly requestId: string;
}

/** The WHERE condition that separates projects: empty for an admin. */
export function visibleTo(principal: Principal): { projectId?: string } {
  return principal.isAdmin ? {} : { projectId: principal.projectId };
}

/** The same for a row that was read. */
export const mayLook = (principal: Principal, row: { projectId: string }): boolean =>
  principal.isAdmin || row.projectId === principal.projectId;

/** The WHERE condition of a list: the caller's own project, unless an admin lists all of them. Apply it after the filters. */
export function projectOf(principal: Principal, allProjects: boolean): { projectId?: string } {
  return principal.isAdmin && allProjects ? {} : { projectId: principal.projectId };
}
