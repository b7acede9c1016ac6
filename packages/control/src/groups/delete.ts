import { hideBackup, startBackupDelete } from "../backups/delete.ts";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { completeOperation, concludeTask, lockLiveOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { type Backup, lockBackup } from "../rows/backups.ts";
import {
  type GroupRow,
  holdGroup,
  lockInstanceGroup,
  lockVisibleGroup,
  refuseBusy,
  releaseGroup,
} from "../rows/groups.ts";
import { refuseTransferredSnapshot } from "../rows/image-transfers.ts";
import { refuseAttachedSnapshot } from "../rows/machines.ts";
import { override } from "../rows/move.ts";
import { lockQuotas, releaseQuota } from "../rows/quotas.ts";
import { markSnapshotRemoval } from "../rows/snapshots.ts";
import { type AcceptedGroupOperation, memberInstance } from "./backup.ts";
import { checkBackupName, type GroupBackupName } from "./restore.ts";
import { type GroupBackupRow, getGroupSnapshot, groupBackupStatus, lockGroupBackup } from "./snapshots.ts";

/** @throws InvalidError unless everything that it consists of can be deleted */
function checkDeletable(backup: GroupBackupRow): void {
  const status = groupBackupStatus(backup);
  if (!["available", "error"].includes(status)) {
    const text = `Group snapshot status must be available or error, but current status is: ${status}`;
    throw new InvalidError("request", text);
  }
  for (const { backup: part } of backup.members) {
    if (part && part.dependents > 0) {
      const text = `Backup ${part.id} cannot be deleted because ${part.dependents} incremental backup(s) depend on it.`;
      throw new InvalidError("request", text);
    }
    if (part && ["restoring", "creating", "deleting"].includes(part.status)) {
      const text = `Backup ${part.id} status must be available or error, but current status is: ${part.status}`;
      throw new InvalidError("request", text);
    }
  }
}

/**
 * Accepts the deletion of an instance's backup: first its backups, then its snapshots and the group snapshot itself. After a failed attempt
 * it can be requested again.
 *
 * @throws NotFoundError, InvalidError; nothing is left behind
 */
export async function requestGroupBackupDelete(
  database: Database,
  config: Config,
  principal: Principal,
  request: GroupBackupName,
): Promise<AcceptedGroupOperation> {
  return inTransaction(database, async (tx) => {
    const group = await lockInstanceGroup(tx, principal, request.groupId);
    const instance = await memberInstance(tx, principal, group, request.instanceId);
    const backup = await lockGroupBackup(tx, principal, group.id, request.groupSnapshotId);
    checkBackupName(backup, request.name);
    checkDeletable(backup);
    refuseBusy(group);
    const operationId = await startGroupSnapshotDelete(tx, config, principal, { group, snapshot: backup });
    return {
      operationId,
      groupId: group.id,
      instanceId: instance.id,
      groupSnapshotId: backup.id,
      volumeIds: backup.members.map((member) => member.volumeId),
      snapshotIds: backup.members.flatMap((member) => member.snapshot?.id ?? []),
      backupIds: backup.members.flatMap((member) => member.backup?.id ?? []),
    };
  });
}

/**
 * Deletes an instance's backup as a request does, if all of its backups may go once they are locked.
 *
 * @param mayGo is told the ids of its backups
 * @returns whether it does
 * @throws NotFoundError, InvalidError
 */
export async function deleteGroupBackupIf(
  tx: Transaction,
  config: Config,
  principal: Principal,
  { id, mayGo }: { id: string; mayGo: (backupIds: readonly string[]) => Promise<boolean> },
): Promise<boolean> {
  const { groupId } = await getGroupSnapshot(tx, principal, id);
  const group = await lockVisibleGroup(tx, principal, groupId);
  const snapshot = await lockGroupBackup(tx, principal, group.id, id);
  checkDeletable(snapshot);
  refuseBusy(group);
  const ids = snapshot.members.flatMap((member) => member.backup?.id ?? []).sort();
  for (const backupId of ids) await lockBackup(tx, backupId);
  if (!(await mayGo(ids))) return false;
  await startGroupSnapshotDelete(tx, config, principal, { group, snapshot });
  return true;
}

/**
 * Deletes what a failed deletion of a group snapshot has left.
 *
 * @returns the operation's id
 * @throws NotFoundError, InvalidError
 */
export async function deleteGroupSnapshotAgain(
  tx: Transaction,
  config: Config,
  principal: Principal,
  id: string,
): Promise<string> {
  const { groupId } = await getGroupSnapshot(tx, principal, id);
  const group = await lockVisibleGroup(tx, principal, groupId);
  const snapshot = await lockGroupBackup(tx, principal, group.id, id);
  checkDeletable(snapshot);
  refuseBusy(group);
  return startGroupSnapshotDelete(tx, config, principal, { group, snapshot });
}

/**
 * Accepts the deletion of a group snapshot that has no backups: Cinder's own.
 *
 * @throws InvalidError with backups, in another status, or while an operation on the group is live; NotFoundError
 */
export async function requestGroupSnapshotDelete(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { groupId } = await getGroupSnapshot(tx, principal, id);
    const group = await lockVisibleGroup(tx, principal, groupId);
    const snapshot = await lockGroupBackup(tx, principal, group.id, id);
    if (!["available", "error"].includes(snapshot.status)) {
      const text =
        "GroupSnapshot status must be available or error, and no Group can be currently using it as source for its creation.";
      throw new InvalidError("group-snapshot", text);
    }
    if (snapshot.members.some((member) => member.backup !== null)) {
      const text = `Group snapshot ${id} has backups: they must be deleted first.`;
      throw new InvalidError("group-snapshot", text);
    }
    refuseBusy(group);
    await startGroupSnapshotDelete(tx, config, principal, { group, snapshot });
  });
}

/**
 * Backups to which a deletion delay applies are hidden. Where no other is left there is nothing to wait for: the snapshots are removed at once. The group snapshot is locked.
 *
 * @throws RefusedError while one of its disks is attached to a machine
 */
export async function startGroupSnapshotDelete(
  tx: Transaction,
  config: Config,
  principal: Principal,
  { group, snapshot }: { group: GroupRow; snapshot: GroupBackupRow },
): Promise<string> {
  await refuseAttachedSnapshot(tx, snapshot);
  await refuseTransferredSnapshot(tx, snapshot);
  const backups: Backup[] = [];
  for (const id of snapshot.members.flatMap((member) => member.backup?.id ?? []).sort()) {
    const backup = await lockBackup(tx, id);
    if (backup && !(await hideBackup(tx, config, backup))) backups.push(backup);
  }
  const snapshots = await tx.snapshot.findMany({ where: { groupSnapshotId: snapshot.id }, include: { volume: true } });
  const input = { concludeNeeds: [...new Set(snapshots.map(({ volume }) => `backend:${volume.backend}`))] };
  // The row is locked. Its own status is one of several that were considered, and an admin may have set any.
  await override(tx, "groupSnapshot", { id: snapshot.id }, "deleting");
  const operationId = await startOperation(tx, principal, {
    kind: "group-delete",
    projectId: snapshot.projectId,
    groupId: group.id,
    groupSnapshotId: snapshot.id,
    input,
    task: backups.length === 0 ? { kind: "conclude-group", needs: concludeTask({ input }).needs } : null,
    parts: backups.length,
  });
  await holdGroup(tx, group.id, operationId);
  for (const backup of backups) await startBackupDelete(tx, principal, backup, { parentId: operationId });
  return operationId;
}

/** Called before the first snapshot is removed: from now on nobody can use them. @throws OperationEndedError */
export async function beginGroupDelete(database: Database, operation: TaskOperation): Promise<void> {
  const groupSnapshotId = operation.groupSnapshotId ?? nilUuid;
  await inTransaction(database, async (tx) => {
    await lockLiveOperation(tx, operation.id);
    // Its backups are gone, and it is `deleting` itself, so that nothing more is made of them.
    await override(tx, "snapshot", { groupSnapshotId }, "deleting");
    await markSnapshotRemoval(tx, { groupSnapshotId });
  });
}

/**
 * The snapshots' bytes are gone: removes their rows and the group snapshot, and releases their quota. @throws ClaimLostError,
 * OperationEndedError
 */
export async function finishGroupDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  const groupSnapshotId = operation.groupSnapshotId ?? nilUuid;
  await inTransaction(database, async (tx) => {
    const seen = await tx.snapshot.findMany({ where: { groupSnapshotId }, select: { projectId: true } });
    await lockQuotas(
      tx,
      seen.map((snapshot) => snapshot.projectId),
    );
    const rows = await tx.snapshot.findMany({ where: { groupSnapshotId } });
    for (const row of rows) await releaseQuota(tx, row.projectId, { snapshots: 1, gigabytes: row.sizeGib });
    await releaseGroup(tx, operation.id);
    await tx.snapshot.deleteMany({ where: { groupSnapshotId } });
    await tx.groupSnapshot.deleteMany({ where: { id: groupSnapshotId } });
    await completeOperation(tx, operation, result);
  });
}
