import { claimsWereLost, finishRestore, type RestorePlan } from "@tephra/control";
import { type Handler, resultOf } from "../context.ts";

/** Every range is written: the private file becomes the volume. If a claim was lost on the way, a fresh inode does. */
export const publishTask: Handler = async (task, { database, sites }, run) => {
  const plan = task.operation.plan as unknown as RestorePlan;
  const backend = await sites.backend(plan.backend);
  const freshInode = await claimsWereLost(database, task.operationId);
  await backend.publishRestore(plan.volumeId, plan.target ?? "", { freshInode }, run);
  await finishRestore(database, task.operation, resultOf(task), plan);
};
