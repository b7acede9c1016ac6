import {
  documents,
  finishVerify,
  finishVerifyRange,
  planVerify,
  rangesMax,
  readVerifyReports,
  restoreTargetOf,
  startVerifyRanges,
  type VerifyPlan,
} from "@tephra/control/work";
import type { Drill } from "@tephra/engine";
import { type Handler, resultOf } from "../context.ts";
import type { Places } from "../sites.ts";
import { openChain } from "./source.ts";

/**
 * Checks listings and metadata. What a thorough verification has to read besides is cut into ranges; for a restore test, the private file
 * that they write to is created.
 */
export const planVerifyTask: Handler = async (task, { config, database, engine, sites }, run) => {
  const plan = await planVerify(database, task.operation);
  const chain = await openChain(plan.chain, sites);
  const staging = { operationId: task.operationId, name: `${task.id}-${task.claim}` };
  const mode = plan.mode === "quick" ? "quick" : "deep";
  const planned = await engine.planVerify({ chain, mode, rangeBytes: config.range_bytes, rangesMax, staging }, run);
  const result = resultOf(task, { report: planned.found });
  if (planned.ranges.length === 0) {
    await finishVerify(database, task.operation, result, { plan, findings: planned.found });
    return;
  }
  const ranges = planned.ranges.map((r) => ({ offset: r.offset, length: r.length, input: r }));
  const sizeBytes = planned.ranges.reduce((sum, { length }) => sum + length, 0);
  const drill = plan.drill && { ...plan.drill, file: restoreTargetOf(task.operationId, task.claim) };
  if (drill !== null) {
    const backend = await sites.backend(drill.backend);
    await backend.beginRestore(plan.backupId, drill.file, { sizeBytes, keepTail: false }, run);
  }
  const staged = planned.ranges.some(({ map }) => map.name !== null);
  await startVerifyRanges(database, task.operationId, result, { plan: { ...plan, drill, staged }, ranges });
};

/** The private file of a restore test, opened for one range. */
async function openDrill({ backupId, drill }: VerifyPlan, sites: Places): Promise<(Drill & AsyncDisposable) | null> {
  if (drill?.file == null) return null;
  const backend = await sites.backend(drill.backend);
  await using stack = new AsyncDisposableStack();
  const target = stack.use(await backend.openRestoreTarget(backupId, drill.file));
  const restored = stack.use(await backend.openRestored(backupId, drill.file));
  const opened = stack.move();
  return { target, restored, [Symbol.asyncDispose]: () => opened.disposeAsync() };
}

/** Reads and checks one range of the merged map. Damage is reported, and is not a failure of the task. */
export const verifyTask: Handler = async (task, { database, engine, sites }, run) => {
  const plan = documents.verifyPlan(task.operation.plan);
  const chain = await openChain(plan.chain, sites);
  const range = documents.restoreRange(task.input);
  await using drill = await openDrill(plan, sites);
  const found = await engine.verifyRange({ chain, range, staging: { operationId: task.operationId }, drill }, run);
  const result = resultOf(task, { bytesDone: task.range.length, report: found });
  await finishVerifyRange(database, task.operationId, result);
};

/** Combines the findings of the ranges, and marks what is damaged. */
export const concludeVerifyTask: Handler = async (task, { database }) => {
  const plan = documents.verifyPlan(task.operation.plan);
  const findings = await readVerifyReports(database, task.operationId);
  await finishVerify(database, task.operation, resultOf(task), { plan, findings });
};
