import { ChangedMeanwhileError, type Database, type Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { liveStates } from "../db/live.ts";
import { lockRow } from "../db/lock-row.ts";
import { NotFoundError } from "../errors.ts";
import type { Prisma, Snapshot } from "../generated/client.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { isLive, lockOperation, type OperationKind, type OperationRow } from "../queue/operations.ts";
import { lockBackup } from "./backups.ts";
import { move } from "./move.ts";
import { lockVolume } from "./volumes.ts";

export type { Snapshot };

type NewSnapshot = Omit<Prisma.SnapshotCreateManyInput, "status">;

/** A snapshot that is about to be taken. */
export function addSnapshot(tx: Transaction, snapshot: NewSnapshot): Promise<Snapshot> {
  return tx.snapshot.create({ data: { ...snapshot, status: "creating" } });
}

/** Snapshots that are about to be taken at one instant. */
export async function addSnapshots(tx: Transaction, snapshots: readonly NewSnapshot[]): Promise<void> {
  await tx.snapshot.createMany({ data: snapshots.map((snapshot) => ({ ...snapshot, status: "creating" })) });
}

/** Kinds of operations that hold a snapshot's status. */
const holders: readonly OperationKind[] = ["snapshot-create", "snapshot-delete", "backup-create"];

/** The snapshot with the live operations that hold its status, locked after its volume and their backups. @throws NotFoundError */
export async function lockSnapshot(
  tx: Transaction,
  principal: Principal,
  id: string,
): Promise<{ snapshot: Snapshot; operations: OperationRow[] }> {
  const { volumeId } = await getSnapshot(tx, principal, id);
  const live = { snapshotId: id, state: liveStates, kind: { in: [...holders] } };
  const seen = await tx.operation.findMany({ where: live, orderBy: { id: "asc" } });
  await lockVolume(tx, volumeId);
  for (const backupId of [...new Set(seen.flatMap((operation) => operation.backupId ?? []))].sort()) {
    await lockBackup(tx, backupId);
  }
  const operations: OperationRow[] = [];
  for (const operation of seen) operations.push(await lockOperation(tx, operation.id));
  const snapshot = await lockRow(tx, "snapshot", id);
  if (!snapshot) throw new NotFoundError("Snapshot", id);
  // Starting an operation changes this row, so none can be added from here on, but one may have been before.
  const added = await tx.operation.count({ where: { ...live, id: { notIn: seen.map((operation) => operation.id) } } });
  if (added > 0) throw new ChangedMeanwhileError();
  return { snapshot, operations: operations.filter(isLive) };
}

/** From now on nobody can use the snapshots. */
export async function markSnapshotRemoval(
  tx: Transaction,
  which: { id: string } | { groupSnapshotId: string },
): Promise<void> {
  const now = new Date();
  await tx.snapshot.updateMany({ where: { ...which, removalBegunAt: null }, data: { removalBegunAt: now } });
}

/** The deletion of the volume failed: snapshots that were to be deleted with it stay, unless they are being deleted on their own. */
export async function releaseSnapshotsOf(tx: Transaction, volumeId: string): Promise<void> {
  const own = await tx.operation.findMany({
    where: { volumeId, kind: "snapshot-delete", state: liveStates },
    select: { snapshotId: true },
  });
  const going = own.flatMap(({ snapshotId }) => snapshotId ?? []);
  const which = { volumeId, id: { notIn: going } };
  await move(tx, "snapshot", which, { from: "deleting", to: "error_deleting" });
}

export type SnapshotRow = Snapshot;

/** @throws NotFoundError for an unknown id or another project's */
export async function getSnapshot(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<SnapshotRow> {
  const row = isUuid(id) ? await database.snapshot.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
  if (!row) throw new NotFoundError("Snapshot", id);
  return row;
}
