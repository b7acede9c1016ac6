import type { Config } from "../config.ts";
import { type Database, Prisma } from "../db/database.ts";
import { countProtection, type ProtectionState } from "../policies/protection.ts";
import { type Principal, seesAll } from "../principal.ts";
import { listOperations, type OperationProgress } from "../queue/list-operations.ts";
import { type Alert, findAlerts, hasFailedLately } from "./alerts.ts";
import { canWriteTo, type Proof, proofOf, sumRepositories } from "./repositories.ts";
import { listWorkers } from "./workers.ts";

export interface Overview {
  asOf: Date;
  alerts: Alert[];
  protection: Record<ProtectionState, number>;
  proof: Proof;
  queue: { ready: number; dispatched: number; running: number; oldestSeconds: number };
  workers: { live: number; silent: number; disabled: number; slots: number; busy: number };
  /** At most ten, those that take longest still first. */
  running: OperationProgress[];
  /** Operations, within 24 hours. */
  failed: number;
  /** Empty for a caller who does not see all projects. */
  repositories: { name: string; up: boolean; backups: number; bytes: number; storedBytes: number }[];
  lastSuccessAt: Date | null;
}

interface Counts {
  ready: number;
  dispatched: number;
  running: number;
  oldestSeconds: number;
  failed: number;
  lastSuccessAt: Date | null;
  asOf: Date;
}

const shownMax = 10;

/** What the caller asks of first: of the own project, or of all for who sees all. */
export async function readOverview(database: Database, config: Config, principal: Principal): Promise<Overview> {
  const projectId = seesAll(principal) ? null : principal.projectId;
  const own = projectId === null ? Prisma.sql`true` : Prisma.sql`project_id = ${projectId}`;
  const [counts] = await database.$queryRaw<Counts[]>`
    SELECT (SELECT count(*) FROM tasks WHERE state = 'ready' AND ${own})::int AS ready,
      (SELECT count(*) FROM tasks WHERE state = 'dispatched' AND ${own})::int AS dispatched,
      (SELECT count(*) FROM tasks WHERE state = 'running' AND ${own})::int AS running,
      greatest(0, coalesce((SELECT extract(epoch FROM now() - min(queued_at)) FROM tasks WHERE state IN ('ready', 'dispatched') AND ${own}), 0))::float8
        AS "oldestSeconds",
      (SELECT count(*) FROM operations o WHERE ${hasFailedLately} AND ${own})::int AS failed,
      (SELECT max(finished_at) FROM operations WHERE kind = 'backup-create' AND state = 'succeeded' AND ${own}) AS "lastSuccessAt",
      now() AS "asOf"`;
  if (!counts) throw new Error("PostgreSQL returned no row");
  const { asOf, failed, lastSuccessAt, ...queue } = counts;
  const [protection, sums, workers, live] = await Promise.all([
    countProtection(database, config, projectId),
    sumRepositories(database, projectId),
    listWorkers(database, config),
    listOperations(database, principal, { states: ["running"], limit: 100 }),
  ]);
  const inState = (state: string): number => workers.filter((worker) => worker.state === state).length;
  const heard = workers.filter(({ state }) => state !== "silent");
  const leftOf = ({ secondsLeft }: OperationProgress): number => secondsLeft ?? Number.POSITIVE_INFINITY;
  const repositories = projectId === null ? config.repositories : [];
  return {
    asOf,
    alerts: await findAlerts({ database, config, projectId, volumes: protection }),
    protection,
    proof: proofOf(sums),
    queue,
    workers: {
      live: inState("live"),
      silent: inState("silent"),
      disabled: inState("disabled"),
      slots: heard.reduce((sum, { slots }) => sum + slots, 0),
      busy: heard.reduce((sum, { tasks }) => sum + tasks.length, 0),
    },
    // Infinity less Infinity is no number.
    running: live.toSorted((a, b) => (leftOf(b) > leftOf(a) ? 1 : leftOf(b) < leftOf(a) ? -1 : 0)).slice(0, shownMax),
    failed,
    repositories: repositories.map(({ name }) => {
      const sum = sums.find(({ repository }) => repository === name);
      const up = workers.some((worker) => canWriteTo(worker, name));
      return { name, up, backups: sum?.backups ?? 0, bytes: sum?.bytes ?? 0, storedBytes: sum?.stored ?? 0 };
    }),
    lastSuccessAt,
  };
}
