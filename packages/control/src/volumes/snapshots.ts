import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import type { Prisma } from "../db/database.ts";
import { type Database, inTransaction } from "../db/database.ts";
import { isUuid, nilUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { type BoundedPage, readToPageBytes } from "../db/page-bytes.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { type Principal, projectOf } from "../principal.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { move } from "../rows/move.ts";
import { reserveQuota } from "../rows/quotas.ts";
import { addSnapshot, getSnapshot, type SnapshotRow } from "../rows/snapshots.ts";
import { getVolume, lockVolume, requireProvisioning } from "../rows/volumes.ts";
import { havingMetadata } from "./list.ts";

export type SnapshotSortKey =
  | "id"
  | "createdAt"
  | "updatedAt"
  | "name"
  | "description"
  | "status"
  | "sizeGib"
  | "volumeId"
  | "userId"
  | "projectId";

export interface SnapshotFilter {
  name?: Prisma.StringNullableFilter | string;
  description?: Prisma.StringNullableFilter | string;
  status?: Prisma.StringFilter | string;
  id?: string;
  volumeId?: string;
  sizeGib?: number;
  userId?: string;
  /** The volume's zone. */
  availabilityZone?: Prisma.StringFilter | string;
  /** Pairs that must all match. */
  metadata?: Readonly<Record<string, string>>;
  /** For an admin who lists all projects; otherwise the caller's own project is used. */
  projectId?: string;
}

/** One page; `count` of all pages only where asked for. @throws NotFoundError when the marker is unknown or another project's */
export async function listSnapshots(
  database: Database,
  principal: Principal,
  query: { filter: SnapshotFilter; allProjects: boolean; withCount: boolean; page: Page<SnapshotSortKey> },
): Promise<BoundedPage<SnapshotRow> & { count: number }> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getSnapshot(database, principal, page.marker);
  if ([filter.id, filter.volumeId].some((id) => id !== undefined && !isUuid(id)))
    return { rows: [], cut: false, count: 0 };
  const { metadata, availabilityZone, ...columns } = filter;
  const where: Prisma.SnapshotWhereInput = {
    ...columns,
    ...projectOf(principal, query.allProjects),
    ...(availabilityZone !== undefined && { volume: { availabilityZone } }),
    AND: havingMetadata(metadata),
  };
  const [rows, count] = await Promise.all([
    database.snapshot.findMany({ where, orderBy: orderOf(page), ...windowOf(page), omit: { metadata: true } }),
    query.withCount ? database.snapshot.count({ where }) : 0,
  ]);
  return { ...(await readToPageBytes(database, rows, "snapshots.metadata", "metadata")), count };
}

export interface SnapshotChange {
  name?: string | null;
  description?: string | null;
}

/** Changes a snapshot's user-editable fields, in any status. @throws NotFoundError */
export async function updateSnapshot(
  database: Database,
  principal: Principal,
  id: string,
  change: SnapshotChange,
): Promise<SnapshotRow> {
  await getSnapshot(database, principal, id);
  const [row] = await database.snapshot.updateManyAndReturn({
    where: { id },
    data: { ...change, updatedAt: new Date() },
  });
  if (!row) throw new NotFoundError("Snapshot", id);
  return row;
}

/**
 * A snapshot of a volume; of one in use only with `force`.
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
    requireProvisioning(config, seen.backend, "create snapshot");
    refuseStatus(seen, request.force);
    await reserveQuota(tx, config, principal.projectId, { snapshots: 1, gigabytes: seen.sizeGib });
    const volume = await lockVolume(tx, seen.id);
    if (!volume) throw new NotFoundError("Volume", request.volumeId);
    refuseStatus(volume, request.force);
    const row = await addSnapshot(tx, {
      id: randomUUID(),
      projectId: principal.projectId,
      userId: principal.userId,
      volumeId: volume.id,
      name: request.name,
      description: request.description,
      metadata: request.metadata,
      sizeGib: volume.sizeGib,
      sizeBytes: volume.sizeBytes,
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

function refuseStatus({ id, status }: { id: string; status: string }, force: boolean): void {
  const never: Readonly<Record<string, string>> = { error: "error status", maintenance: "maintenance mode" };
  if (never[status] !== undefined) {
    throw new InvalidError("volume", `The snapshot cannot be created when the volume is in ${never[status]}.`);
  }
  const allowed = force ? ["available", "in-use"] : ["available"];
  if (allowed.includes(status)) return;
  const text = `Volume ${id} status must be ${allowed.join(", ")}, but current status is: ${status}.`;
  throw new InvalidError("volume", text);
}

/** The snapshot has been taken: its bytes no longer change. */
export async function finishSnapshot(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  sizeBytes: number,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const which = { id: operation.snapshotId ?? nilUuid };
    await move(tx, "snapshot", which, { from: "creating", to: "available" }, { sizeBytes: BigInt(sizeBytes) });
    await completeOperation(tx, operation, result);
  });
}
