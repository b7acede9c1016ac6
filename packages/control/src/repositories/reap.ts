import { type Config, repositoryNamed } from "../config.ts";
import { type Database, inTransaction, lockRepository, type Transaction } from "../db/database.ts";
import { isEndedOperation, isLiveOperation, isStoredBackup, liveStates } from "../db/live.ts";
import { InvalidError, OperationEndedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import type { ReapInput } from "../queue/documents.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { needToRead, needToWrite } from "../queue/workers.ts";

/** What was removed, or would be: a count for each kind. */
export interface ReapCounts {
  /** Objects of backups that are gone, or were never completed. */
  objects: number;
  /** Staged objects of operations that have ended. */
  staged: number;
  /** Temporary files of puts that never finished. */
  temporary: number;
  /** Uploads of large objects that were never completed. */
  uploads: number;
  /** Files of volumes whose rows are gone. */
  volumes: number;
  /** Temporary snapshots, and snapshots whose rows are gone. */
  snapshots: number;
  /** Partial files that exports have left in users' folders. */
  exports: number;
  /** Private files of restores, and other partial files, in volume backends. */
  private: number;
}

/** The operation's `result`. */
export interface ReapResult {
  dry_run: boolean;
  removed: ReapCounts;
  /** At most a hundred. */
  names: string[];
  /**
   * Complete backups without a row: left alone, since they may belong to another service, or to a database that was lost. At most a
   * hundred.
   */
  unknown: string[];
  /** Volume backends that the worker could not reach. */
  unreached: string[];
  /** What could not be examined or removed: owned by others, without access, or broken. At most a hundred. */
  passed_over: string[];
}

/**
 * Accepts a pass of the reaper over a repository and the volume backends. It does not run beside a rescan, which enters what it saw some
 * time ago.
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
    input,
    task: { kind: "reap-repository", needs: [request.dryRun ? needToRead(name) : needToWrite(name)] },
  });
}

/** The repository is locked. @throws InvalidError while an operation of one of these kinds is live on it */
export async function assertNoneRuns(
  tx: Transaction,
  repository: string,
  kinds: readonly ("repository-rescan" | "repository-reap")[],
): Promise<void> {
  const [running] = await tx.$queryRaw<{ id: string; kind: string }[]>`
    SELECT id, kind FROM operations WHERE ${isLiveOperation("operations")} AND kind = ANY(${[...kinds]}::text[])
      AND input->>'repository' = ${repository} LIMIT 1`;
  if (!running) return;
  throw new InvalidError(
    "request",
    `Repository ${repository} is busy with ${running.kind} ${running.id}; try again later.`,
  );
}

/** Objects of one backup, as listed. */
export interface FoundPlace {
  container: string;
  prefix: string;
  /** The id in their names. */
  backupId: string;
  /** Whether the metadata is there: then it is a complete backup, whoever made it. */
  whole: boolean;
}

/** orphan: nothing refers to the objects, and nothing will. unknown: a complete backup of which nothing is known. */
export type PlaceVerdict = "kept" | "orphan" | "unknown";

/**
 * Whether the objects of a backup are no longer needed. All rows that are live or can be brought back count, in whatever repository, project and status, since a row may
 * share another one's objects and two names may stand for one place. Rows that build on it and operations on it count as well. A complete
 * backup is removed only if this service deleted it.
 *
 * What a squash has replaced, or had made when it failed, bears the id of a live row and is not what that row names: it is an orphan once no
 * operation on the backup is left that could finish or remove it, nor any that was there before the squash ended.
 */
export async function judgePlace(
  database: Database | Transaction,
  { repository, graceMs }: Pick<ReapInput, "repository" | "graceMs">,
  place: FoundPlace,
): Promise<PlaceVerdict> {
  const { container, prefix, backupId: id, whole } = place;
  const [row] = await database.$queryRaw<{ used: boolean; deleted: boolean }[]>`
    WITH squashed AS (
      SELECT coalesce(b.squashed_at, now()) AS at FROM backups b WHERE b.id = ${id}::uuid AND b.repository = ${repository}
        AND b.service_metadata <> ${prefix} AND (b.former_metadata = ${prefix} OR EXISTS (SELECT 1 FROM operations o
          WHERE o.backup_id = b.id AND o.kind = 'backup-squash' AND o.plan->'layout'->>'prefix' = ${prefix}))
    )
    SELECT EXISTS (SELECT 1 FROM backups WHERE ${isStoredBackup("backups")} AND (service_metadata = ${prefix}
        OR ((id = ${id}::uuid OR parent_id = ${id}::uuid) AND NOT EXISTS (SELECT FROM squashed))))
      OR EXISTS (SELECT 1 FROM squashed s JOIN operations o ON o.backup_id IS NOT NULL AND ${isLiveOperation("o")}
        AND o.created_at <= s.at)
      OR EXISTS (SELECT 1 FROM squashed s JOIN image_transfers t ON t.stored_backup_id IS NOT NULL AND t.ended_at IS NULL
        AND t.created_at <= s.at)
      OR EXISTS (SELECT 1 FROM backups WHERE deleted_at > now() - ${graceMs} * interval '1 millisecond'
        AND (id = ${id}::uuid OR service_metadata = ${prefix}))
      OR EXISTS (SELECT 1 FROM operations o WHERE o.backup_id IN (
          SELECT ${id}::uuid UNION SELECT b.id FROM backups b WHERE b.service_metadata = ${prefix})
        AND (${isLiveOperation("o")} OR o.finished_at > now() - ${graceMs} * interval '1 millisecond'
          OR EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id
            AND t.state IN ('ready', 'dispatched', 'running', 'blocked')))) AS used,
      EXISTS (SELECT 1 FROM backups WHERE deleted_at IS NOT NULL AND undelete_until IS NULL AND repository = ${repository}
        AND container = ${container} AND service_metadata = ${prefix})
        OR EXISTS (SELECT FROM squashed) AS deleted`;
  if (!row || row.used) return "kept";
  return whole && !row.deleted ? "unknown" : "orphan";
}

/**
 * Checks the rows once more and, if the place is still an orphan, marks it for removal: from then on, until the operation ends, no import
 * takes its objects over. A backup's id is never reused, and no rescan runs, so nothing else can come to refer to them.
 *
 * @returns false when the objects are needed after all
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
    const live = await tx.operation.count({ where: { id: operation.id, state: liveStates } });
    if (live === 0) throw new OperationEndedError(operation.id);
    const { container, prefix } = place;
    await tx.condemnedPlace.createMany({
      data: [{ container, prefix, operationId: operation.id }],
      skipDuplicates: true,
    });
    return true;
  });
}

/**
 * Whether an image transfer of that id, or an operation involving one of these ids (its own, a backup's, a volume's, a snapshot's) may still be at work, or was within the
 * grace period.
 */
export async function areBusy(database: Database, ids: readonly string[], graceMs: number): Promise<boolean> {
  const wanted = [...ids];
  const [row] = await database.$queryRaw<{ busy: boolean }[]>`
    SELECT EXISTS (SELECT 1 FROM operations o
        WHERE (o.id = ANY(${wanted}::uuid[]) OR o.backup_id = ANY(${wanted}::uuid[]) OR o.volume_id = ANY(${wanted}::uuid[]))
        AND (${isLiveOperation("o")} OR o.finished_at > now() - ${graceMs} * interval '1 millisecond'
          OR EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id
            AND t.state IN ('ready', 'dispatched', 'running', 'blocked'))
          OR EXISTS (SELECT 1 FROM operations p WHERE p.id = o.parent_id AND ${isLiveOperation("p")})))
      OR EXISTS (SELECT 1 FROM operations o WHERE ${isLiveOperation("o")}
        AND (o.snapshot_id = ANY(${wanted}::uuid[]) OR o.plan->'source'->>'id' = ANY(${wanted}::text[])))
      OR EXISTS (SELECT 1 FROM image_transfers t WHERE t.id = ANY(${wanted}::uuid[])
        AND (t.ended_at IS NULL OR t.ended_at > now() - ${graceMs} * interval '1 millisecond')) AS busy`;
  return row?.busy ?? true;
}

/**
 * Whether a volume's or snapshot's file has no owner any more: its row existed and is gone, or it was a temporary snapshot of a backup that
 * has ended; one that bears the id of a backup is kept with it, see \`thaw\` of the engine's contract. A file that this database has never known is left alone: it may belong to another service, or to a database that was lost.
 */
export async function isForgottenFile(
  database: Database,
  kind: "volume" | "snapshot",
  id: string,
  graceMs: number,
): Promise<boolean> {
  const [row] = await database.$queryRaw<{ kept: boolean; known: boolean }[]>`
    SELECT EXISTS (SELECT 1 FROM volumes WHERE id = ${id}::uuid) OR EXISTS (SELECT 1 FROM snapshots WHERE id = ${id}::uuid)
      OR EXISTS (SELECT 1 FROM backups WHERE id = ${id}::uuid AND ${isStoredBackup("backups")} AND status <> 'error')
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
    SELECT ${isEndedOperation("o")} AND o.finished_at <= now() - ${graceMs} * interval '1 millisecond'
      AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id
        AND t.state IN ('ready', 'dispatched', 'running', 'blocked')) AS ended
    FROM operations o WHERE o.kind = 'backup-create' AND o.plan->'source'->>'id' = ${id}
      AND o.plan->'source'->>'temporary' = 'true'`;
  return takers.length > 0 && takers.every((taker) => taker.ended);
}

/** Target folders of all exports, including those that failed. */
export async function exportFolders(database: Database): Promise<string[]> {
  const rows = await database.$queryRaw<{ folder: string }[]>`
    SELECT DISTINCT regexp_replace(input->>'path', '/[^/]*$', '') AS folder FROM operations WHERE kind = 'volume-export'`;
  return rows.map(({ folder }) => folder || "/");
}

/**
 * Operations that ended before this time have no leftovers in any configured volume backend that the reaper has not looked for; null if it
 * has not been in one of them. Passes whose operations have been removed do not count any more.
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
 * Anything written since this time is young: by the database's clock or this host's, whichever is behind, since either may be wrong, and
 * what counts as old is removed.
 */
export async function graceBegan(database: Database, { graceMs }: ReapInput): Promise<Date> {
  const [row] = await database.$queryRaw<{ at: Date }[]>`SELECT now() - ${graceMs}::float8 * interval '1 ms' AS at`;
  if (!row) throw new Error("no time");
  return new Date(Math.min(row.at.getTime(), Date.now() - graceMs));
}

/** Containers named for backups of a repository, whether these still exist or not. */
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
