import { type Config, repositoryNamed } from "../config.ts";
import { type Database, inTransaction, lockRepository, type Transaction } from "../db/database.ts";
import { liveStates, storedBackups } from "../db/live.ts";
import { OperationEndedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { documents } from "../queue/documents.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { needToRead } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { addFoundBackups } from "../rows/backups.ts";
import { chargeQuota, lockQuotas } from "../rows/quotas.ts";
import { assertNoneRuns } from "./reap.ts";

/** Rows entered in one transaction: the quota rows of their projects stay locked for its duration. */
const batchRows = 200;

/** A backup as the repository describes it. Everything else about it was in the database alone, and is lost. */
export type FoundBackup = Pick<
  Backup,
  | "id"
  | "volumeId"
  | "parentId"
  | "name"
  | "description"
  | "sizeGib"
  | "volumeBytes"
  | "storedBytes"
  | "objectCount"
  | "blockBytes"
  | "container"
  | "serviceMetadata"
  | "service"
  | "encryptionKeyId"
  | "createdAt"
> & {
  /** The volume's project, if the backup names it. */
  projectId: string | null;
  userId: string | null;
  /** Why it cannot be restored; null when it looks complete. */
  problem: string | null;
};

/** The result of a rescan; the operation's `result`. */
export interface RescanResult {
  /** Backups in the repository. */
  found: number;
  /** Rows that were not there before. */
  entered: number;
  /** Backups that cannot be restored or entered; at most a hundred. */
  problems: { id: string; problem: string }[];
  /** What could not be read in the repository. At most a hundred. */
  passed_over: string[];
}

/**
 * Accepts the rebuilding of a repository's catalogue from its objects alone. Every backup goes to `projectId`, or, when that is null, to
 * the project that it names, else to the caller's.
 *
 * @throws NotFoundError for a repository that is not configured; InvalidError while a reaper is at work there
 */
export async function requestRescan(
  database: Database,
  config: Config,
  principal: Principal,
  request: { repository: string; projectId: string | null },
): Promise<{ id: string }> {
  const id = await inTransaction(database, (tx) => requestRescanWithin(tx, config, principal, request));
  return { id };
}

/** @returns the operation's id @throws as requestRescan */
export async function requestRescanWithin(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: { repository: string; projectId: string | null },
): Promise<string> {
  const { name } = repositoryNamed(config, request.repository);
  await lockRepository(tx, name);
  await assertNoneRuns(tx, name, ["repository-reap"]);
  return startOperation(tx, principal, {
    kind: "repository-rescan",
    projectId: principal.projectId,
    input: {
      repository: name,
      projectId: request.projectId,
      ownProjectId: principal.projectId,
      userId: principal.userId,
    },
    task: { kind: "rescan-repository", needs: [needToRead(name)] },
  });
}

/**
 * Enters backups that have no row yet, parents first, and charges them to their projects, above the limits if need be: the backups exist. A
 * live row stays as it is, and objects that a live row refers to are not entered again. Idempotent.
 *
 * @returns how many rows were entered
 */
export async function enterBackups(
  database: Database,
  config: Config,
  operation: TaskOperation,
  found: readonly FoundBackup[],
): Promise<number> {
  let entered = 0;
  for (let from = 0; from < found.length; from += batchRows) {
    const rows = found.slice(from, from + batchRows).map((backup) => rowOf(config, operation, backup));
    entered += await inTransaction(database, (tx) => enterRows(tx, operation, rows));
  }
  return entered;
}

function rowOf(config: Config, operation: TaskOperation, { problem, ...backup }: FoundBackup) {
  const input = documents.rescanInput(operation.input);
  return {
    ...backup,
    projectId: input.projectId ?? backup.projectId ?? input.ownProjectId,
    userId: backup.userId ?? input.userId,
    repository: input.repository,
    host: config.hostName,
    availabilityZone: repositoryNamed(config, input.repository).zone,
    status: problem === null ? ("available" as const) : ("error" as const),
    failReason: problem?.slice(0, 255) ?? null,
    dataTimestamp: backup.createdAt,
    updatedAt: new Date(),
  };
}

async function enterRows(
  tx: Transaction,
  operation: TaskOperation,
  rows: readonly ReturnType<typeof rowOf>[],
): Promise<number> {
  await lockRepository(tx, documents.rescanInput(operation.input).repository);
  // An operation that was given up may have a worker that does not know of it yet, and a reaper may have followed it.
  const live = await tx.operation.count({ where: { id: operation.id, state: liveStates } });
  if (live === 0) throw new OperationEndedError(operation.id);
  await lockQuotas(
    tx,
    rows.map((r) => r.projectId),
  );
  const places = rows.flatMap((r) => r.serviceMetadata ?? []);
  const repository = rows[0]?.repository ?? "";
  const taken = await tx.backup.findMany({
    where: { repository, serviceMetadata: { in: places }, ...storedBackups },
    select: { container: true, serviceMetadata: true },
  });
  const occupied = new Set(taken.map((t) => `${t.container}/${t.serviceMetadata}`));
  const free = rows.filter((r) => !occupied.has(`${r.container}/${r.serviceMetadata}`));
  // A tombstone that is younger than the rescan was made while the repository was being read.
  await tx.backup.deleteMany({
    where: { id: { in: free.map((r) => r.id) }, deletedAt: { lt: operation.createdAt }, undeleteUntil: null },
  });
  const inserted = await addFoundBackups(tx, free);
  for (const projectId of new Set(inserted.map((row) => row.projectId))) {
    const own = inserted.filter((row) => row.projectId === projectId);
    const gigabytes = own.reduce((sum, row) => sum + row.sizeGib, 0);
    await chargeQuota(tx, projectId, { backups: own.length, backup_gigabytes: gigabytes });
  }
  return inserted.length;
}

export async function finishRescan(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  rescan: RescanResult,
): Promise<void> {
  await inTransaction(database, (tx) => completeOperation(tx, operation, result, { result: { ...rescan } }));
}

/** What was entered stays: the next rescan continues from there. */
