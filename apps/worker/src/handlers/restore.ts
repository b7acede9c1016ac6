import { documents, finishRestoreRange } from "@tephra/control/work";
import { type Handler, resultOf } from "../context.ts";
import { openChain } from "./source.ts";

/** Restores one range of the merged map into the private target. Flushed before it is reported: a finished range is on disk. */
export const restoreTask: Handler = async (task, { database, engine, sites }, run) => {
  const plan = documents.restorePlan(task.operation.plan);
  const chain = await openChain(plan.chain, sites);
  const backend = await sites.backend(plan.backend);
  await using target = await backend.openRestoreTarget(plan.volumeId, plan.target ?? "");
  const range = documents.restoreRange(task.input);
  const restored = await engine.restoreRange({ chain, range, staging: { operationId: task.operationId }, target }, run);
  await target.flush();
  await finishRestoreRange(
    database,
    task.operationId,
    resultOf(task, { bytesDone: task.range.length, bytesStored: restored.bytesWritten }),
  );
};
