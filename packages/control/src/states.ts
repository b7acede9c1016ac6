/**
 * Which status may follow which: the only definition. Every verb gets its allowed origins
 * from `originsOf`, and its update names them in the WHERE clause.
 *
 * Backup:  creating → available | error            available ⇄ restoring → error_restoring
 *          any resting status → deleting → (tombstone) | error | error_deleting
 * Volume:  creating → available | error            available, in-use ⇄ backing-up
 *          available → restoring-backup → available | error_restoring
 *          available → reserved → attaching → in-use → detaching → available
 *          available ⇄ awaiting-transfer
 *          available, in-use → extending → as it was | error_extending
 *          in-use → restoring-backup → in-use: only together with all disks of a virtual machine that is shut off
 *
 * An admin may put a volume or a snapshot into any status (os-reset_status); that is not covered here.
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
  available: [
    "reserved",
    "attaching",
    "in-use",
    "awaiting-transfer",
    "backing-up",
    "restoring-backup",
    "uploading",
    "extending",
    "deleting",
    "error",
  ],
  reserved: ["available", "attaching", "in-use", "error"],
  attaching: ["available", "reserved", "in-use", "error"],
  "awaiting-transfer": ["available"],
  "in-use": ["available", "reserved", "attaching", "detaching", "backing-up", "restoring-backup", "extending", "error"],
  detaching: ["available", "reserved", "attaching", "in-use", "error"],
  "backing-up": ["available", "in-use", "error"],
  "restoring-backup": ["available", "in-use", "error_restoring", "error"],
  uploading: ["available", "error"],
  extending: ["available", "in-use", "error_extending"],
  error_extending: ["available", "deleting"],
  error_managing: ["deleting"],
  error: ["available", "deleting"],
  error_restoring: ["available", "error", "deleting"],
  deleting: ["error", "error_deleting", "deleted"],
  error_deleting: ["available", "error", "deleting"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

export const snapshotTransitions = {
  creating: ["available", "error"],
  available: ["backing-up", "deleting", "error"],
  "backing-up": ["available", "error"],
  error: ["available", "deleting"],
  deleting: ["error_deleting", "error", "deleted"],
  error_deleting: ["deleting", "error"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

export const groupSnapshotTransitions = {
  creating: ["available", "error", "deleting"],
  available: ["deleting", "error"],
  error: ["available", "deleting"],
  deleting: ["error", "error_deleting", "deleted"],
  error_deleting: ["available", "error", "deleting"],
  updating: ["available", "error"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

/** Statuses that `to` may follow. */
export function originsOf<S extends string>(table: Readonly<Record<S, readonly string[]>>, to: NoInfer<S>): S[] {
  return (Object.keys(table) as S[]).filter((from) => table[from].includes(to));
}

/** A switch over a union ends in this: a new member that nobody handled is a compile error. */
export function unreachable(value: never): never {
  throw new Error(`unreachable: ${String(value)}`);
}
