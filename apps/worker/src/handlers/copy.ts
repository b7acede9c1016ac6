import { documents, finishCopy } from "@tephra/control/work";
import { type Handler, resultOf } from "../context.ts";
import { assertUnchanged, copyDistrustfully, layoutOf, openPlannedSource, parentReference, told } from "./source.ts";

/** Copies one range of the volume. Before and after, the source must have the same fingerprint as when the ranges were cut. */
export const copyTask: Handler = async (task, { database, engine, sites }, run) => {
  const plan = documents.backupPlan(task.operation.plan);
  const repository = await sites.repository(plan.repository);
  const parent = await parentReference(plan, sites);
  await using source = await openPlannedSource(plan, sites);
  if (plan.fingerprint !== null) await assertUnchanged(source, plan.fingerprint, plan);
  const input = {
    source,
    repository,
    layout: layoutOf(plan),
    range: task.range,
    parent,
    ...told(documents.copyRange(task.input).changed, task.range),
    staging: { operationId: task.operationId, name: `${task.id}-${task.claim}` },
  };
  const report = await copyDistrustfully(database, plan, () => engine.copyRange(input, run));
  if (plan.fingerprint !== null) await assertUnchanged(source, plan.fingerprint, plan);
  const result = resultOf(task, {
    bytesDone: task.range.length,
    bytesStored: report.bytesStored,
    bytesAdopted: report.bytesAdopted,
    report,
  });
  await finishCopy(database, task.operationId, result);
};
