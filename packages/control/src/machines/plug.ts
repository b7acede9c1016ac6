import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { RefusedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { documents } from "../queue/documents.ts";
import { completeOperation, lockLiveOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { holdGroup, lockGroup, releaseGroup } from "../rows/groups.ts";
import type { MachineRow } from "./machines.ts";

/*
 * A disk is plugged into a machine that a hypervisor speaks for by a worker that reaches its monitor. Until that has ended the operation has
 * the machine to itself. What the machine has is said when the hypervisor has it.
 */

/** A disk of a machine that is to be plugged in or unplugged: its own, or with `snapshotId` that of a snapshot. */
export interface DiskToPlug {
  attachmentId: string;
  volumeId: string;
  snapshotId: string | null;
  backend: string;
}

/**
 * Accepts that a disk is plugged in, or unplugged. The machine is locked, and nothing has it.
 *
 * @returns the operation
 * @throws RefusedError for a machine without a group, which has no disks either
 */
export async function startPlug(
  tx: Transaction,
  principal: Principal,
  { instance }: MachineRow,
  disk: DiskToPlug,
  active: boolean,
): Promise<string> {
  const { group, projectId, id: instanceId } = instance;
  if (!group) throw new RefusedError("machine-unreachable", `Machine ${instanceId} has no group.`);
  const { backend, ...which } = disk;
  const concludeNeeds = [`backend:${backend}`];
  const operationId = await startOperation(tx, principal, {
    kind: "group-plug",
    projectId,
    groupId: group.id,
    input: { instanceId, ...which, active, concludeNeeds },
    task: { kind: "conclude-group", needs: concludeNeeds },
  });
  await holdGroup(tx, group.id, operationId);
  return operationId;
}

/** The hypervisor has done it. @throws ClaimLostError, OperationEndedError */
export async function finishPlug(database: Database, operation: TaskOperation, result: TaskResult): Promise<void> {
  const { attachmentId, snapshotId, active } = documents.plugging(operation.input);
  await inTransaction(database, async (tx) => {
    if (operation.groupId) await lockGroup(tx, operation.groupId);
    const change = { where: { id: attachmentId }, data: { plugged: active } };
    if (snapshotId === null) await tx.attachment.updateMany(change);
    else await tx.snapshotAttachment.updateMany(change);
    await lockLiveOperation(tx, operation.id);
    await releaseGroup(tx, operation.id);
    await completeOperation(tx, operation, result);
  });
}
