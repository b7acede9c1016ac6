import type { BackupPlan, RestoreInput, RestorePlan, SquashPlan, VerifyPlan } from "./documents.ts";
import { encoderNeeds, needToRead, needToWrite } from "./workers.ts";

/** Capabilities that copying needs. */
export const copyNeeds = (plan: BackupPlan): string[] => [
  ...new Set([
    needToWrite(plan.repository),
    ...(plan.parent && plan.parent.repository !== plan.repository ? [needToRead(plan.parent.repository)] : []),
    `backend:${plan.backend}`,
    ...encoderNeeds(plan.zlibEncoder),
  ]),
];

/** Capabilities that a backup's clean-up needs: it removes staged slices and the temporary snapshot. */
export const backupTidyNeeds = (plan: BackupPlan): string[] => [
  needToWrite(plan.repository),
  `backend:${plan.backend}`,
];

const readingNeeds = (chain: readonly { repository: string }[], backend: string | null): string[] => [
  ...new Set(chain.map((link) => needToRead(link.repository))),
  ...(backend === null ? [] : [`backend:${backend}`]),
];

/** What was staged is beside the newest backup of the chain. */
const stagedNeeds = ({ staged, chain }: Pick<RestorePlan | VerifyPlan, "staged" | "chain">): string[] =>
  staged === true ? chain.slice(0, 1).map((link) => needToWrite(link.repository)) : [];

/** Capabilities that a restore needs. A read-only repository is enough. */
export const restoreNeeds = ({ chain, backend }: RestorePlan): string[] => readingNeeds(chain, backend);

/** Capabilities needed to remove what a restore leaves behind. */
export const restoreTidyNeeds = (plan: RestorePlan): string[] => [...restoreNeeds(plan), ...stagedNeeds(plan)];

/** Capabilities needed to release a volume that another service has, where a restore was never planned; null: there is nothing to release. */
export const besideTidyNeeds = ({ beside, nothingHeld }: RestoreInput): string[] | null =>
  beside === undefined || nothingHeld ? null : [`backend:${beside}`];

/** Capabilities that a verification needs; `backend` is that of a restore test. */
export const verifyNeeds = readingNeeds;

export const verifyPlanNeeds = ({ chain, drill }: VerifyPlan): string[] => verifyNeeds(chain, drill?.backend ?? null);

/** Capabilities needed to remove what a verification leaves behind; null where that is nothing. */
export const verifyTidyNeeds = (plan: VerifyPlan): string[] | null =>
  plan.mode === "quick" ? null : [...verifyPlanNeeds(plan), ...stagedNeeds(plan)];

/** Capabilities that accepting a squash can already name: to read the chain, and to write beside its newest backup. */
export const squashNeeds = (chain: readonly { repository: string }[]): string[] => [
  ...readingNeeds(chain, null),
  ...chain.slice(0, 1).map((link) => needToWrite(link.repository)),
];

/** Capabilities that the ranges of a squash need. */
export const squashPlanNeeds = ({ chain, layout }: SquashPlan): string[] => [
  ...squashNeeds(chain),
  ...encoderNeeds(layout.zlibEncoder),
];

/** Capabilities needed to remove what a squash leaves behind: what it replaced, or what it had made. */
export const squashTidyNeeds = ({ repository }: SquashPlan): string[] => [needToWrite(repository)];
