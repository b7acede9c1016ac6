import {
  finishPreparedRestore,
  finishRestore,
  planRestore,
  rangesMax,
  restoreTargetOf,
  startRestoreRanges,
  storedVolume,
} from "@tephra/control/work";
import { type Handler, resultOf } from "../context.ts";
import { openChain } from "./source.ts";

/**
 * Merges the chain into one map and cuts it into ranges. The target is a new private file until it is published; a volume of a single range
 * is restored and published right here, unless it is part of a group restore, which publishes all of them together.
 */
export const planRestoreTask: Handler = async (task, { config, database, engine, log, sites }, run) => {
  const plan = await planRestore(database, task.operation, { rangeBytes: config.range_bytes });
  const chain = await openChain(plan.chain, sites);
  const backend = await sites.backend(plan.backend);
  const staging = { operationId: task.operationId, name: `${task.id}-${task.claim}` };
  const merged = await engine.planRestore({ chain, rangeBytes: plan.rangeBytes, rangesMax, staging }, run);
  for (const warning of merged.warnings) log.warn({ operation: task.operationId }, warning);
  const stored = storedVolume(merged.volumeMetas);
  const targetBytes = Math.max(plan.targetBytes, merged.volumeBytes);
  const name = restoreTargetOf(task.operationId, task.claim);
  const lengths = { sizeBytes: plan.keepTail ? merged.volumeBytes : targetBytes, keepTail: plan.keepTail };
  await backend.beginRestore(plan.volumeId, name, lengths, run);
  const staged = merged.ranges.some(({ map }) => map.name !== null);
  const [only] = merged.ranges;
  if (only && merged.ranges.length === 1) {
    await using target = await backend.openRestoreTarget(plan.volumeId, name);
    const { bytesWritten } = await engine.restoreRange({ chain, range: only, staging, target }, run);
    await target.flush();
    if (task.operation.parentId !== null) {
      const result = resultOf(task, { bytesDone: merged.volumeBytes, bytesStored: bytesWritten });
      const prepared = { plan: { ...plan, targetBytes, stored, staged }, prepared: name };
      await finishPreparedRestore(database, task.operation, result, prepared);
      return;
    }
    await backend.publishRestore(plan.volumeId, name, { fresh: false }, run);
    const result = resultOf(task, { bytesDone: merged.volumeBytes, bytesStored: bytesWritten });
    await finishRestore(database, task.operation, result, { ...plan, targetBytes, stored, staged });
    return;
  }
  const ranges = merged.ranges.map((r) => ({ offset: r.offset, length: r.length, input: r }));
  await startRestoreRanges(database, task.operationId, resultOf(task), {
    plan: { ...plan, targetBytes, target: name, stored, staged },
    ranges,
  });
};
