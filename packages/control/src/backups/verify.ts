import { type Config, defaultVolumeBackend } from "../config.ts";
import type { Prisma } from "../db/database.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { addMessage } from "../events/messages.ts";
import { notifyBackup } from "../events/notifications.ts";
import type { Principal } from "../principal.ts";
import { documentVersion, isNewer } from "../queue/document-version.ts";
import { documents, type VerifyMode, type VerifyPlan } from "../queue/documents.ts";
import {
  completeOperation,
  countDown,
  fixPlan,
  isLive,
  lockLiveOperation,
  lockOperation,
  planInForce,
  startOperation,
  startPhase,
} from "../queue/operations.ts";
import { verifyNeeds, verifyPlanNeeds, verifyTidyNeeds } from "../queue/plan-needs.ts";
import { finishTask, type Json, type TaskOperation, type TaskResult } from "../queue/tasks.ts";
import type { Backup } from "../rows/backups.ts";
import { getBackup, lockBackup } from "../rows/backups.ts";
import { readChain, readDamage, type StoredLink, wholeChain } from "../rows/chains.ts";
import { endWork } from "../rows/endings.ts";
import { cancelBackupTransfers } from "../rows/image-transfers.ts";
import { move } from "../rows/move.ts";

/** What was found: how much was checked, and at most a thousand damaged objects. */
export interface VerifyFindings {
  objects: number;
  blocks: number;
  damaged: { object: string; reason: string }[];
}

/** Reports of which the sums below can be made. */
const summable = '$ ? (@.objects.type() == "number" && @.blocks.type() == "number" && @.damaged.type() == "array")';

const damagedMax = 1000;
const affectedMax = 100;
const verifiable: readonly string[] = ["available", "restoring", "error_restoring"];

const verifiableOnly = `Backup status must be ${verifiable.join(", ")} to be verified`;

/** What a request to verify it would be refused with now; null: nothing. */
export const whyNotVerified = ({ status }: { status: string }): string | null =>
  verifiable.includes(status) ? null : verifiableOnly;

/**
 * Accepts a verification. The backup keeps its status, and may be restored in the meantime; its deletion ends the verification.
 *
 * @returns the operation's id
 * @throws NotFoundError; InvalidError for a backup that is not complete
 */
export async function requestVerify(
  database: Database,
  config: Config,
  principal: Principal,
  request: { backupId: string; mode: VerifyMode },
): Promise<{ id: string }> {
  const id = await inTransaction(database, (tx) => requestVerifyWithin(tx, config, principal, request));
  return { id };
}

/** @returns the operation's id @throws as requestVerify */
export async function requestVerifyWithin(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: { backupId: string; mode: VerifyMode },
): Promise<string> {
  await getBackup(tx, principal, request.backupId);
  const backup = await lockBackup(tx, request.backupId);
  if (!backup) throw new NotFoundError("Backup", request.backupId);
  const refused = whyNotVerified(backup);
  if (refused !== null) throw new InvalidError("backup", refused);
  return startVerify(tx, config, principal, { backup, mode: request.mode });
}

/** @returns the operation's id */
export async function startVerify(
  tx: Transaction,
  config: Config,
  principal: Principal,
  {
    backup,
    mode,
    policyId,
  }: { backup: Pick<Backup, "id" | "projectId" | "volumeBytes">; mode: VerifyMode; policyId?: string },
): Promise<string> {
  const backend = mode === "drill" ? defaultVolumeBackend(config).name : null;
  return startOperation(tx, principal, {
    kind: "backup-verify",
    ...(policyId !== undefined && { policyId, priority: "low" }),
    projectId: backup.projectId,
    backupId: backup.id,
    bytesTotal: mode === "quick" ? 0n : (backup.volumeBytes ?? 0n),
    input: { mode, backend },
    task: { kind: "plan-verify", needs: verifyNeeds(await readChain(tx, backup.id), backend) },
  });
}

/**
 * Fixes the plan of a verification, unless there is one already.
 *
 * @throws NotFoundError when a parent of the chain is gone; OperationEndedError
 */
export async function planVerify(database: Database, operation: TaskOperation): Promise<VerifyPlan> {
  if (operation.plan !== null) return documents.verifyPlan(operation.plan);
  const backupId = operation.backupId ?? nilUuid;
  const { mode, backend } = documents.verifyInput(operation.input);
  const drill = backend === null ? null : { backend, file: null };
  const chain = await wholeChain(database, backupId);
  const plan: VerifyPlan = { version: documentVersion, backupId, mode, chain, drill };
  return inTransaction(database, async (tx) => {
    if (!(await fixPlan(tx, operation.id, plan))) return documents.verifyPlan(await planInForce(tx, operation.id));
    await notifyBackup(tx, "backup.verify.start", backupId, { mode });
    return plan;
  });
}

/** Ends the plan task, whose report is its findings, and releases the ranges. */
export async function startVerifyRanges(
  database: Database,
  operationId: string,
  result: TaskResult,
  verify: { plan: VerifyPlan; ranges: readonly { offset: number; length: number; input: object }[] },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    const plan = verify.plan as unknown as Prisma.InputJsonValue;
    await tx.operation.update({ where: { id: operationId }, data: { plan } });
    const needs = verifyPlanNeeds(verify.plan);
    const tasks = verify.ranges.map(({ offset, length, input }, ordinal) => {
      return { kind: "verify" as const, ordinal, needs, range: { offset, length }, input };
    });
    await startPhase(tx, operation, tasks);
  });
}

/** Finishes a range; finishing the last one adds the concluding task. */
export async function finishVerifyRange(database: Database, operationId: string, result: TaskResult): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    if ((await countDown(tx, operationId)) > 0) return;
    const needs = verifyPlanNeeds(documents.verifyPlan(operation.plan));
    await startPhase(tx, operation, [{ kind: "conclude-verify", ordinal: 0, needs }]);
  });
}

/** The combined findings of the plan task and the ranges. @throws MalformedDocumentError, NewerDocumentError */
export async function readVerifyReports(database: Database, operationId: string): Promise<VerifyFindings> {
  const odd = await database.$queryRaw<{ report: Json }[]>`
    SELECT t.report FROM tasks t WHERE t.operation_id = ${operationId}::uuid AND t.kind IN ('plan-verify', 'verify')
      AND (${isNewer("t.report")} OR NOT coalesce(jsonb_path_exists(t.report, ${summable}::jsonpath), false)) LIMIT 1`;
  for (const { report } of odd) documents.verifyReport(report);
  const [sums] = await database.$queryRaw<{ objects: bigint; blocks: bigint }[]>`
    SELECT coalesce(sum((report->>'objects')::bigint), 0)::bigint AS objects,
      coalesce(sum((report->>'blocks')::bigint), 0)::bigint AS blocks
    FROM tasks WHERE operation_id = ${operationId}::uuid AND kind IN ('plan-verify', 'verify')`;
  const damaged = await database.$queryRaw<VerifyFindings["damaged"]>`
    SELECT d->>'object' AS object, min(d->>'reason') AS reason
    FROM tasks t CROSS JOIN LATERAL jsonb_array_elements(t.report->'damaged') AS d
    WHERE t.operation_id = ${operationId}::uuid AND t.kind IN ('plan-verify', 'verify')
    GROUP BY 1 ORDER BY 1 LIMIT ${damagedMax}`;
  return { objects: Number(sums?.objects ?? 0n), blocks: Number(sums?.blocks ?? 0n), damaged };
}

/**
 * Ends a verification. Each member of the chain with damaged objects is marked. A thorough one that found nothing clears the mark of the
 * backup, which becomes `available` again if a restore had found it damaged. Its parents keep theirs, since not all of their objects were
 * read.
 *
 * @throws OperationEndedError when the backup is being deleted; ClaimLostError
 */
export async function finishVerify(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  { plan, findings }: { plan: VerifyPlan; findings: VerifyFindings },
): Promise<void> {
  const { backupId: id, mode, chain } = plan;
  const { objects, blocks, damaged } = findings;
  await inTransaction(database, async (tx) => {
    for (const link of chain.toReversed()) await lockBackup(tx, link.backupId);
    const marked = await markDamaged(tx, chain, damaged);
    if (mode !== "quick" && damaged.length === 0) await clearMark(tx, id);
    await tx.backup.updateMany({ where: { id }, data: { verifiedAt: new Date(), verifiedMode: mode } });
    if (damaged.length > 0) {
      const { projectId, requestId } = await lockLiveOperation(tx, operation.id);
      await addMessage(tx, { projectId, requestId, backupId: id, action: "backup-verify", detail: "damaged" });
    }
    await notifyBackup(tx, "backup.verify.end", id, { mode, damaged: damaged.length });
    const affected = await readDescendants(tx, marked);
    await completeOperation(tx, operation, result, {
      tidy: verifyTidyNeeds(plan),
      result: { verify: { id, mode, objects, blocks, damaged, affected } },
    });
  });
}

/** Marks the members of the chain whose objects are damaged, and every other row of the same objects. Returns the members' ids. */
async function markDamaged(
  tx: Transaction,
  chain: readonly StoredLink[],
  damaged: VerifyFindings["damaged"],
): Promise<string[]> {
  const marks = new Map<StoredLink, string[]>();
  for (const { object, reason } of damaged) {
    const link = ownerOf(chain, object);
    marks.set(link, [...(marks.get(link) ?? []), `${object}: ${reason}`]);
  }
  for (const [{ repository, container, prefix }, reasons] of marks) {
    const more = reasons.length > 1 ? ` (and ${reasons.length - 1} more)` : "";
    await tx.backup.updateMany({
      where: { repository, container, serviceMetadata: prefix, deletedAt: null },
      data: { damage: `${reasons[0]}${more}` },
    });
  }
  return Array.from(marks.keys(), (link) => link.backupId);
}

/** The member of the chain that an object belongs to, by its name; one that matches no member counts as the newest's. */
function ownerOf(chain: readonly StoredLink[], object: string): StoredLink {
  const fitting = chain.filter((link) => object.startsWith(link.prefix));
  return fitting.sort((one, other) => other.prefix.length - one.prefix.length)[0] ?? (chain[0] as StoredLink);
}

async function clearMark(tx: Transaction, id: string): Promise<void> {
  await tx.backup.updateMany({ where: { id, deletedAt: null }, data: { damage: null } });
  const step = { from: "error_restoring", to: "available" } as const;
  await move(tx, "backup", { id, deletedAt: null }, step, { failReason: null });
}

/** Live backups that build on any of these, directly or indirectly; at most a hundred. */
async function readDescendants(tx: Transaction, ids: readonly string[]): Promise<string[]> {
  if (ids.length === 0) return [];
  const rows = await tx.$queryRaw<{ id: string }[]>`
    WITH RECURSIVE below AS (
      SELECT id FROM backups WHERE parent_id = ANY(${[...ids]}::uuid[]) AND deleted_at IS NULL
      UNION
      SELECT b.id FROM backups b JOIN below ON b.parent_id = below.id WHERE b.deleted_at IS NULL
    ) SELECT id FROM below WHERE id <> ALL(${[...ids]}::uuid[]) ORDER BY id LIMIT ${affectedMax}`;
  return rows.map((row) => row.id);
}

/** A backup that is being deleted has nothing left to verify, or to squash. The backup is locked by the caller. */
export async function cancelReaders(tx: Transaction, backupId: string): Promise<void> {
  for (const id of await cancelBackupTransfers(tx, backupId)) {
    const operation = await lockOperation(tx, id);
    if (isLive(operation)) await endWork(tx, operation, { state: "cancelled", reason: "The backup was deleted." });
  }
}

/** What is known about a backup's health: its own mark, and those of the backups that it builds on. */
export interface BackupHealth {
  backup: Backup;
  damagedParents: DamagedParent[];
}

export interface DamagedParent {
  id: string;
  damage: string;
}

/** @throws NotFoundError for an unknown id or another project's */
export async function getBackupHealth(database: Database, principal: Principal, id: string): Promise<BackupHealth> {
  const backup = await getBackup(database, principal, id);
  return { backup, damagedParents: await readDamagedParents(database, { id, sound: false }) };
}

/** Those that a backup builds on and that are damaged; none of one that is known to be sound. */
export async function readDamagedParents(
  database: Database,
  { id, sound }: { id: string; sound: boolean },
): Promise<DamagedParent[]> {
  return sound ? [] : (await readDamage(database, id)).filter((link) => link.id !== id);
}
