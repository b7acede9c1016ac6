/**
 * Which status may follow which. The one place that says so; every verb asks `assertTransition` or lists its
 * allowed origins through `originsOf`, and the update names them in its WHERE clause.
 *
 * Backup:  creating → available | error            available ⇄ restoring → error_restoring
 *          any resting status → deleting → (tombstone) | error | error_deleting
 * Volume:  creating → available | error            available, in-use ⇄ backing-up
 *          available → restoring-backup → available | error_restoring
 */
export const backupTransitions = {
  creating: ["available", "error", "deleting"],
  available: ["restoring", "deleting", "error"],
  restoring: ["available", "error", "error_restoring"],
  error_restoring: ["available", "error", "deleting"],
  error: ["available", "deleting"],
  deleting: ["error", "error_deleting", "deleted"],
  error_deleting: ["available", "error", "deleting"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

export type BackupStatus = keyof typeof backupTransitions;

export const volumeTransitions = {
  creating: ["available", "error", "error_restoring"],
  available: ["in-use", "backing-up", "restoring-backup", "uploading", "deleting", "error"],
  "in-use": ["available", "backing-up", "error"],
  "backing-up": ["available", "in-use", "error"],
  "restoring-backup": ["available", "error_restoring", "error"],
  uploading: ["available", "error"],
  error: ["available", "deleting"],
  error_restoring: ["available", "error", "deleting"],
  deleting: ["error", "error_deleting", "deleted"],
  error_deleting: ["available", "error", "deleting"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

export type VolumeStatus = keyof typeof volumeTransitions;

export const snapshotTransitions = {
  creating: ["available", "error"],
  available: ["backing-up", "deleting", "error"],
  "backing-up": ["available", "error"],
  error: ["available", "deleting"],
  deleting: ["error_deleting", "error", "deleted"],
  error_deleting: ["deleting", "error"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

export type SnapshotStatus = keyof typeof snapshotTransitions;

/** Statuses from which `to` may be reached. */
export function originsOf<S extends string>(table: Readonly<Record<S, readonly string[]>>, to: NoInfer<S>): S[] {
  return (Object.keys(table) as S[]).filter((from) => table[from].includes(to));
}

/** A switch over a union ends in this: a new member that nobody handled is a compile error. */
export function unreachable(value: never): never {
  throw new Error(`unreachable: ${String(value)}`);
}
