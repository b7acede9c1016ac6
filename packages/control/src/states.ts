/**
 * Which status may follow which: the only definition. `move` (rows/move.ts) is typed by it, and its update names the origins in the WHERE
 * clause.
 *
 * Backup:  creating → available | error            available ⇄ restoring → error_restoring
 *          any resting status → deleting → (tombstone) | error | error_deleting
 *          with a deletion delay: available, error_restoring → deleted, which nobody sees → available | deleting
 * Volume:  creating → available | error            available, in-use ⇄ backing-up
 *          available → restoring-backup → available | error_restoring
 *          available → reserved → attaching → in-use → detaching → available
 *          available ⇄ awaiting-transfer
 *          available, in-use → extending → as it was | error_extending
 *          in-use → restoring-backup → in-use: only together with all disks of a virtual machine that is shut off
 *          available, in-use (of a virtual machine that is shut off) → uploading, downloading → as it was | error: an image transfer. As in
 *          Cinder, `uploading` copies the volume to an image, and `downloading` an image to the volume
 *
 * Image transfer: initializing → transferring → finalizing_success → finished_success | finished_failure
 *          an upload: transferring → paused_user, paused_system → resuming → transferring
 *          any that has not ended → cancelled_user, cancelled_system → finished_cleanup
 *
 * Machine's backup: initializing → starting → ready → finalizing → succeeded
 *          any that has not ended → failed; ended by its client before it is ready: → finalizing → failed
 * Machine's checkpoint: created → invalid; either → removing, until its row is removed
 *
 * Retry of a failed operation: error → creating (also of snapshots); a volume: error_restoring → restoring-backup, error_extending → as it was
 *
 * An admin may put a row into any status (os-reset_status), and delete it in any status: see `override` in rows/move.ts.
 */
export const backupTransitions = {
  creating: ["available", "error", "deleting"],
  available: ["restoring", "deleting", "deleted", "error"],
  restoring: ["available", "error", "error_restoring"],
  error_restoring: ["available", "error", "deleting", "deleted"],
  error: ["available", "creating", "deleting"],
  deleting: ["error", "error_deleting", "deleted"],
  error_deleting: ["available", "error", "deleting"],
  deleted: ["available", "deleting"],
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
    "downloading",
    "extending",
    "deleting",
    "error",
  ],
  reserved: ["available", "attaching", "in-use", "error"],
  attaching: ["available", "reserved", "in-use", "error"],
  "awaiting-transfer": ["available"],
  "in-use": [
    "available",
    "reserved",
    "attaching",
    "detaching",
    "backing-up",
    "restoring-backup",
    "uploading",
    "downloading",
    "extending",
    "error",
  ],
  detaching: ["available", "reserved", "attaching", "in-use", "error"],
  "backing-up": ["available", "in-use", "error"],
  "restoring-backup": ["available", "in-use", "error_restoring", "error"],
  uploading: ["available", "in-use", "error"],
  downloading: ["available", "in-use", "error"],
  extending: ["available", "in-use", "error_extending"],
  error_extending: ["available", "in-use", "deleting"],
  error_managing: ["deleting"],
  error: ["available", "creating", "deleting"],
  error_restoring: ["available", "restoring-backup", "error", "deleting"],
  deleting: ["error", "error_deleting", "deleted"],
  error_deleting: ["available", "error", "deleting"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

export const snapshotTransitions = {
  creating: ["available", "backing-up", "error"],
  available: ["backing-up", "deleting", "error"],
  "backing-up": ["available", "error"],
  error: ["available", "creating", "deleting"],
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

/** A group that is created from a source is `creating` until all its volumes are there; any other is available at once. */
export const groupTransitions = {
  creating: ["available", "error"],
  available: ["deleted"],
  error: ["deleted"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

/** A record may be connected, and completed, more than once. */
export const attachmentTransitions = {
  reserved: ["attaching", "attached", "deleted"],
  attaching: ["attaching", "attached", "deleted"],
  attached: ["attaching", "attached", "deleted"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

export const transferTransitions = {
  pending: ["accepted", "deleted"],
  accepted: ["deleted"],
  deleted: [],
} as const satisfies Record<string, readonly string[]>;

/** oVirt's phases. */
export const imageTransferTransitions = {
  initializing: [
    "transferring",
    "paused_user",
    "paused_system",
    "cancelled_user",
    "cancelled_system",
    "finished_failure",
  ],
  transferring: [
    "paused_user",
    "paused_system",
    "finalizing_success",
    "cancelled_user",
    "cancelled_system",
    "finished_failure",
  ],
  paused_user: ["resuming", "finalizing_success", "cancelled_user", "cancelled_system", "finished_failure"],
  paused_system: ["resuming", "finalizing_success", "cancelled_user", "cancelled_system", "finished_failure"],
  resuming: ["transferring", "paused_user", "paused_system", "cancelled_user", "cancelled_system", "finished_failure"],
  finalizing_success: ["finished_success", "finished_failure"],
  cancelled_user: ["finished_cleanup"],
  cancelled_system: ["finished_cleanup"],
  finished_success: [],
  finished_failure: [],
  finished_cleanup: [],
} as const satisfies Record<string, readonly string[]>;

export type ImageTransferPhase = keyof typeof imageTransferTransitions;

/** oVirt's phases. */
export const machineBackupTransitions = {
  initializing: ["starting", "finalizing", "failed"],
  starting: ["ready", "finalizing", "failed"],
  ready: ["finalizing", "failed"],
  finalizing: ["succeeded", "failed"],
  succeeded: [],
  failed: [],
} as const satisfies Record<string, readonly string[]>;

export type MachineBackupPhase = keyof typeof machineBackupTransitions;

export const machineCheckpointTransitions = {
  created: ["invalid", "removing"],
  invalid: ["removing"],
  removing: [],
} as const satisfies Record<string, readonly string[]>;

/** The table of each model whose rows have a status. Operations and tasks have states, which `queue/` alone writes. */
export const transitions = {
  attachment: attachmentTransitions,
  backup: backupTransitions,
  group: groupTransitions,
  groupSnapshot: groupSnapshotTransitions,
  imageTransfer: imageTransferTransitions,
  machineBackup: machineBackupTransitions,
  machineCheckpoint: machineCheckpointTransitions,
  snapshot: snapshotTransitions,
  transfer: transferTransitions,
  volume: volumeTransitions,
} as const;

export type Resource = keyof typeof transitions;

export type StatusOf<R extends Resource> = keyof (typeof transitions)[R] & string;

type Table = Readonly<Record<string, readonly string[]>>;

/** The statuses of a table that every member of `To` may follow; of a union, the ones common to all. */
type OriginIn<T extends Table, To extends string> = {
  [From in keyof T & string]: [To] extends [T[From][number]] ? From : never;
}[keyof T & string];

/** The statuses of a resource that every member of `To` may follow. */
export type OriginOf<R extends Resource, To extends StatusOf<R>> = OriginIn<(typeof transitions)[R], To>;

/** Statuses that `to` may follow. */
export function originsOf<T extends Table, To extends keyof T & string>(table: T, to: To): OriginIn<T, To>[] {
  return Object.keys(table).filter((from) => table[from]?.includes(to)) as OriginIn<T, To>[];
}
