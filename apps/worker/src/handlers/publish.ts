import { claimsWereLost, documents, finishPreparedRestore, finishRestore, restoreTargetOf } from "@tephra/control/work";
import { type Handler, resultOf } from "../context.ts";

/**
 * All ranges are written: the private file becomes the volume; if a claim was lost on the way, a copy with a fresh inode does. As part of a
 * group restore, the file waits for the others.
 */
export const publishTask: Handler = async (task, { database, sites }, run) => {
  const plan = documents.restorePlan(task.operation.plan);
  const backend = await sites.backend(plan.backend);
  const fresh = await claimsWereLost(database, task.operationId);
  const target = plan.target ?? "";
  if (task.operation.parentId === null) {
    await backend.publishRestore(plan.volumeId, target, { fresh }, run);
    await finishRestore(database, task.operation, resultOf(task), plan);
    return;
  }
  const prepared = fresh ? restoreTargetOf(task.operationId, 0) : target;
  if (fresh) await backend.copyRestore(plan.volumeId, target, prepared, run);
  await finishPreparedRestore(database, task.operation, resultOf(task), { plan, prepared });
};
