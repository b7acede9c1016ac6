import { randomUUID } from "node:crypto";
import { originsOf, snapshotTransitions } from "./backup-state.ts";
import type { Config } from "./config.ts";
import { type Database, inTransaction, type Transaction } from "./database.ts";
import { InvalidError, NotFoundError } from "./errors.ts";
import type { Snapshot } from "./generated/client.ts";
import { isUuid, nilUuid, orderOf, type Page, windowOf } from "./listing.ts";
import { completeOperation, startOperation } from "./operations.ts";
import { type Principal, projectOf, visibleTo } from "./principal.ts";
import { releaseQuota, reserveQuota } from "./quotas.ts";
import type { TaskOperation, TaskResult } from "./tasks.ts";
import { getVolume, lockVolume } from "./volumes.ts";

export type SnapshotRow = Snapshot;
export type SnapshotSortKey = "id" | "createdAt" | "updatedAt" | "name" | "status" | "sizeGib" | "volumeId";

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

export interface SnapshotFilter {
  name?: string;
  status?: string;
  volumeId?: string;
  /** For an admin who lists all projects; otherwise the caller's own counts. */
  projectId?: string;
}

/** One page; `count` of all pages only where asked for. @throws NotFoundError when the marker is unknown or another project's */
export async function listSnapshots(
  database: Database,
  principal: Principal,
  query: { filter: SnapshotFilter; allProjects: boolean; withCount: boolean; page: Page<SnapshotSortKey> },
): Promise<{ rows: SnapshotRow[]; count: number }> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getSnapshot(database, principal, page.marker);
  if (filter.volumeId !== undefined && !isUuid(filter.volumeId)) return { rows: [], count: 0 };
  const where = { ...filter, ...projectOf(principal, query.allProjects) };
  const [rows, count] = await Promise.all([
    database.snapshot.findMany({ where, orderBy: orderOf(page), ...windowOf(page) }),
    query.withCount ? database.snapshot.count({ where }) : 0,
  ]);
  return { rows, count };
}

/**
 * A snapshot of a volume, in-use ones with `force` only.
 *
 * @throws InvalidError in another status; QuotaExceededError
 */
export async function requestSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  request: {
    volumeId: string;
    name: string | null;
    description: string | null;
    metadata: Record<string, string>;
    force: boolean;
  },
): Promise<SnapshotRow> {
  return inTransaction(database, async (tx) => {
    const seen = await getVolume(tx, principal, request.volumeId);
    await reserveQuota(tx, config, principal.projectId, { snapshots: 1, gigabytes: seen.sizeGib });
    const volume = await lockVolume(tx, seen.id);
    if (!volume) throw new NotFoundError("Volume", request.volumeId);
    const allowed = request.force ? ["available", "in-use"] : ["available"];
    if (!allowed.includes(volume.status)) {
      const text = `Volume ${volume.id} status must be ${allowed.join(" or ")}, but current status is: ${volume.status}.`;
      throw new InvalidError("volume", text);
    }
    const row = await tx.snapshot.create({
      data: {
        id: randomUUID(),
        projectId: principal.projectId,
        userId: principal.userId,
        volumeId: volume.id,
        name: request.name,
        description: request.description,
        metadata: request.metadata,
        status: "creating",
        sizeGib: volume.sizeGib,
        sizeBytes: volume.sizeBytes,
      },
    });
    await startOperation(tx, principal, {
      kind: "snapshot-create",
      projectId: row.projectId,
      snapshotId: row.id,
      volumeId: volume.id,
      bytesTotal: volume.sizeBytes,
      task: { kind: "take-snapshot", needs: [`backend:${volume.backend}`] },
    });
    return row;
  });
}

/** @throws InvalidError in a status that does not allow it */
export async function requestSnapshotDelete(database: Database, principal: Principal, id: string): Promise<void> {
  return inTransaction(database, async (tx) => {
    const seen = await getSnapshot(tx, principal, id);
    const volume = await tx.volume.findUniqueOrThrow({ where: { id: seen.volumeId } });
    const from = originsOf(snapshotTransitions, "deleting");
    const moved = await tx.snapshot.updateMany({
      where: { id, status: { in: from } },
      data: { status: "deleting", updatedAt: new Date() },
    });
    if (moved.count !== 1) throw new InvalidError("snapshot", "Snapshot status must be available or error.");
    await startOperation(tx, principal, {
      kind: "snapshot-delete",
      projectId: seen.projectId,
      snapshotId: id,
      volumeId: seen.volumeId,
      task: { kind: "remove-snapshot", needs: [`backend:${volume.backend}`] },
    });
  });
}

/** The snapshot's bytes stand still. */
export async function finishSnapshot(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  sizeBytes: number,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await tx.snapshot.updateMany({
      where: { id: operation.snapshotId ?? nilUuid, status: "creating" },
      data: { status: "available", sizeBytes: BigInt(sizeBytes), updatedAt: new Date() },
    });
    await completeOperation(tx, operation, result);
  });
}

/** The bytes are gone: the row and its quota go too. */
export async function finishSnapshotDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const row = await tx.snapshot.findUnique({ where: { id: operation.snapshotId ?? nilUuid } });
    if (row) await releaseQuota(tx, row.projectId, { snapshots: 1, gigabytes: row.sizeGib });
    if (row) await tx.snapshot.delete({ where: { id: row.id } });
    await completeOperation(tx, operation, result);
  });
}
