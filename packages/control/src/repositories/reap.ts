import { type Config, repositoryNamed } from "../config.ts";
import { type Database, inTransaction, lockRepository, type Transaction } from "../db/database.ts";
import { InvalidError, OperationEndedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { completeOperation, endOperation, type OperationRow, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { needToRead, needToWrite } from "../queue/workers.ts";

/** What decides a pass of the reaper. Nothing younger than `graceMs` is touched. */
export interface ReapInput {
  repository: string;
  dryRun: boolean;
  graceMs: number;
}

/** What was removed, or would be: how many of each kind. */
export interface ReapCounts {
  /** Of backups that are gone, or never came to be. */
  objects: number;
  /** Staging of operations that have ended. */
  staged: number;
  /** Files of puts that never ended. */
  temporary: number;
  /** Large objects that were never completed. */
  uploads: number;
  /** Files of volumes whose rows are gone. */
  volumes: number;
  /** Of temporary snapshots, and of snapshots whose rows are gone. */
  snapshots: number;
  /** Drafts that exports have left in folders of users. */
  exports: number;
  /** Drafts and targets of restores in volume backends. */
  private: number;
}

/** The operation's `result`. */
export interface ReapResult {
  dry_run: boolean;
  removed: ReapCounts;
  /** At most a hundred. */
  names: string[];
  /** Whole backups without a row: left alone, for they may be another service's, or of a database that was lost. At most a hundred. */
  unknown: string[];
  /** Volume backends that the worker did not reach. */
  unreached: string[];
  /** What could not be looked at or removed: of others, closed to these rights, or broken. At most a hundred. */
  passed_over: string[];
}

/**
 * Accepts a pass of the reaper over a repository and the volume backends. It does not run beside a rescan, which enters what it saw a
 * while ago.
 *
 * @throws NotFoundError for a repository that is not configured; InvalidError while a rescan or another pass is under way
 */
export async function requestReap(
  database: Database,
  config: Config,
  principal: Principal,
  request: { repository: string; dryRun: boolean },
): Promise<{ id: string }> {
  const id = await inTransaction(database, (tx) => startReap(tx, config, principal, request));
  return { id };
}

/** @returns the operation's id @throws as requestReap */
export async function startReap(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: { repository: string; dryRun: boolean },
): Promise<string> {
  const { name } = repositoryNamed(config, request.repository);
  await lockRepository(tx, name);
  await assertNoneRuns(tx, name, ["repository-rescan", "repository-reap"]);
  const input: ReapInput = {
    repository: name,
    dryRun: request.dryRun,
    graceMs: Math.round(config.reaper.grace_minutes * 60_000),
  };
  return startOperation(tx, principal, {
    kind: "repository-reap",
    projectId: principal.projectId,
    input: { ...input },
    task: { kind: "reap-repository", needs: [request.dryRun ? needToRead(name) : needToWrite(name)] },
  });
}

/** The repository is locked. @throws InvalidError while an operation of one of these kinds is going on with it */
export async function assertNoneRuns(
  tx: Transaction,
  repository: string,
  kinds: readonly ("repository-rescan" | "repository-reap")[],
): Promise<void> {
  const [running] = await tx.$queryRaw<{ id: string; kind: string }[]>`
    SELECT id, kind FROM operations WHERE state IN ('queued', 'running') AND kind = ANY(${[...kinds]}::text[])
      AND input->>'repository' = ${repository} LIMIT 1`;
  if (!running) return;
  throw new InvalidError(
    "request",
    `Repository ${repository} is busy with ${running.kind} ${running.id}; try again later.`,
  );
}

/** Objects of one backup, as a listing shows them. */
export interface FoundPlace {
  container: string;
  prefix: string;
  /** The id in their names. */
  backupId: string;
  /** Whether the metadata is there: then it is a backup, whoever made it. */
  whole: boolean;
}

/** orphan: nothing refers to the objects, and nothing will. unknown: a whole backup of which nothing is known. */
export type PlaceVerdict = "kept" | "orphan" | "unknown";

/**
 * Whether the objects of a backup have lost their reason. All live rows count, of whatever repository, project and status, since a row may
 * share another one's objects and two names may stand for one place; so does whoever builds on it, and who works on it. A backup that is
 * whole goes only if it was this service that deleted it.
 */
export async function judgePlace(
  database: Database | Transaction,
  { repository, graceMs }: Pick<ReapInput, "repository" | "graceMs">,
  place: FoundPlace,
): Promise<PlaceVerdict> {
  const { container, prefix, backupId: id, whole } = place;
  const [row] = await database.$queryRaw<{ used: boolean; deleted: boolean }[]>`
    SELECT EXISTS (SELECT 1 FROM backups WHERE deleted_at IS NULL
        AND (id = ${id}::uuid OR service_metadata = ${prefix} OR parent_id = ${id}::uuid))
      OR EXISTS (SELECT 1 FROM backups WHERE deleted_at > now() - ${graceMs} * interval '1 millisecond'
        AND (id = ${id}::uuid OR service_metadata = ${prefix}))
      OR EXISTS (SELECT 1 FROM operations o WHERE o.backup_id IN (
          SELECT ${id}::uuid UNION SELECT b.id FROM backups b WHERE b.service_metadata = ${prefix})
        AND (o.state IN ('queued', 'running') OR o.finished_at > now() - ${graceMs} * interval '1 millisecond'
          OR EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id
            AND t.state IN ('ready', 'dispatched', 'running', 'blocked')))) AS used,
      EXISTS (SELECT 1 FROM backups WHERE deleted_at IS NOT NULL AND repository = ${repository}
        AND container = ${container} AND service_metadata = ${prefix}) AS deleted`;
  if (!row || row.used) return "kept";
  return whole && !row.deleted ? "unknown" : "orphan";
}

/**
 * Looks at the rows once more and, if the place is still an orphan, condemns it: from then on, until the operation ends, no import takes its
 * objects over. A backup's id is never given twice, and no rescan runs, so nothing else can come to refer to them.
 *
 * @returns false when somebody has come to need the objects
 * @throws OperationEndedError
 */
export async function condemnPlace(
  database: Database,
  operation: TaskOperation,
  input: ReapInput,
  place: FoundPlace,
): Promise<boolean> {
  return inTransaction(database, async (tx) => {
    await lockRepository(tx, input.repository);
    if ((await judgePlace(tx, input, place)) !== "orphan") return false;
    const live = await tx.operation.count({ where: { id: operation.id, state: { in: ["queued", "running"] } } });
    if (live === 0) throw new OperationEndedError(operation.id);
    const { container, prefix } = place;
    await tx.condemnedPlace.createMany({
      data: [{ container, prefix, operationId: operation.id }],
      skipDuplicates: true,
    });
    return true;
  });
}

/** Whether an operation that has to do with one of these ids (its own, a backup's, a volume's, a snapshot's) may still be at work, or was within the grace. */
export async function areBusy(database: Database, ids: readonly string[], graceMs: number): Promise<boolean> {
  const wanted = [...ids];
  const [row] = await database.$queryRaw<{ busy: boolean }[]>`
    SELECT EXISTS (SELECT 1 FROM operations o
        WHERE (o.id = ANY(${wanted}::uuid[]) OR o.backup_id = ANY(${wanted}::uuid[]) OR o.volume_id = ANY(${wanted}::uuid[]))
        AND (o.state IN ('queued', 'running') OR o.finished_at > now() - ${graceMs} * interval '1 millisecond'
          OR EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id
            AND t.state IN ('ready', 'dispatched', 'running', 'blocked'))
          OR EXISTS (SELECT 1 FROM operations p WHERE p.id = o.parent_id AND p.state IN ('queued', 'running'))))
      OR EXISTS (SELECT 1 FROM operations o WHERE o.state IN ('queued', 'running')
        AND (o.snapshot_id = ANY(${wanted}::uuid[]) OR o.plan->'source'->>'id' = ANY(${wanted}::text[]))) AS busy`;
  return row?.busy ?? true;
}

/**
 * Whether a volume's or snapshot's file is nobody's any more: its row was here and is gone, or it was a temporary snapshot of a backup that
 * has ended. One that this database has never known is not ours to judge: it may be another service's, or of a database that was lost.
 */
export async function isForgottenFile(
  database: Database,
  kind: "volume" | "snapshot",
  id: string,
  graceMs: number,
): Promise<boolean> {
  const [row] = await database.$queryRaw<{ kept: boolean; known: boolean }[]>`
    SELECT EXISTS (SELECT 1 FROM volumes WHERE id = ${id}::uuid) OR EXISTS (SELECT 1 FROM snapshots WHERE id = ${id}::uuid)
      OR EXISTS (SELECT 1 FROM audit WHERE resource_id = ${id}::uuid AND resource = ${kind}
        AND at > now() - ${graceMs} * interval '1 millisecond') AS kept,
      EXISTS (SELECT 1 FROM audit WHERE resource_id = ${id}::uuid AND resource = ${kind})
      OR EXISTS (SELECT 1 FROM operations WHERE ${kind} = 'volume' AND volume_id = ${id}::uuid AND kind = 'volume-delete')
      OR EXISTS (SELECT 1 FROM operations WHERE ${kind} = 'snapshot' AND snapshot_id = ${id}::uuid) AS known`;
  if (!row || row.kept) return false;
  return row.known || (kind === "snapshot" && (await wasTemporary(database, id, graceMs)));
}

async function wasTemporary(database: Database, id: string, graceMs: number): Promise<boolean> {
  const takers = await database.$queryRaw<{ ended: boolean }[]>`
    SELECT o.state NOT IN ('queued', 'running') AND o.finished_at <= now() - ${graceMs} * interval '1 millisecond'
      AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id
        AND t.state IN ('ready', 'dispatched', 'running', 'blocked')) AS ended
    FROM operations o WHERE o.kind = 'backup-create' AND o.plan->'source'->>'id' = ${id}
      AND o.plan->'source'->>'temporary' = 'true'`;
  return takers.length > 0 && takers.every((taker) => taker.ended);
}

/** Folders that exports, also those that failed, were to be written to. */
export async function exportFolders(database: Database): Promise<string[]> {
  const rows = await database.$queryRaw<{ folder: string }[]>`
    SELECT DISTINCT regexp_replace(input->>'path', '/[^/]*$', '') AS folder FROM operations WHERE kind = 'volume-export'`;
  return rows.map(({ folder }) => folder || "/");
}

/**
 * Up to when operations have ended whose leftovers in volume backends the reaper has looked for since, in every backend that is configured;
 * null where it has not been in one. Passes of which operations are forgotten do not count any more.
 */
export async function reapedUntil(database: Database, config: Config): Promise<Date | null> {
  const backends = config.volume_backends.map(({ name }) => name);
  const [row] = await database.$queryRaw<{ at: Date | null }[]>`
    SELECT CASE WHEN bool_and(r.at IS NOT NULL) THEN min(r.at) END AS at
    FROM unnest(${backends}::text[]) b(name) LEFT JOIN LATERAL (
      SELECT max(o.started_at - (o.input->>'graceMs')::float8 * interval '1 millisecond') AS at FROM operations o
      WHERE o.kind = 'repository-reap' AND o.state = 'succeeded' AND o.input->>'dryRun' = 'false'
        AND NOT (o.result->'unreached' @> to_jsonb(b.name) OR o.result->'passed_over' @> to_jsonb(b.name))) r ON true`;
  return row?.at ?? null;
}

/**
 * What was written since then is young: by the clock of the database and by this host's, whichever is behind, for either may be wrong, and
 * what is taken for old is removed.
 */
export async function graceBegan(database: Database, { graceMs }: ReapInput): Promise<Date> {
  const [row] = await database.$queryRaw<{ at: Date }[]>`SELECT now() - ${graceMs}::float8 * interval '1 ms' AS at`;
  if (!row) throw new Error("no time");
  return new Date(Math.min(row.at.getTime(), Date.now() - graceMs));
}

/** Containers that backups of a repository, live or gone, were put into by name. */
export async function readContainers(database: Database, repository: string): Promise<string[]> {
  const rows = await database.backup.findMany({
    where: { repository, container: { not: null } },
    distinct: ["container"],
    select: { container: true },
  });
  return rows.flatMap((row) => row.container ?? []);
}

export async function finishReap(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  reaped: ReapResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await completeOperation(tx, operation, result, { result: { ...reaped, removed: { ...reaped.removed } } });
    await tx.condemnedPlace.deleteMany({ where: { operationId: operation.id } });
  });
}

/** What was removed stays removed: the next pass goes on from there. */
export async function failReap(tx: Transaction, operation: OperationRow, reason: string): Promise<void> {
  await endOperation(tx, operation, { state: "failed", reason });
  await tx.condemnedPlace.deleteMany({ where: { operationId: operation.id } });
}
