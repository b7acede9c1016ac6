import type { OperationKind } from "@tephra/control";
import type { ClaimedTask } from "@tephra/control/work";

/** What a project has, as somebody would keep it on paper who knows the rules and nothing of the code. Sizes in GiB. */
export interface Reference {
  volumes: Volume[];
  snapshots: Snapshot[];
  backups: Backup[];
  operations: Operation[];
  /** Claims that are worth nothing any more, of workers that do not know it. */
  late: { operation: Operation; held: ClaimedTask; running: boolean }[];
  /** Grows with every restore that ends and every snapshot that is begun. */
  time: number;
}

export interface Volume {
  id: string;
  status: string;
  /** Where an in-use volume goes back to. */
  wasInUse: boolean;
  attached: boolean;
  size: number;
  /** What an extension under way adds. */
  added: number;
  /** A worker had its deletion: bytes may be gone. */
  gone: boolean;
  /** The restore that ended last, if it ended well and no other has begun since. */
  restored: { from: Backup; at: number } | null;
}

export interface Snapshot {
  id: string;
  volume: Volume;
  status: string;
  /** The volume's, then. */
  size: number;
  madeAt: number;
  gone: boolean;
}

export interface Backup {
  id: string;
  volume: Volume;
  status: string;
  size: number;
  parent: string | null;
  /** It was `available` once. */
  complete: boolean;
  gone: boolean;
}

export interface Operation {
  id: string;
  kind: OperationKind;
  volume: Volume;
  backup?: Backup;
  snapshot?: Snapshot;
  held: ClaimedTask | null;
  /** A worker has had it. */
  claimed: boolean;
  /** Its task waits for those of what it has cancelled. */
  blocked: boolean;
}

export const limits = { volumes: 4, snapshots: 3, gigabytes: 12, backups: 5, backup_gigabytes: 9 };

const sum = <T>(rows: readonly T[], of: (row: T) => number): number => rows.reduce((total, row) => total + of(row), 0);

/** What quotas must say: the sum of the rows, always. */
export function usage({ volumes, snapshots, backups }: Reference): Record<keyof typeof limits, number> {
  const live = backups.filter(({ status }) => status !== "deleted");
  return {
    volumes: volumes.length,
    snapshots: snapshots.length,
    gigabytes: sum(volumes, ({ size, added }) => size + added) + sum(snapshots, ({ size }) => size),
    backups: live.length,
    backup_gigabytes: sum(live, ({ size }) => size),
  };
}

export function fits(reference: Reference, more: Partial<Record<keyof typeof limits, number>>): boolean {
  const used = usage(reference);
  return Object.entries(more).every(([name, amount]) => {
    const key = name as keyof typeof limits;
    return used[key] + amount <= limits[key];
  });
}

/** What an incremental backup may build on: any of the volume's own, else the one that the volume was restored from. */
export function parentsOf({ backups }: Reference, volume: Volume, snapshot?: Snapshot): Backup[] {
  const own = backups.filter((one) => one.volume.id === volume.id && one.status === "available");
  const { restored } = volume;
  if (own.length > 0 || restored?.from.status !== "available") return own;
  const isOlder = snapshot === undefined || restored.at < snapshot.madeAt;
  return isOlder && (snapshot ?? volume).size <= restored.from.size ? [restored.from] : [];
}

const move = (row: { status: string } | undefined, from: readonly string[], to: string): void => {
  if (row && from.includes(row.status)) row.status = to;
};

/** A volume or snapshot that was being backed up is free again: in use, where it still is. */
function release({ volume, snapshot }: Operation): void {
  if (snapshot) move(snapshot, ["backing-up"], "available");
  else move(volume, ["backing-up"], volume.wasInUse && volume.attached ? "in-use" : "available");
}

const without = <T>(rows: T[], row: T): void => {
  const at = rows.indexOf(row);
  if (at >= 0) rows.splice(at, 1);
};

/** The operation is over, whoever still works at it. */
export function end(reference: Reference, operation: Operation): void {
  without(reference.operations, operation);
  if (operation.held) reference.late.push({ operation, held: operation.held, running: true });
}

/** What an operation leaves that ended well. */
export function finish(reference: Reference, operation: Operation): void {
  const { volume, snapshot, backup } = operation;
  switch (operation.kind) {
    case "volume-create":
      move(volume, ["creating"], "available");
      break;
    case "volume-extend":
      volume.size += volume.added;
      volume.added = 0;
      move(volume, ["extending"], "available");
      break;
    case "volume-delete":
      without(reference.volumes, volume);
      reference.snapshots = reference.snapshots.filter((one) => one.volume !== volume);
      break;
    case "snapshot-create":
      move(snapshot, ["creating"], "available");
      break;
    case "snapshot-delete":
      if (snapshot) without(reference.snapshots, snapshot);
      break;
    case "backup-create":
      release(operation);
      move(backup, ["creating"], "available");
      if (backup) backup.complete = true;
      break;
    case "backup-restore":
      reference.time += 1;
      if (backup && volume.status === "restoring-backup") volume.restored = { from: backup, at: reference.time };
      move(volume, ["restoring-backup"], volume.attached ? "in-use" : "available");
      move(backup, ["restoring"], "available");
      break;
    default:
      if (backup) backup.status = "deleted";
  }
  without(reference.operations, operation);
}

/** What an operation leaves that failed. */
export function fail(operation: Operation): void {
  const { volume, snapshot, backup } = operation;
  switch (operation.kind) {
    case "volume-create":
      move(volume, ["creating"], "error");
      break;
    case "volume-extend":
      volume.added = 0;
      move(volume, ["extending"], "error_extending");
      break;
    case "volume-delete":
      move(volume, ["deleting"], "error_deleting");
      break;
    case "snapshot-create":
      move(snapshot, ["creating"], "error");
      break;
    case "snapshot-delete":
      move(snapshot, ["deleting"], "error_deleting");
      break;
    case "backup-create":
      release(operation);
      move(backup, ["creating"], "error");
      break;
    case "backup-restore":
      move(volume, ["restoring-backup"], "error_restoring");
      move(backup, ["restoring"], "available");
      break;
    default:
      move(backup, ["deleting"], "error");
  }
}

/** An administrator ends what is going on with a backup. */
export function cancelWork(reference: Reference, backup: Backup): void {
  for (const operation of reference.operations.filter((one) => one.backup === backup)) {
    if (operation.kind === "backup-create") release(operation);
    if (operation.kind === "backup-restore") move(operation.volume, ["restoring-backup"], "error");
    if (operation.kind === "backup-delete" && operation.claimed) backup.gone = true;
    end(reference, operation);
  }
}

/** What gives the volume its status. A backup of a snapshot gives it to the snapshot. */
export const holdersOf = ({ operations }: Reference, volume: Volume): Operation[] =>
  operations.filter(
    (one) =>
      one.volume === volume &&
      (/^volume-|^backup-restore/.test(one.kind) || (one.kind === "backup-create" && !one.snapshot)),
  );

/** What gives a snapshot its status. */
export const usersOf = ({ operations }: Reference, snapshot: Snapshot): Operation[] =>
  operations.filter((one) => one.snapshot === snapshot);

/** An administrator ends what is going on with a volume or a snapshot, whose own status he says himself. */
export function giveUp(reference: Reference, operations: readonly Operation[]): void {
  for (const operation of operations) {
    const { kind, volume, snapshot, backup } = operation;
    if (kind === "backup-create") move(backup, ["creating"], "error");
    if (kind === "backup-create" && snapshot) move(snapshot, ["backing-up"], "available");
    if (kind === "backup-restore") move(backup, ["restoring"], "available");
    if (kind === "volume-extend") volume.added = 0;
    if (kind === "volume-delete" && operation.claimed) volume.gone = true;
    if (kind === "snapshot-delete" && snapshot && operation.claimed) snapshot.gone = true;
    end(reference, operation);
  }
}

/** Whether a worker is at one of these kinds, whatever became of the operation. */
export const isAtWork = (
  reference: Reference,
  on: (one: Operation) => boolean,
  kinds: readonly OperationKind[],
): boolean => {
  const concerns = (one: Operation) => on(one) && kinds.includes(one.kind);
  return (
    reference.operations.some((one) => one.held !== null && concerns(one)) ||
    reference.late.some(({ operation, running }) => running && concerns(operation))
  );
};
