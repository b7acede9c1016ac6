import { finishBackup, planBackup, rangesMax, startCopy } from "@tephra/control";
import { cutRanges } from "@tephra/engine";
import { type Handler, resultOf } from "../context.ts";
import { assertUnchanged, layoutOf, openPlannedSource, parentReference } from "./source.ts";

/**
 * Fixes what decides bytes and names, freezes the source and cuts the volume into ranges. A volume of a single range is copied and
 * sealed here and now: small backups are many.
 */
export const planBackupTask: Handler = async (task, { config, database, engine, sites }, run) => {
  const plan = await planBackup(database, config, task.operation, async (names) => {
    const repository = await sites.repository(names.repository);
    const backend = await sites.backend(names.backend);
    return {
      service: repository.service,
      defaultContainer: (id) => repository.defaultContainer(id),
      defaultPrefix: (input) => repository.defaultPrefix(input),
      canSnapshotCheaply: () => backend.canSnapshotCheaply(),
    };
  });
  if (plan.source.kind === "snapshot" && plan.source.temporary) {
    const backend = await sites.backend(plan.backend);
    await backend.snapshot(plan.volumeId, plan.source.id, run);
  }
  await using source = await openPlannedSource(plan, sites);
  const fingerprint = await source.fingerprint();
  const ranges = cutRanges({ ...plan, rangesMax });
  const repository = await sites.repository(plan.repository);
  if (ranges.length > 1) {
    await engine.beginBackup({ repository, layout: layoutOf(plan) }, run);
    await startCopy(database, task.operationId, resultOf(task), { plan, ranges, fingerprint });
    return;
  }
  const parent = await parentReference(plan, sites);
  const sealed = await engine.backupWhole({ source, repository, layout: layoutOf(plan), parent }, run);
  await assertUnchanged(source, fingerprint, plan);
  const result = resultOf(task, {
    bytesDone: plan.volumeBytes,
    bytesStored: sealed.bytesStored,
    bytesAdopted: sealed.bytesAdopted,
  });
  await finishBackup(database, task.operation, result, { plan, sealed });
};
