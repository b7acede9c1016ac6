import { requestBackupWithin } from "../backups/create.ts";
import { startBackupDelete } from "../backups/delete.ts";
import { startRestore } from "../backups/restore.ts";
import { requestSquashWithin } from "../backups/squash.ts";
import { requestVerifyWithin } from "../backups/verify.ts";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, nilUuid } from "../db/listing.ts";
import { InvalidError, MalformedDocumentError, NewerDocumentError, NotFoundError, RefusedError } from "../errors.ts";
import { deleteGroupSnapshotAgain } from "../groups/delete.ts";
import { requestGroupRestoreWithin } from "../groups/restore.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { documents } from "../queue/documents.ts";
import { markRetried, type OperationKind, type OperationRow, startOperation } from "../queue/operations.ts";
import type { TaskKind } from "../queue/tasks.ts";
import { startReap } from "../repositories/reap.ts";
import { requestRescanWithin } from "../repositories/rescan.ts";
import { lockBackup } from "../rows/backups.ts";
import { move } from "../rows/move.ts";
import { lockQuota } from "../rows/quotas.ts";
import { getSnapshot } from "../rows/snapshots.ts";
import { getVolume, gibOf, moveVolume } from "../rows/volumes.ts";
import { requestVolumeAdoptionWithin } from "../volumes/adopt.ts";
import { readSource } from "../volumes/create.ts";
import { startVolumeDelete } from "../volumes/delete.ts";
import { requestVolumeExportWithin } from "../volumes/export.ts";
import { requestVolumeExtendWithin } from "../volumes/extend.ts";
import { startSnapshotDelete } from "../volumes/snapshot-delete.ts";

/** A failed operation that is to be done again. `principal`: the caller, in the operation's project. */
interface Failed {
  tx: Transaction;
  config: Config;
  principal: Principal;
  operation: OperationRow;
}

/** Makes the request again by the checks of a new one. @returns the new operation's id */
type Again = (failed: Failed) => Promise<string>;

const machineText = "The machine may have changed meanwhile: ask for it again.";
const leftovers = "A part of it may be there: delete that, and make the request again.";
const beside = "Its volume is another service's, which has to be asked again: make the request anew.";

/** Who may retry operations of each kind, and how that is done; or the sentence that says why nobody may. */
const retriers: Readonly<Record<OperationKind, { who: "owner" | "admin"; again: Again } | { why: string }>> = {
  "backup-create": { who: "owner", again: backUp },
  "backup-restore": { who: "owner", again: restore },
  "backup-delete": { who: "owner", again: deleteBackup },
  "backup-squash": {
    who: "owner",
    again: ({ tx, config, principal, operation }) =>
      requestSquashWithin(tx, config, principal, { backupId: operation.backupId ?? nilUuid }),
  },
  "backup-verify": {
    who: "admin",
    again: ({ tx, config, principal, operation }) => {
      const { mode } = documents.verifyInput(operation.input);
      return requestVerifyWithin(tx, config, principal, { backupId: operation.backupId ?? nilUuid, mode });
    },
  },
  "backup-import": { who: "admin", again: importBackup },
  "repository-rescan": {
    who: "admin",
    again: ({ tx, config, principal, operation }) =>
      requestRescanWithin(tx, config, principal, documents.rescanInput(operation.input)),
  },
  "repository-reap": {
    who: "admin",
    again: ({ tx, config, principal, operation }) =>
      startReap(tx, config, principal, documents.reapInput(operation.input)),
  },
  "volume-create": { who: "owner", again: createVolume },
  "volume-import": {
    who: "admin",
    again: (failed) => fillVolume(failed, { kind: "import-volume", bytesTotal: 0n }),
  },
  "volume-adopt": {
    who: "admin",
    again: ({ tx, config, principal, operation }) => {
      const { volumeId, path, image = null, backend, name } = documents.adoption(operation.input);
      return requestVolumeAdoptionWithin(tx, config, principal, { volumeId, path, image, backend, name });
    },
  },
  "volume-export": {
    who: "admin",
    again: ({ tx, principal, operation }) => {
      const { path, overwrite = false } = documents.volumeExport(operation.input);
      return requestVolumeExportWithin(tx, principal, { volumeId: operation.volumeId ?? nilUuid, path, overwrite });
    },
  },
  "volume-extend": { who: "owner", again: extendVolume },
  "volume-delete": { who: "owner", again: deleteVolume },
  "snapshot-create": { who: "owner", again: takeSnapshot },
  "snapshot-delete": { who: "owner", again: deleteSnapshot },
  "group-snapshot": { why: leftovers },
  "group-backup": { why: leftovers },
  "group-restore": { who: "owner", again: restoreGroup },
  "group-revert": { why: machineText },
  "group-plug": { why: machineText },
  "group-freeze": { why: machineText },
  "group-delete": {
    who: "owner",
    again: ({ tx, config, principal, operation }) =>
      deleteGroupSnapshotAgain(tx, config, principal, operation.groupSnapshotId ?? nilUuid),
  },
};

type Retriable = Pick<OperationRow, "id" | "kind" | "state" | "parentId" | "retriedAs">;

/** Why this caller cannot retry the operation, in a sentence, as far as its own row says; null: it may be tried. */
export function whyNotRetried(principal: Principal, operation: Retriable): string | null {
  const { kind, state, parentId, retriedAs } = operation;
  if (state !== "failed") return `It has not failed: its state is ${state}.`;
  if (retriedAs !== null) return `It was retried already, as the operation ${retriedAs}.`;
  if (parentId !== null) return `It is a part of the operation ${parentId}: retry that.`;
  const retrier = retriers[kind];
  if ("why" in retrier) return retrier.why;
  return retrier.who === "admin" && !principal.isAdmin ? "Only an admin may retry it." : null;
}

/**
 * Does again what a failed operation did not, once: a new operation of the same kind and input, accepted by the checks of a new request. A
 * backup gets a new row, and its parent is chosen anew; anything else is done to the same rows.
 *
 * @returns the new operation's id
 * @throws NotFoundError for an unknown operation, or another project's; RefusedError with a sentence: not failed, retried already, not of a kind that
 *   can be, or its subject is gone or in another status; QuotaExceededError. Nothing is left behind
 */
export async function retryOperation(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
): Promise<{ id: string }> {
  const retriedAs = await inTransaction(database, async (tx) => {
    const row = await tx.operation.findFirst({ where: { id: isUuid(id) ? id : nilUuid, ...visibleTo(principal) } });
    if (row === null) throw new NotFoundError("Operation", id);
    const operation = row as OperationRow;
    const retrier = retriers[operation.kind];
    const why = whyNotRetried(principal, operation) ?? (await whyNotYet(tx, operation));
    if (why !== null || "why" in retrier) throw refusal(why ?? "");
    const owner = { ...principal, projectId: operation.projectId };
    const made = await retrier.again({ tx, config, principal: owner, operation }).catch(asRefusal);
    if (!(await markRetried(tx, operation.id, made))) throw refusal("It was retried already.");
    return made;
  });
  return { id: retriedAs };
}

const refusal = (why: string): RefusedError => new RefusedError("not-retryable", why);

/** What a new request would be told is told as a conflict: what was asked for was well once. */
function asRefusal(error: unknown): never {
  if (error instanceof NotFoundError) throw refusal(`What it was about is gone: ${error.message}`);
  const told = error instanceof InvalidError || error instanceof MalformedDocumentError;
  if (told || error instanceof NewerDocumentError) throw refusal(error.message);
  throw error;
}

/** A worker that does not know yet that the operation has ended may still write. */
async function whyNotYet(tx: Transaction, { id }: OperationRow): Promise<string | null> {
  const [row] = await tx.$queryRaw<{ running: boolean }[]>`
    SELECT EXISTS (SELECT FROM tasks t JOIN operations o ON o.id = t.operation_id
      WHERE (o.id = ${id}::uuid OR o.parent_id = ${id}::uuid) AND t.state = 'running' AND t.kind <> 'tidy') AS running`;
  return row?.running ? "A worker has not heard yet that it has ended: try again in a moment." : null;
}

/** The operation that was just started on a row. */
async function operationOf(
  tx: Transaction,
  of: { backupId: string } | { snapshotId: string },
  kind: OperationKind,
): Promise<string> {
  const row = await tx.operation.findFirst({ where: { ...of, kind }, orderBy: { createdAt: "desc" } });
  if (row === null) throw new Error(`no operation ${kind} was started`);
  return row.id;
}

/** The failed backup stays, in error, until it is deleted. */
async function backUp({ tx, config, principal, operation }: Failed): Promise<string> {
  const { volume, force = false } = documents.backupInput(operation.input);
  if (volume !== undefined) throw refusal(beside);
  const id = operation.backupId ?? nilUuid;
  const failed = await tx.backup.findFirst({ where: { id, deletedAt: null } });
  if (failed === null) throw new NotFoundError("Backup", id);
  const of = { where: { id: operation.policyId ?? nilUuid }, select: { id: true, repository: true } };
  const policy = await tx.policy.findUnique(of);
  const { volumeId, snapshotId, name, description, container, availabilityZone } = failed;
  const made = await requestBackupWithin(tx, config, principal, {
    ...{ volumeId, snapshotId, name, description, availabilityZone, force },
    // One that the repository had chosen has the backup's own id in it.
    container: container?.includes(failed.id) ? null : container,
    incremental: failed.parentId !== null,
    metadata: failed.metadata as Record<string, string>,
    ...(policy && { policy }),
  });
  return operationOf(tx, { backupId: made.id }, "backup-create");
}

/** To the same volume, whose contents are undefined since. */
async function restore({ tx, principal, operation }: Failed): Promise<string> {
  const input = documents.restoreInput(operation.input);
  if (input.beside !== undefined) throw refusal(beside);
  const target = await getVolume(tx, principal, operation.volumeId ?? nilUuid);
  await moveVolume(tx, target.id, ["error_restoring"], "restoring-backup", notAsLeft(target.id, "error_restoring"));
  const backupId = operation.backupId ?? nilUuid;
  await startRestore(tx, principal, { backupId, target, newVolume: input.newVolume });
  return operationOf(tx, { backupId }, "backup-restore");
}

async function deleteBackup({ tx, principal, operation }: Failed): Promise<string> {
  const id = operation.backupId ?? nilUuid;
  const backup = await lockBackup(tx, id);
  if (backup === null || backup.deletedAt !== null) throw new NotFoundError("Backup", id);
  return startBackupDelete(tx, principal, backup);
}

async function importBackup({ tx, principal, operation }: Failed): Promise<string> {
  const id = operation.backupId ?? nilUuid;
  const input = documents.importInput(operation.input);
  const which = { id, deletedAt: null, container: null };
  const moved = await move(tx, "backup", which, { from: "error", to: "creating" }, { failReason: null });
  if (moved !== 1) throw refusal(`Backup ${id} is not as the failed import has left it.`);
  const { projectId } = operation;
  const task = { kind: "import-backup" as const, needs: [] };
  return startOperation(tx, principal, { kind: "backup-import", projectId, backupId: id, input, task });
}

/** Of a volume that is not as the failed operation has left it. */
const notAsLeft = (id: string, wanted: string) => (status: string) =>
  refusal(`Volume ${id} must be ${wanted} for a retry, and is ${status}.`);

/** The volume in error gets its first bytes after all. Its quota has been charged. */
async function fillVolume(
  { tx, principal, operation }: Failed,
  task: { kind: TaskKind; bytesTotal: bigint },
): Promise<string> {
  const volume = await getVolume(tx, principal, operation.volumeId ?? nilUuid);
  await moveVolume(tx, volume.id, ["error"], "creating", notAsLeft(volume.id, "error"));
  return startOperation(tx, principal, {
    kind: operation.kind,
    projectId: volume.projectId,
    volumeId: volume.id,
    bytesTotal: task.bytesTotal,
    input: operation.input as object,
    task: { kind: task.kind, needs: [`backend:${volume.backend}`] },
  });
}

async function createVolume(failed: Failed): Promise<string> {
  const { tx, principal, operation } = failed;
  const input = operation.input as object;
  if (!("volumeId" in input || "snapshotId" in input)) {
    return fillVolume(failed, { kind: "provision-volume", bytesTotal: 0n });
  }
  const source = await readSource(tx, principal, documents.volumeSource(operation.input));
  return fillVolume(failed, { kind: "clone-volume", bytesTotal: source.sizeBytes });
}

/** The failed extension has given its quota back. */
async function extendVolume({ tx, config, principal, operation }: Failed): Promise<string> {
  const { sizeBytes } = documents.extension(operation.input);
  await lockQuota(tx, operation.projectId);
  const volume = await getVolume(tx, principal, operation.volumeId ?? nilUuid);
  const to = volume.attachments.length > 0 ? "in-use" : "available";
  const moved = await move(tx, "volume", { id: volume.id }, { from: "error_extending", to });
  if (moved !== 1) throw notAsLeft(volume.id, "error_extending")(volume.status);
  const request = { sizeGib: gibOf(sizeBytes), sizeBytes, inUse: true };
  return requestVolumeExtendWithin(tx, config, principal, volume.id, request);
}

/** With the snapshots that it had then. */
async function deleteVolume({ tx, principal, operation }: Failed): Promise<string> {
  const { id, status } = await getVolume(tx, principal, operation.volumeId ?? nilUuid);
  const since = await tx.snapshot.count({ where: { volumeId: id, createdAt: { gt: operation.createdAt } } });
  if (since > 0) throw refusal(`Snapshots of volume ${id} were made since: delete it anew.`);
  if (status !== "error_deleting") throw notAsLeft(id, "error_deleting")(status);
  return startVolumeDelete(tx, principal, id, { cascade: true, cancelWork: null });
}

async function takeSnapshot({ tx, principal, operation }: Failed): Promise<string> {
  const snapshot = await getSnapshot(tx, principal, operation.snapshotId ?? nilUuid);
  const volume = await getVolume(tx, principal, snapshot.volumeId);
  if (!["available", "in-use"].includes(volume.status)) throw refusal(`Volume ${volume.id} is ${volume.status}.`);
  if (volume.sizeGib !== snapshot.sizeGib) throw refusal(`Volume ${volume.id} has another size since.`);
  const moved = await move(tx, "snapshot", { id: snapshot.id }, { from: "error", to: "creating" });
  if (moved !== 1) throw refusal(`Snapshot ${snapshot.id} must be in error for a retry, and is ${snapshot.status}.`);
  return startOperation(tx, principal, {
    kind: "snapshot-create",
    projectId: snapshot.projectId,
    snapshotId: snapshot.id,
    volumeId: volume.id,
    bytesTotal: volume.sizeBytes,
    task: { kind: "take-snapshot", needs: [`backend:${volume.backend}`] },
  });
}

async function deleteSnapshot({ tx, principal, operation }: Failed): Promise<string> {
  const snapshotId = operation.snapshotId ?? nilUuid;
  await startSnapshotDelete(tx, principal, snapshotId, null);
  return operationOf(tx, { snapshotId }, "snapshot-delete");
}

async function restoreGroup({ tx, principal, operation }: Failed): Promise<string> {
  const { groupId, groupSnapshotId } = operation;
  const { instanceId } = documents.groupRestore(operation.input);
  const source = await tx.groupSnapshot.findUnique({ where: { id: groupSnapshotId ?? nilUuid } });
  if (source === null) throw new NotFoundError("GroupSnapshot", groupSnapshotId ?? nilUuid);
  const request = { groupId: groupId ?? nilUuid, instanceId, groupSnapshotId: source.id, name: source.name ?? "" };
  return (await requestGroupRestoreWithin(tx, principal, request)).operationId;
}
