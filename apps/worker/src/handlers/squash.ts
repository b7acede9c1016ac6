import {
  documents,
  finishSquash,
  finishSquashRange,
  planSquash,
  rangesMax,
  readSquashReports,
  reopenRanges,
  startSquashRanges,
} from "@tephra/control/work";
import { cutRanges, RangesIncompleteError } from "@tephra/engine";
import { idOfPrefix } from "@tephra/format";
import { type Handler, resultOf } from "../context.ts";
import { openChain } from "./source.ts";

/** Fixes what determines bytes and names, checks that the chain is complete, and cuts the new full backup into ranges. */
export const planSquashTask: Handler = async (task, { config, database, engine, sites }, run) => {
  const plan = await planSquash(database, config, task.operation, async (stored, options) => {
    const chain = await openChain(stored, sites);
    await engine.checkChain(chain, run.signal);
    const shape = await engine.planSquash({ chain, ...options }, run.signal);
    const [former] = stored;
    const repository = await sites.repository(former?.repository ?? "");
    const backupId = idOfPrefix(former?.prefix ?? "");
    const volumeId = shape.header.volumeId ?? task.operation.volumeId ?? "";
    return { ...shape, prefixAt: (at) => repository.defaultPrefix({ volumeId, backupId, at }) };
  });
  const { layout } = plan;
  await engine.beginBackup({ repository: await sites.repository(plan.repository), layout }, run);
  const ranges = cutRanges({ ...layout, rangeBytes: config.range_bytes, rangesMax });
  await startSquashRanges(database, task.operationId, resultOf(task), { plan, ranges });
};

/** Takes or merges the windows of one range. */
export const squashTask: Handler = async (task, { database, engine, sites }, run) => {
  const { chain, repository: name, layout } = documents.squashPlan(task.operation.plan);
  const staging = { operationId: task.operationId, name: `${task.id}-${task.claim}` };
  const repository = await sites.repository(name);
  const input = { chain: await openChain(chain, sites), repository, layout, range: task.range, staging };
  const { report, takenBytes, mergedBytes } = await engine.squashRange(input, run);
  const result = resultOf(task, {
    bytesDone: task.range.length,
    bytesStored: report.bytesStored,
    bytesAdopted: report.bytesAdopted,
    report: { ...report, takenBytes, mergedBytes },
  });
  await finishSquashRange(database, task.operationId, result);
};

/** Finalizes the new full backup, and has the row name it. A range that lost objects is reopened. */
export const sealSquashTask: Handler = async (task, { database, engine, sites }, run) => {
  const plan = documents.squashPlan(task.operation.plan);
  const repository = await sites.repository(plan.repository);
  const reports = await readSquashReports(database, task.operationId);
  const sumOf = (key: "takenBytes" | "mergedBytes"): number => reports.reduce((sum, report) => sum + report[key], 0);
  try {
    const input = { repository, layout: plan.layout, operationId: task.operationId, reports };
    const sealed = await engine.seal(input, run);
    const counts = { takenBytes: sumOf("takenBytes"), mergedBytes: sumOf("mergedBytes") };
    await finishSquash(database, task.operation, resultOf(task), { plan, sealed, ...counts });
  } catch (error) {
    if (!(error instanceof RangesIncompleteError)) throw error;
    await reopenRanges(database, task.operationId, { taskId: task.id, claim: task.claim }, error.ranges);
  }
};
