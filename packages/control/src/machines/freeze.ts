import { type Database, inTransaction } from "../db/database.ts";
import { RefusedError } from "../errors.ts";
import { needsSocket } from "../groups/instances.ts";
import type { Principal } from "../principal.ts";
import { documentVersion } from "../queue/document-version.ts";
import { documents } from "../queue/documents.ts";
import {
  completeOperation,
  fixPlan,
  isLive,
  lockLiveOperation,
  type OperationState,
  startOperation,
} from "../queue/operations.ts";
import type { Json, TaskOperation, TaskResult } from "../queue/tasks.ts";
import { holdGroup, lockGroup, releaseGroup } from "../rows/groups.ts";
import { lockMachine, refuseHeld } from "./machines.ts";

/*
 * File systems that a client freezes and thaws. The operation lasts as long as they are frozen, and has the machine to itself; its worker
 * thaws them when it is told to, at the limit, and when it is stopped. One that is killed is followed by another, which thaws them.
 */

/**
 * Accepts that the file systems of a machine that runs are frozen, or thawed. What has frozen them is told to thaw.
 *
 * @returns the operation to wait for
 * @throws NotFoundError; RefusedError for a machine that does not run, or whose hypervisor is not known, and while another operation has it
 */
export function setFrozen(
  database: Database,
  principal: Principal,
  machineId: string,
  freeze: boolean,
): Promise<string> {
  return inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    const { instance, heldBy } = machine;
    if (instance.powerState === "SHUTOFF") {
      throw new RefusedError("machine-not-running", `Machine ${instance.id} is not running.`);
    }
    const { group } = instance;
    if (!needsSocket(instance.driver) || !group) {
      throw new RefusedError("machine-unreachable", `Machine ${instance.id} runs, and cannot be reached.`);
    }
    if (!freeze && heldBy === "group-freeze" && group.operationId !== null) {
      await tx.$executeRaw`
        UPDATE operations SET plan = coalesce(plan, '{}'::jsonb) || '{"version": 1, "thaw": true}'::jsonb, updated_at = now()
        WHERE id = ${group.operationId}::uuid`;
      return group.operationId;
    }
    refuseHeld(machine);
    const operationId = await startOperation(tx, principal, {
      kind: "group-freeze",
      projectId: instance.projectId,
      groupId: group.id,
      input: { instanceId: instance.id, freeze },
      task: { kind: "conclude-group", needs: [] },
    });
    await holdGroup(tx, group.id, operationId);
    return operationId;
  });
}

/** The guest is frozen now: whoever has asked for it is told. */
export const noteFrozen = (database: Database, operationId: string): Promise<boolean> =>
  fixPlan(database, operationId, { version: documentVersion, frozenAt: new Date().toISOString() });

/** How far a freeze is: not yet, `frozen`, or `over`, since somebody wants it thawed or it has ended otherwise. */
export async function readFreeze(database: Database, operationId: string): Promise<"pending" | "frozen" | "over"> {
  const row = await database.operation.findUnique({ where: { id: operationId }, select: { plan: true, state: true } });
  if (row === null || !isLive({ state: row.state as OperationState })) return "over";
  if (row.plan === null) return "pending";
  return documents.frozen(row.plan as Json).thaw === true ? "over" : "frozen";
}

/** The guest is thawed. @throws ClaimLostError, OperationEndedError */
export async function finishFreeze(database: Database, operation: TaskOperation, result: TaskResult): Promise<void> {
  await inTransaction(database, async (tx) => {
    if (operation.groupId) await lockGroup(tx, operation.groupId);
    await lockLiveOperation(tx, operation.id);
    await releaseGroup(tx, operation.id);
    await completeOperation(tx, operation, result);
  });
}
