import type { Database, Logger } from "@tephra/control";
import { events, readUnclaimed, UnknownTaskError } from "@tephra/control/work";

/** Operations remembered as mentioned in the log. */
const toldMax = 1_000;

/**
 * Leaves a task that nobody claimed. One that only a newer release can run is mentioned in the log, once for each operation: it waits for
 * workers of that release.
 *
 * @throws UnknownTaskError when there is no such task
 */
export function openUnclaimed(database: Database, log: Logger): (taskId: string) => Promise<void> {
  const told = new Set<string>();
  return async (taskId) => {
    const task = await readUnclaimed(database, taskId);
    if (task === null) throw new UnknownTaskError(taskId);
    if (!task.forNewer || told.has(task.operationId)) return;
    if (told.size >= toldMax) told.clear();
    told.add(task.operationId);
    events.taskLeft(log, { id: taskId, ...task });
  };
}
