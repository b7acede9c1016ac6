import { type Config, levelOf, repositoryNamed } from "../config.ts";
import { type Database, inTransaction, lockRepository, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { storedBackups } from "../db/live.ts";
import { InvalidError, OperationEndedError } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import { holdReplaced } from "../queue/blocked.ts";
import { documentVersion } from "../queue/document-version.ts";
import { documents, type SquashPlan } from "../queue/documents.ts";
import {
  completeOperation,
  countDown,
  fixPlan,
  isLive,
  lockLiveOperation,
  lockOperation,
  type OperationRow,
  planInForce,
  startPhase,
} from "../queue/operations.ts";
import { squashPlanNeeds, squashTidyNeeds } from "../queue/plan-needs.ts";
import { addTasks, finishTask, type NewTask, type TaskOperation, type TaskResult } from "../queue/tasks.ts";
import { lockBackup } from "../rows/backups.ts";
import { readFamily, type StoredLink, wholeChain } from "../rows/chains.ts";
import type { SealedBackup } from "./create-work.ts";
import { letGo, type Removal } from "./delete.ts";

/** What only a worker knows of the new full backup: its chain, as stored, and the repository's names. */
export interface SquashSite {
  header: {
    backupId: string | null;
    volumeId: string | null;
    createdAt: string | null;
    name: string | null;
    description: string | null;
    volumeMeta: string | null;
  };
  objectBytes: number;
  blockBytes: number;
  volumeBytes: number;
  /** The prefix of a backup that was begun at this time, with the id in the names of the backup's objects. */
  prefixAt: (at: Date) => string;
}

/**
 * Fixes the plan of a squash, unless there is one already. The new objects are in the container of the old ones, under another prefix.
 *
 * @throws NotFoundError when a parent of the chain is gone; InvalidError for a full backup; OperationEndedError
 */
export async function planSquash(
  database: Database,
  config: Config,
  operation: TaskOperation,
  openSite: (chain: readonly StoredLink[], options: { objectBytes: number }) => Promise<SquashSite>,
): Promise<SquashPlan> {
  if (operation.plan !== null) return documents.squashPlan(operation.plan);
  const backupId = operation.backupId ?? nilUuid;
  const chain = await wholeChain(database, backupId);
  const [former] = chain as [StoredLink];
  if (chain.length < 2)
    throw new InvalidError("backup", `Backup ${backupId} is a full backup: there is nothing to squash.`);
  const backup = await database.backup.findUniqueOrThrow({ where: { id: backupId } });
  const repository = repositoryNamed(config, former.repository);
  const site = await openSite(chain, { objectBytes: repository.object_bytes });
  const { header, objectBytes, blockBytes, volumeBytes } = site;
  const plan: SquashPlan = {
    version: documentVersion,
    backupId,
    chain,
    repository: former.repository,
    layout: {
      backupId: header.backupId ?? backupId,
      volumeId: header.volumeId ?? backup.volumeId,
      container: former.container,
      prefix: otherPrefix(site, former.prefix),
      compression: repository.compression,
      level: levelOf(repository),
      zlibEncoder: repository.zlib_encoder,
      objectBytes,
      blockBytes,
      volumeBytes,
      createdAt: header.createdAt ?? "",
      name: header.name,
      description: header.description,
      volumeMeta: header.volumeMeta,
      parentId: null,
      encrypted: repository.encryption !== undefined,
    },
  };
  return inTransaction(database, async (tx) => {
    if (!(await fixPlan(tx, operation.id, plan))) return documents.squashPlan(await planInForce(tx, operation.id));
    await notifyBackup(tx, "backup.squash.start", backupId);
    return plan;
  });
}

/** Prefixes tell seconds. */
function otherPrefix({ prefixAt }: SquashSite, former: string): string {
  const now = new Date();
  const prefix = prefixAt(now);
  return prefix === former ? prefixAt(new Date(now.getTime() + 1000)) : prefix;
}

const sealTask = (plan: SquashPlan): NewTask => ({
  kind: "seal-squash",
  ordinal: 0,
  needs: squashTidyNeeds(plan),
});

/** Ends the plan task and releases the ranges; an empty volume has none. */
export async function startSquashRanges(
  database: Database,
  operationId: string,
  result: TaskResult,
  { plan, ranges }: { plan: SquashPlan; ranges: readonly { offset: number; length: number }[] },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    const needs = squashPlanNeeds(plan);
    const tasks = ranges.map((range, ordinal): NewTask => ({ kind: "squash", ordinal, needs, range }));
    await startPhase(tx, operation, tasks.length === 0 ? [sealTask(plan)] : tasks);
  });
}

/** Finishes a range; finishing the last one adds the task that finalizes the new backup. */
export async function finishSquashRange(database: Database, operationId: string, result: TaskResult): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    if ((await countDown(tx, operationId)) > 0) return;
    await startPhase(tx, operation, [sealTask(documents.squashPlan(operation.plan))]);
  });
}

/** The ranges' reports, in range order. @throws MalformedDocumentError, NewerDocumentError */
export async function readSquashReports(database: Database, operationId: string) {
  const rows = await database.task.findMany({
    where: { operationId, kind: "squash" },
    orderBy: { ordinal: "asc" },
    select: { report: true },
  });
  return rows.map((row) => documents.squashReport(row.report));
}

/** Statuses in which a backup has all of its objects. */
const complete: readonly string[] = ["available", "restoring", "error_restoring", "error"];

/**
 * The `_metadata` of the new full backup is durable: from this commit on the row names its objects, and whoever plans anything of the backup,
 * or of what builds on it, sees the new chain. What it replaced is cleaned up when nobody can read it any more.
 *
 * @throws OperationEndedError when the backup is being deleted, or is not what was squashed; ClaimLostError
 */
export async function finishSquash(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  done: { plan: SquashPlan; sealed: SealedBackup; takenBytes: number; mergedBytes: number },
): Promise<void> {
  const { plan, sealed, takenBytes, mergedBytes } = done;
  const { backupId: id, chain, layout } = plan;
  const [former, ...merged] = chain as [StoredLink, ...StoredLink[]];
  await inTransaction(database, async (tx) => {
    const backup = await lockBackup(tx, id);
    if (backup?.serviceMetadata !== former.prefix || !complete.includes(backup.status)) {
      throw new OperationEndedError(operation.id);
    }
    const family = await readFamily(
      tx,
      chain.map(({ backupId }) => backupId),
    );
    const now = new Date();
    await tx.backup.update({
      where: { id },
      data: {
        parentId: null,
        container: layout.container,
        serviceMetadata: layout.prefix,
        objectCount: sealed.objects,
        storedBytes: BigInt(sealed.bytesStored),
        blockBytes: layout.blockBytes,
        volumeBytes: BigInt(layout.volumeBytes),
        formerMetadata: former.prefix,
        squashedAt: now,
        // What was verified were other objects.
        verifiedAt: null,
        verifiedMode: null,
        updatedAt: now,
      },
    });
    await notifyBackup(tx, "backup.squash.end", id, { merged: merged.map(({ backupId }) => backupId) });
    const { objects, bytesStored } = sealed;
    const squash = { id, objects, taken_bytes: takenBytes, merged_bytes: mergedBytes };
    await completeOperation(tx, operation, result, {
      bytesStored,
      result: { squash: { ...squash, merged: merged.map(({ backupId }) => backupId) } },
    });
    const input = { version: documentVersion, family };
    await addTasks(tx, operation, [{ kind: "tidy", ordinal: 0, needs: squashTidyNeeds(plan), input }]);
    await holdReplaced(tx, operation.id);
  });
}

/**
 * What the clean-up of a squash is to remove: what the row named before where it succeeded, and what it had made where it did not. Until the
 * clean-up has ended, no import takes it over. Null where another row names it.
 */
export async function leftBySquash(database: Database, operationId: string, plan: SquashPlan): Promise<Removal | null> {
  return inTransaction(database, async (tx) => {
    await lockRepository(tx, plan.repository);
    const operation = await lockOperation(tx, operationId);
    const { container, prefix } = operation.state === "succeeded" ? (plan.chain[0] as StoredLink) : plan.layout;
    const named = await tx.backup.count({ where: { ...storedBackups, serviceMetadata: prefix } });
    if (named > 0 || isLive(operation)) return null;
    await tx.condemnedPlace.createMany({ data: [{ container, prefix, operationId }], skipDuplicates: true });
    return { repository: plan.repository, container, prefix };
  });
}

/** Ends the clean-up. Where the squash succeeded, what it was merged of is let go of, as far as nothing else needs it. */
export async function finishSquashTidy(
  database: Database,
  config: Config,
  operationId: string,
  result: TaskResult,
  plan: SquashPlan,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const members = plan.chain.slice(1).map(({ backupId }) => backupId);
    for (const id of members.toReversed()) await lockBackup(tx, id);
    const operation = await lockOperation(tx, operationId);
    await finishTask(tx, result);
    await tx.condemnedPlace.deleteMany({ where: { operationId } });
    if (operation.state !== "succeeded") return;
    const [newest] = await markMerged(tx, operation, members);
    if (newest !== undefined) await letGo(tx, config, newest);
  });
}

/**
 * Marks the backups that are to be deleted, newest first: those of the same project that are nobody's part, up to the first one that others
 * build on. That one stays, with all that it builds on.
 */
async function markMerged(tx: Transaction, operation: OperationRow, members: readonly string[]): Promise<string[]> {
  const marked: string[] = [];
  for (const id of members) {
    const others = await tx.backup.count({ where: { ...storedBackups, parentId: id, id: { notIn: marked } } });
    if (others > 0) break;
    const { count } = await tx.backup.updateMany({
      where: { id, deletedAt: null, projectId: operation.projectId, groupSnapshotId: null },
      data: { squashedInto: operation.backupId },
    });
    if (count === 0) break;
    marked.push(id);
  }
  return marked;
}
