import { documents, finishBackup, readCopyReports, reopenRanges } from "@tephra/control/work";
import { RangesIncompleteError } from "@tephra/engine";
import { type Handler, resultOf } from "../context.ts";
import { layoutOf } from "./source.ts";

/**
 * Finalizes a backup when all ranges are done: checks the listing, then writes `_sha256file` and finally `_metadata`. A range that lost
 * objects is reopened.
 */
export const sealTask: Handler = async (task, { database, engine, sites }, run) => {
  const plan = documents.backupPlan(task.operation.plan);
  const repository = await sites.repository(plan.repository);
  const reports = await readCopyReports(database, task.operationId);
  try {
    const sealed = await engine.seal(
      { repository, layout: layoutOf(plan), operationId: task.operationId, reports },
      run,
    );
    await finishBackup(database, task.operation, resultOf(task), { plan, sealed });
  } catch (error) {
    if (!(error instanceof RangesIncompleteError)) throw error;
    await reopenRanges(database, task.operationId, { taskId: task.id, claim: task.claim }, error.ranges);
  }
};
