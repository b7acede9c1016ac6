import { InvalidError } from "@tephra/control";
import {
  finishPreparedRestore,
  finishRestore,
  planRestore,
  type RestorePlan,
  rangesMax,
  restoreTargetOf,
  type StoredVolume,
  startRestoreRanges,
  storedVolume,
} from "@tephra/control/work";
import type { RestoredProperties, VolumeTarget } from "@tephra/engine";
import { type Handler, resultOf } from "../context.ts";
import { openChain } from "./source.ts";

/**
 * Merges the chain into one map and cuts it into ranges. The target is a new private file until it is published; a volume of a single range
 * is restored and published right here, unless it is part of a group restore, which publishes all of them together.
 *
 * A volume that is written in place is always of a single range: one process writes it, and the volume's driver lets another one do so only
 * when that one has ended.
 */
export const planRestoreTask: Handler = async (task, { config, database, engine, log, sites }, run) => {
  const plan = await planRestore(database, task.operation, { rangeBytes: config.range_bytes });
  const chain = await openChain(plan.chain, sites);
  const backend = await sites.backend(plan.backend);
  const inPlace = backend.capabilities.restores === "in-place";
  if (inPlace && task.operation.parentId !== null) throw new InvalidError("request", noGroups(plan.volumeId));
  const staging = { operationId: task.operationId, name: `${task.id}-${task.claim}` };
  const cut = { rangeBytes: plan.rangeBytes, rangesMax: inPlace ? 1 : rangesMax };
  const merged = await engine.planRestore({ chain, ...cut, staging }, run);
  for (const warning of merged.warnings) log.warn({ operation: task.operationId }, warning);
  const stored = storedVolume(merged.volumeMetas);
  const targetBytes = Math.max(plan.targetBytes, merged.volumeBytes);
  const name = restoreTargetOf(task.operationId, task.claim);
  const lengths = { sizeBytes: plan.keepTail ? merged.volumeBytes : targetBytes, keepTail: plan.keepTail };
  const held = plan.held && { volumeId: plan.volumeId, ...plan.held };
  const published = (await backend.wasPublished?.(plan.volumeId, name)) ?? false;
  if (!published) await backend.beginRestore(plan.volumeId, name, { ...lengths, ...(held && { held }) }, run);
  const staged = merged.ranges.some(({ map }) => map.name !== null);
  const planned = { ...plan, targetBytes, stored, staged };
  if (published) return finishRestore(database, task.operation, resultOf(task), planned);
  const [only] = merged.ranges;
  if (only && merged.ranges.length === 1) {
    const bytesWritten = await writeRange(await backend.openRestoreTarget(plan.volumeId, name), (target) =>
      engine.restoreRange({ chain, range: only, staging, target }, run),
    );
    if (task.operation.parentId !== null) {
      const result = resultOf(task, { bytesDone: merged.volumeBytes, bytesStored: bytesWritten });
      const prepared = { plan: planned, prepared: name };
      await finishPreparedRestore(database, task.operation, result, prepared);
      return;
    }
    const properties = held && propertiesOf(plan, stored);
    await backend.publishRestore(plan.volumeId, name, { fresh: false, ...(properties && { properties }) }, run);
    const result = resultOf(task, { bytesDone: merged.volumeBytes, bytesStored: bytesWritten });
    await finishRestore(database, task.operation, result, planned);
    return;
  }
  const ranges = merged.ranges.map((r) => ({ offset: r.offset, length: r.length, input: r }));
  await startRestoreRanges(database, task.operationId, resultOf(task), {
    plan: { ...planned, target: name },
    ranges,
  });
};

/** What the service that has the volume is told beside the bytes; of a row, `finishRestore` writes it. */
function propertiesOf(plan: RestorePlan, stored: StoredVolume): RestoredProperties {
  return { ...stored, metadata: { ...stored.metadata, src_backup_id: plan.backupId } };
}

/** Closes the target before the restore is published. */
async function writeRange(
  opened: VolumeTarget,
  write: (target: VolumeTarget) => Promise<{ bytesWritten: number }>,
): Promise<number> {
  await using target = opened;
  const { bytesWritten } = await write(target);
  await target.flush();
  return bytesWritten;
}

const noGroups = (volumeId: string): string =>
  `Volume ${volumeId} is restored in place, which cannot be undone: restore it by itself, not with its group.`;
