import {
  type ClaimedTask,
  documents,
  finishSquashTidy,
  finishTidy,
  hasSucceeded,
  leftBySquash,
  restoreTargetOf,
  type TaskKind,
} from "@tephra/control/work";
import { EngineError, type HeldTarget } from "@tephra/engine";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";
import { recoverMachine } from "./groups.ts";

/**
 * Clean-up: removes what an operation left behind, after it ended and nobody can still be writing for it: staging, temporary snapshot,
 * private target.
 */
export const tidyTask: Handler = async (task, context, run) => {
  const { database, engine, sites } = context;
  const { operation } = task;
  run.fence();
  if (operation.kind === "backup-create") {
    const plan = documents.backupPlan(operation.plan);
    await engine.removeStaging(await sites.repository(plan.repository), operation.id);
    if (plan.source.kind === "snapshot" && plan.source.temporary) {
      const backend = await sites.backend(plan.backend);
      const backedUp = backend.capabilities.tellsChanges && (await hasSucceeded(database, operation.id));
      await backend.thaw(plan.source.id, { backedUp });
    }
  }
  if (operation.kind === "backup-restore" && operation.plan === null) {
    const { beside = "", volume, hold = null, newVolume } = documents.restoreInput(operation.input);
    const held = { volumeId: volume?.id ?? null, hold, isNew: newVolume };
    await (await sites.backend(beside)).abandonRestore(restoreTargetOf(operation.id, 0), held);
  } else if (operation.kind === "backup-restore") {
    const plan = documents.restorePlan(operation.plan);
    await removeStaged(task, context, plan.chain[0]?.repository);
    const held = plan.held && { volumeId: plan.volumeId, ...plan.held };
    await abandonTargets(task, context, { backend: plan.backend, plannedBy: "plan-restore", held });
  }
  if (operation.kind === "backup-verify") {
    const { chain, drill } = documents.verifyPlan(operation.plan);
    await removeStaged(task, context, chain[0]?.repository);
    if (drill) await abandonTargets(task, context, { backend: drill.backend, plannedBy: "plan-verify" });
  }
  if (operation.kind === "backup-squash") {
    const plan = documents.squashPlan(operation.plan);
    const repository = await sites.repository(plan.repository);
    await engine.removeStaging(repository, operation.id);
    const left = await leftBySquash(database, operation.id, plan);
    if (left !== null) await engine.removeBackup({ ...left, repository }, run);
    return finishSquashTidy(database, context.config, operation.id, resultOf(task), plan);
  }
  if (operation.kind === "group-backup" || operation.kind === "group-snapshot")
    await recoverMachine(operation, context, run);
  await finishTidy(database, task.operationId, resultOf(task));
};

/** Staged objects of a restore or verification. Where removing them is refused, as by a read-only repository, the reaper finds them. */
async function removeStaged(
  { operationId }: ClaimedTask,
  { engine, sites, log }: WorkerContext,
  repository: string | undefined,
): Promise<void> {
  if (repository === undefined) return;
  const opened = await sites.repository(repository);
  try {
    await engine.removeStaging(opened, operationId);
  } catch (error) {
    if (!(error instanceof EngineError) || error.retryable) throw error;
    log.warn({ err: error, operation: operationId }, "what was staged stays for the reaper");
  }
}

/** Each claim of the plan may have created a private file of its own. */
async function abandonTargets(
  { operationId }: ClaimedTask,
  { database, sites }: WorkerContext,
  { backend, plannedBy, held }: { backend: string; plannedBy: TaskKind; held?: HeldTarget | undefined },
): Promise<void> {
  const files = await sites.backend(backend);
  const planned = await database.task.findFirst({ where: { operationId, kind: plannedBy }, select: { claim: true } });
  for (let claim = 0; claim <= (planned?.claim ?? 0); claim += 1) {
    await files.abandonRestore(restoreTargetOf(operationId, claim), held);
  }
}
