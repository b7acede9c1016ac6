import { randomUUID } from "node:crypto";
import { type Config, levelOf, repositoryNamed } from "../config.ts";
import type { Prisma } from "../db/database.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { isLiveOperation } from "../db/live.ts";
import { InvalidError, NotFoundError, OperationEndedError } from "../errors.ts";
import { notificationsOf, notifyBackup, notifyBackupInOrder } from "../events/notifications.ts";
import { holdSeal } from "../queue/blocked.ts";
import { documentVersion } from "../queue/document-version.ts";
import { type BackupPlan, type CopyRange, documents } from "../queue/documents.ts";
import {
  completeOperation,
  countDown,
  lockLiveOperation,
  lockOperation,
  planInForce,
  startPhase,
} from "../queue/operations.ts";
import { backupTidyNeeds, copyNeeds } from "../queue/plan-needs.ts";
import { finishTask, type NewTask, reopenCopies, type TaskOperation, type TaskResult } from "../queue/tasks.ts";
import { needToWrite } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { move } from "../rows/move.ts";
import { releaseSource } from "../rows/release.ts";
import type { Volume } from "../rows/volumes.ts";
import { subjectOf } from "./beside.ts";
import { volumeMeta } from "./volume-meta.ts";

/** What only a worker knows: the driver's names, and whether the source must or can be frozen. */
export interface BackupSite {
  service: string;
  defaultContainer: (backupId: string) => string;
  defaultPrefix: (input: { volumeId: string; backupId: string; at: Date }) => string;
  canFreezeCheaply: () => Promise<boolean>;
  tellsChanges: boolean;
}

/** Ranges of a volume, at most: of one that is larger they are longer, so that no plan, seal or queue has more to hold. */
export const rangesMax = 1_024;

/** Python's str() of an aware datetime: the form used in the documents in a repository. */
const pythonTime = (at: Date): string => {
  const [date, time] = at.toISOString().split("T");
  const fraction = at.getUTCMilliseconds() === 0 ? "" : `.${String(at.getUTCMilliseconds()).padStart(3, "0")}000`;
  return `${date} ${time?.slice(0, 8)}${fraction}+00:00`;
};

async function sourceOf(
  backup: Backup,
  volume: { previousStatus: string | null; beside: boolean },
  site: BackupSite,
): Promise<BackupPlan["source"]> {
  const { previousStatus, beside } = volume;
  // Found again by the backup's id in the service that makes it.
  if (beside)
    return { kind: "snapshot", id: backup.id, temporary: true, ...(backup.snapshotId && { from: backup.snapshotId }) };
  if (backup.snapshotId) return { kind: "snapshot", id: backup.snapshotId, temporary: false };
  const freeze = previousStatus === "in-use" || (await site.canFreezeCheaply());
  return freeze ? { kind: "snapshot", id: randomUUID(), temporary: true } : { kind: "volume" };
}

/**
 * Fixes the plan of a backup, unless there is one already: then that one is returned and nothing changes. The names are in the backup row
 * before any object is written.
 *
 * @throws OperationEndedError when it was cancelled in the meantime
 */
export async function planBackup(
  database: Database,
  config: Config,
  operation: TaskOperation,
  openSite: (names: { repository: string; backend: string }) => Promise<BackupSite>,
): Promise<BackupPlan> {
  if (operation.plan !== null) return documents.backupPlan(operation.plan);
  const { backup, volume, snapshot, parent } = await readSubject(database, config, operation);
  const repository = repositoryNamed(config, backup.repository);
  const site = await openSite({ repository: backup.repository, backend: volume.backend });
  const volumeBytes = Number(snapshot?.sizeBytes ?? volume.sizeBytes);
  const plan: BackupPlan = {
    version: documentVersion,
    backupId: backup.id,
    volumeId: backup.volumeId,
    repository: backup.repository,
    backend: volume.backend,
    source: await sourceOf(backup, volume, site),
    container: backup.container || site.defaultContainer(backup.id),
    prefix: site.defaultPrefix({ volumeId: backup.volumeId, backupId: backup.id, at: backup.createdAt }),
    compression: repository.compression,
    level: levelOf(repository),
    zlibEncoder: repository.zlib_encoder,
    objectBytes: repository.object_bytes,
    blockBytes: repository.block_bytes,
    volumeBytes,
    rangeBytes: config.range_bytes,
    createdAt: pythonTime(backup.createdAt),
    name: backup.name,
    description: backup.description,
    volumeMeta: volumeMeta(volume, volumeBytes),
    parentId: backup.parentId,
    encrypted: repository.encryption !== undefined,
    parent: parent && parentOf(parent),
    ...(await changesSince(database, { parent, volume, site })),
    fingerprint: null,
  };
  const started = notificationsOf("started", [{ event: "backup.create.start" }]);
  const fixed = await database.$queryRaw<object[]>`
    WITH named AS (
      UPDATE backups SET container = ${plan.container}, service_metadata = ${plan.prefix}, service = ${site.service},
        host = ${config.hostName}, block_bytes = ${plan.blockBytes}, volume_bytes = ${plan.volumeBytes}::bigint,
        availability_zone = coalesce(availability_zone, ${repository.zone})
      WHERE id = ${backup.id}::uuid AND status = 'creating'
        AND EXISTS (SELECT 1 FROM operations WHERE id = ${operation.id}::uuid AND plan IS NULL) RETURNING *
    ), fixed AS (
      UPDATE operations SET plan = ${JSON.stringify(plan)}::jsonb, updated_at = now() FROM named
      WHERE operations.id = ${operation.id}::uuid AND plan IS NULL AND ${isLiveOperation("operations")} RETURNING operations.id
    ), started AS (SELECT named.* FROM named, fixed), told AS (${started})
    SELECT id FROM fixed`;
  if (fixed.length !== 1) return documents.backupPlan(await planInForce(database, operation.id));
  return plan;
}

/** What is backed up: the rows, or what was seen where another service has the volume. */
async function readSubject(database: Database, config: Config, operation: TaskOperation) {
  const { volume: seen } = documents.backupInput(operation.input);
  if (seen === undefined) return readOwn(database, operation);
  const backup = await database.backup.findUniqueOrThrow({ where: { id: operation.backupId ?? nilUuid } });
  const parent = backup.parentId ? await database.backup.findUnique({ where: { id: backup.parentId } }) : null;
  const distrusted = await database.distrustedVolume.findUnique({ where: { volumeId: seen.id } });
  const volume = { ...subjectOf(config, seen), distrustedAt: distrusted?.at ?? null };
  return { backup, volume, snapshot: null, parent };
}

async function readOwn(database: Database, { backupId, volumeId, snapshotId }: TaskOperation) {
  const [backup, volume, snapshot] = await Promise.all([
    database.backup.findUniqueOrThrow({ where: { id: backupId ?? nilUuid } }),
    database.volume.findUnique({ where: { id: volumeId ?? nilUuid } }),
    snapshotId ? database.snapshot.findUnique({ where: { id: snapshotId } }) : null,
  ]);
  if (!volume) throw new NotFoundError("Volume", backup.volumeId);
  const parent = backup.parentId ? await database.backup.findUnique({ where: { id: backup.parentId } }) : null;
  return { backup, volume: { ...volume, beside: false }, snapshot, parent };
}

function parentOf(parent: Backup): NonNullable<BackupPlan["parent"]> {
  return {
    backupId: parent.id,
    repository: parent.repository,
    container: parent.container ?? "",
    prefix: parent.serviceMetadata ?? "",
  };
}

/** So many backups, each on the other, believe the storage about what has changed. The next one reads everything. */
const believedMax = 29;

/** What an incremental may believe the storage about: what has changed since a snapshot that is there, and whose bytes the parent has. */
async function changesSince(
  database: Database,
  of: { parent: Backup | null; volume: Pick<Volume, "id" | "distrustedAt"> & { beside: boolean }; site: BackupSite },
): Promise<Pick<BackupPlan, "changes">> {
  const { parent, volume, site } = of;
  if (!site.tellsChanges || parent === null || volume.distrustedAt !== null) return {};
  if (parent.believedInRow >= believedMax) return {};
  // Where it is kept, the snapshot that a backup has read bears the backup's id.
  if (volume.beside) return { changes: { since: parent.id, inRow: parent.believedInRow + 1 } };
  if (parent.baseSnapshotId === null) return {};
  const since = await database.snapshot.findUnique({ where: { id: parent.baseSnapshotId } });
  if (since?.volumeId !== volume.id) return {};
  return { changes: { since: since.id, inRow: parent.believedInRow + 1 } };
}

/**
 * Ends the plan task and releases the ranges, all in one commit. `fingerprint` is that of the frozen source; `changed`: for each range, where
 * the storage is believed.
 */
export async function startCopy(
  database: Database,
  operationId: string,
  result: TaskResult,
  copy: {
    plan: BackupPlan;
    ranges: readonly { offset: number; length: number }[];
    changed: readonly NonNullable<CopyRange["changed"]>[] | null;
    fingerprint: string;
  },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    const plan = { ...copy.plan, fingerprint: copy.fingerprint };
    await tx.operation.update({ where: { id: operationId }, data: { plan: plan as unknown as Prisma.InputJsonValue } });
    const needs = copyNeeds(plan);
    await startPhase(
      tx,
      operation,
      copy.ranges.map((range, ordinal) => {
        const changed = copy.changed?.[ordinal];
        return {
          kind: "copy",
          ordinal,
          needs,
          range,
          ...(changed && { input: { version: documentVersion, changed } }),
        };
      }),
    );
  });
}

const sealTask = (plan: BackupPlan): NewTask => ({
  kind: "seal",
  ordinal: 0,
  needs: [needToWrite(plan.repository)],
});

/** Finishes a range; finishing the last one adds the seal task, which finalizes the backup. */
export async function finishCopy(database: Database, operationId: string, result: TaskResult): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    const remaining = await countDown(tx, operationId);
    const plan = documents.backupPlan(operation.plan);
    if (remaining === 0) await startPhase(tx, operation, [sealTask(plan)]);
    else await notifyProgress(tx, operationId, plan, remaining);
  });
}

/** At most one event per whole percent, however many ranges there are. All ranges have the same length, except the last. */
async function notifyProgress(
  tx: Transaction,
  operationId: string,
  plan: BackupPlan,
  remaining: number,
): Promise<void> {
  const last = await tx.task.findFirst({
    where: { operationId, kind: "copy" },
    orderBy: { ordinal: "desc" },
    select: { ordinal: true },
  });
  const total = (last?.ordinal ?? 0) + 1;
  const percentAt = (left: number): number => Math.floor((100 * (total - left)) / total);
  if (percentAt(remaining) === percentAt(remaining + 1)) return;
  await notifyBackup(tx, "backup.createprogress", plan.backupId, progressOf(plan, percentAt(remaining)));
}

const progressOf = (plan: BackupPlan, percent: number) => ({
  prefix: plan.prefix,
  volume_meta: plan.volumeMeta,
  backup_percent: percent,
});

/** The ranges' reports, in range order. @throws MalformedDocumentError, NewerDocumentError */
export async function readCopyReports(database: Database, operationId: string) {
  const rows = await database.task.findMany({
    where: { operationId, kind: "copy" },
    orderBy: { ordinal: "asc" },
    select: { report: true },
  });
  return rows.map((row) => documents.rangeReport(row.report));
}

/**
 * How often a backup starts over because stored objects have disappeared. Without a limit, a store that loses them every time would keep it
 * going forever.
 */
const roundsMax = 3;

/**
 * The seal task found ranges with missing objects: they are reopened, and the seal waits for them.
 *
 * @throws InvalidError when that has happened too often
 */
export async function reopenRanges(
  database: Database,
  operationId: string,
  held: { taskId: string; claim: number },
  ordinals: readonly number[],
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockOperation(tx, operationId);
    if (!(await holdSeal(tx, held))) return;
    const { rounds } = await tx.operation.update({
      where: { id: operationId },
      data: { remaining: ordinals.length, rounds: { increment: 1 } },
    });
    if (rounds > roundsMax) {
      const which = `${ordinals.length === 1 ? "range" : "ranges"} ${ordinals.slice(0, 10).join(", ")}`;
      throw new InvalidError("backup", `Objects that were stored were gone again after ${roundsMax} rounds: ${which}.`);
    }
    await reopenCopies(tx, operationId, ordinals);
  });
}

/** The storage has been found to report not all changes of the volume: no backup believes it about that volume again. */
export async function distrustChanges(database: Database, volumeId: string): Promise<void> {
  const own = await database.volume.updateMany({
    where: { id: volumeId, distrustedAt: null },
    data: { distrustedAt: new Date() },
  });
  if (own.count > 0 || (await database.volume.findUnique({ where: { id: volumeId } })) !== null) return;
  await database.distrustedVolume.createMany({ data: [{ volumeId }], skipDuplicates: true });
}

export interface SealedBackup {
  objects: number;
  bytesStored: number;
}

/** `_metadata` is durable: the backup becomes `available`, and the volume or snapshot gets its previous status back, once. */
export async function finishBackup(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  done: { plan: BackupPlan; sealed: SealedBackup },
): Promise<void> {
  const { plan, sealed } = done;
  const tidy = plan.fingerprint !== null || (plan.source.kind === "snapshot" && plan.source.temporary);
  await inTransaction(database, async (tx) => {
    await releaseSource(tx, operation, "backing-up");
    const { source } = plan;
    const columns = {
      objectCount: sealed.objects,
      storedBytes: BigInt(sealed.bytesStored),
      baseSnapshotId: source.kind === "snapshot" && !source.temporary ? source.id : null,
      believedInRow: plan.changes?.inRow ?? 0,
    };
    const live = { id: plan.backupId, deletedAt: null };
    const available = await move(tx, "backup", live, { from: "creating", to: "available" }, columns);
    if (available !== 1) throw new OperationEndedError(operation.id);
    await notifyBackupInOrder(tx, plan.backupId, [
      { event: "backup.createprogress", more: progressOf(plan, 100) },
      { event: "backup.create.end" },
    ]);
    await completeOperation(tx, operation, result, {
      bytesStored: sealed.bytesStored,
      tidy: tidy ? backupTidyNeeds(plan) : null,
    });
  });
}
