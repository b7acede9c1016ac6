import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import type { QuotaResource } from "../errors.ts";
import { countProtectionByProject } from "../policies/protection.ts";
import { listQuotas, type QuotaLine } from "../rows/quotas.ts";

export interface ProjectFacts {
  projectId: string;
  quota: Record<QuotaResource, QuotaLine>;
  /** Tasks. */
  running: number;
  waiting: number;
  /** Volumes. */
  late: number;
  never: number;
  /** Of backups that can be restored. */
  storedBytes: number;
}

interface TaskRow {
  projectId: string;
  running: number;
  waiting: number;
}

/** Every project that has, or has had, something here, those that store most first. */
export async function listProjects(database: Database, config: Config): Promise<ProjectFacts[]> {
  const [{ projects: quotas, defaults }, protection, tasks, sums] = await Promise.all([
    listQuotas(database, config),
    countProtectionByProject(database, config),
    database.$queryRaw<TaskRow[]>`
      SELECT project_id AS "projectId", count(*) FILTER (WHERE state = 'running')::int AS running,
        count(*) FILTER (WHERE state <> 'running')::int AS waiting
      FROM tasks WHERE state IN ('ready', 'dispatched', 'running') GROUP BY project_id`,
    database.$queryRaw<{ projectId: string; storedBytes: number }[]>`
      SELECT project_id AS "projectId", coalesce(sum(stored_bytes), 0)::float8 AS "storedBytes" FROM backups
      WHERE deleted_at IS NULL AND status IN ('available', 'restoring') GROUP BY project_id`,
  ]);
  const taskOf = new Map(tasks.map((row) => [row.projectId, row]));
  const storedOf = new Map(sums.map((row) => [row.projectId, row.storedBytes]));
  const ids = new Set([...quotas.keys(), ...protection.keys(), ...taskOf.keys(), ...storedOf.keys()]);
  return [...ids]
    .map((projectId) => ({
      projectId,
      quota: quotas.get(projectId) ?? defaults,
      running: taskOf.get(projectId)?.running ?? 0,
      waiting: taskOf.get(projectId)?.waiting ?? 0,
      late: protection.get(projectId)?.late ?? 0,
      never: protection.get(projectId)?.never ?? 0,
      storedBytes: storedOf.get(projectId) ?? 0,
    }))
    .sort((a, b) => b.storedBytes - a.storedBytes || (a.projectId < b.projectId ? -1 : 1));
}
