import { finishBackup, planBackup, rangesMax, startCopy, wholeChain } from "@tephra/control/work";
import { cutRanges, type Repository } from "@tephra/engine";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";
import {
  assertUnchanged,
  copyDistrustfully,
  layoutOf,
  openChain,
  openPlannedSource,
  parentReference,
  plannedChanges,
  told,
} from "./source.ts";

/**
 * An incremental is only made if everything that it builds on is complete: others may remove objects, too. Members of the chain in
 * repositories that this worker does not know are assumed to be complete.
 *
 * @throws DamagedObjectError, NotFoundError
 */
async function checkParents(backupId: string, context: WorkerContext, signal: AbortSignal): Promise<void> {
  const { config, database, engine, sites } = context;
  const chain = await wholeChain(database, backupId);
  const known = chain.filter((link) => config.repositories.some(({ name }) => name === link.repository));
  await engine.checkChain(await openChain(known, sites), signal);
}

/**
 * Fixes what determines bytes and names, freezes the source and cuts the volume into ranges. A volume of a single range is copied and
 * finalized right here, since small backups are common; so is one that only the machine that begins to read it can see changing.
 */
export const planBackupTask: Handler = async (task, context, run) => {
  const { config, database, engine, sites } = context;
  let opened: Repository | null = null;
  const plan = await planBackup(database, config, task.operation, async (names) => {
    const repository = await sites.repository(names.repository);
    opened = repository;
    const backend = await sites.backend(names.backend);
    return {
      service: repository.service,
      defaultContainer: (id) => repository.defaultContainer(id),
      defaultPrefix: (input) => repository.defaultPrefix(input),
      tellsChanges: backend.capabilities.tellsChanges,
      canFreezeCheaply: () => backend.canFreezeCheaply(task.operation.volumeId ?? undefined),
    };
  });
  if (plan.parent) await checkParents(plan.parent.backupId, context, run.signal);
  if (plan.source.kind === "snapshot" && plan.source.temporary) {
    const backend = await sites.backend(plan.backend);
    await backend.freeze(plan.volumeId, plan.source.id, run, plan.source.from);
  }
  await using source = await openPlannedSource(plan, sites);
  const fingerprint = await source.fingerprint();
  const { fingerprints } = (await sites.backend(plan.backend)).capabilities;
  const rangeBytes = fingerprints === "everywhere" ? plan.rangeBytes : Math.max(plan.rangeBytes, plan.volumeBytes);
  const ranges = cutRanges({ ...plan, rangeBytes, rangesMax });
  const repository = opened ?? (await sites.repository(plan.repository));
  const changed = await plannedChanges(plan, sites, ranges);
  if (ranges.length > 1) {
    await engine.beginBackup({ repository, layout: layoutOf(plan) }, run);
    await startCopy(database, task.operationId, resultOf(task), { plan, ranges, changed, fingerprint });
    return;
  }
  const parent = await parentReference(plan, sites);
  const volume = { offset: 0, length: plan.volumeBytes };
  const input = { source, repository, layout: layoutOf(plan), parent, ...told(changed?.[0], volume) };
  const sealed = await copyDistrustfully(database, plan, () => engine.backupWhole(input, run));
  await assertUnchanged(source, fingerprint, plan);
  const result = resultOf(task, {
    bytesDone: plan.volumeBytes,
    bytesStored: sealed.bytesStored,
    bytesAdopted: sealed.bytesAdopted,
  });
  await finishBackup(database, task.operation, result, { plan, sealed });
};
