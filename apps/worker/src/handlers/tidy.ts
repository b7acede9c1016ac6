import { type BackupPlan, finishTidy, type RestorePlan, restoreTargetOf, type VerifyPlan } from "@tephra/control";
import { type Handler, resultOf } from "../context.ts";

/** Removes what an operation left behind, after it ended and nobody can be writing for it: staging, temporary snapshot, private target. */
export const tidyTask: Handler = async (task, { database, engine, sites }, run) => {
  const { operation } = task;
  run.fence();
  if (operation.kind === "backup-create") {
    const plan = operation.plan as unknown as BackupPlan;
    await engine.removeStaging(await sites.repository(plan.repository), operation.id);
    if (plan.source.kind === "snapshot" && plan.source.temporary) {
      await (await sites.backend(plan.backend)).removeSnapshot(plan.source.id);
    }
  }
  if (operation.kind === "backup-restore") {
    const plan = operation.plan as unknown as RestorePlan;
    const [newest] = plan.chain;
    if (newest) await engine.removeStaging(await sites.repository(newest.repository), operation.id);
    const backend = await sites.backend(plan.backend);
    const planned = await database.task.findFirst({
      where: { operationId: operation.id, kind: "plan-restore" },
      select: { claim: true },
    });
    for (let claim = 1; claim <= (planned?.claim ?? 0); claim += 1) {
      await backend.abandonRestore(plan.volumeId, restoreTargetOf(operation.id, claim));
    }
  }
  if (operation.kind === "backup-verify") {
    const [newest] = (operation.plan as unknown as VerifyPlan).chain;
    if (newest) await engine.removeStaging(await sites.repository(newest.repository), operation.id);
  }
  await finishTidy(database, task.operationId, resultOf(task));
};
