import { type Database, inTransaction } from "../db/database.ts";
import { RefusedError } from "../errors.ts";
import { readParts } from "../groups/parts.ts";
import type { Principal } from "../principal.ts";
import type { Priority } from "../priorities.ts";
import { getOperation, type OperationProgress } from "../queue/list-operations.ts";
import { isLive, lockOperation, prioritize } from "../queue/operations.ts";

/**
 * Has the work of a live operation, and of its parts, go before or after that of others from now on. What a worker is at keeps its slot; at
 * a limit its bytes go by the new priority after its next heartbeat.
 *
 * @throws NotFoundError; RefusedError with a sentence: it has ended, or is a part of another
 */
export async function changePriority(
  database: Database,
  principal: Principal,
  id: string,
  priority: Priority,
): Promise<OperationProgress> {
  const seen = await getOperation(database, principal, id);
  await inTransaction(database, async (tx) => {
    for (const part of await readParts(tx, seen.id)) await lockOperation(tx, part.id);
    const operation = await lockOperation(tx, seen.id);
    if (!isLive(operation)) throw new RefusedError("not-live", `It has ended: ${operation.state}.`);
    const { parentId } = operation;
    if (parentId !== null)
      throw new RefusedError("not-live", `It is a part of the operation ${parentId}: change the priority of that.`);
    await prioritize(tx, operation.id, priority);
  });
  return getOperation(database, principal, id);
}
