import { ApiError, type Client } from "./client.ts";
import { type BackupRecord, RecordError, recordIn } from "./one-record.ts";
import { waitForOperation } from "./wait.ts";

/** Requests at the same time. */
const concurrency = 4;
const knownText = /already exists in database/;

/** A record with what it says of itself. */
interface Described {
  record: BackupRecord;
  id: string;
  parentId: string | null;
  projectId: string | null;
}

/** What could not be done with a backup, and why. */
interface Problem {
  id: string;
  problem: string;
}

export interface Exported {
  records: BackupRecord[];
  problems: Problem[];
}

export interface Imported {
  imported: string[];
  /** Were there already. */
  known: string[];
  /** Of other projects. */
  passedOver: number;
  problems: Problem[];
}

/** Runs `work` on all, a few at a time. */
async function onEach<Item>(items: readonly Item[], work: (item: Item) => Promise<void>): Promise<void> {
  const left = items.values();
  const lane = async (): Promise<void> => {
    for (const item of left) await work(item);
  };
  await Promise.all(Array.from({ length: concurrency }, lane));
}

/**
 * The records of all backups that the caller sees, of a Tephra or a Cinder. `allProjects`: those of every project, which admins see.
 *
 * @throws ApiError, UnreachableError; what is only wrong with one backup is among the problems
 */
export async function exportAll(client: Client, { allProjects }: { allProjects: boolean }): Promise<Exported> {
  const path = client.block(`/backups/detail${allProjects ? "?all_tenants=1" : ""}`);
  const backups = await client.listAll<{ id: string; created_at: string }>(path, "backups");
  const found = new Map<string, BackupRecord>();
  const problems: Problem[] = [];
  await onEach(backups, async ({ id }) => {
    try {
      const document = await client.get<unknown>(client.block(`/backups/${id}/export_record`));
      found.set(id, recordIn(document));
    } catch (error) {
      problems.push(problemOf(id, error));
    }
  });
  return { records: backups.flatMap(({ id }) => found.get(id) ?? []), problems };
}

function problemOf(id: string, error: unknown): Problem {
  const isOfOne = error instanceof ApiError && error.status < 500 && error.status !== 401;
  if (isOfOne) return { id, problem: error.message };
  throw error;
}

/** Every record in a file as `export --all` writes it, or a JSON list of records. @throws RecordError */
export function parseRecords(input: string): Described[] {
  let value: unknown;
  try {
    value = JSON.parse(input);
  } catch (cause) {
    throw new RecordError("The file is not valid JSON.", { cause });
  }
  const list = (value as { "backup-records"?: unknown } | null)?.["backup-records"] ?? value;
  if (!Array.isArray(list)) throw new RecordError('The file has no list of records ("backup-records").');
  return list.map((each, at) => describeRecord(recordIn(each), at));
}

function describeRecord(record: BackupRecord, at: number): Described {
  const refuse = (cause?: unknown) => new RecordError(`Record ${at + 1} cannot be read.`, { cause });
  let said: { id?: unknown; parent_id?: unknown; project_id?: unknown } | null;
  try {
    said = JSON.parse(Buffer.from(record.backup_url, "base64").toString("utf8"));
  } catch (cause) {
    throw refuse(cause);
  }
  if (typeof said?.id !== "string") throw refuse();
  const textOf = (field: unknown): string | null => (typeof field === "string" ? field.toLowerCase() : null);
  return { record, id: said.id.toLowerCase(), parentId: textOf(said.parent_id), projectId: textOf(said.project_id) };
}

/**
 * Imports all records, each after its parent: one generation after the other is imported and waited for. Repeating it imports what is
 * missing.
 *
 * @throws ApiError, UnreachableError; what is only wrong with one record, and so with what builds on it, is among the problems
 */
export async function importAll(
  client: Client,
  all: readonly Described[],
  { ofProject }: { ofProject: string | null },
): Promise<Imported> {
  const wanted = all.filter(({ projectId }) => ofProject === null || projectId === ofProject);
  const result: Imported = { imported: [], known: [], passedOver: all.length - wanted.length, problems: [] };
  const failed = new Set<string>();
  const fail = (problem: Problem): void => {
    failed.add(problem.id);
    result.problems.push(problem);
  };
  for (const generation of generationsOf(wanted)) {
    const begun: string[] = [];
    await onEach(generation, async ({ record, id, parentId }) => {
      if (parentId !== null && failed.has(parentId)) return fail({ id, problem: "Its parent was not imported." });
      try {
        await client.post(client.block("/backups/import_record"), { "backup-record": record });
        begun.push(id);
      } catch (error) {
        if (error instanceof ApiError && knownText.test(error.message)) result.known.push(id);
        else fail(problemOf(id, error));
      }
    });
    await onEach(begun, async (id) => {
      try {
        await waitForOperation(client, { kind: "backup-import", backup_id: id }, { terminal: null });
        result.imported.push(id);
      } catch (error) {
        if (!(error instanceof Error) || (error as { code?: unknown }).code !== "operation_failed") throw error;
        fail({ id, problem: error.message });
      }
    });
  }
  return result;
}

/** Parents before children. Who names a parent that is not among them is of the first; a circle is one generation, which the service refuses. */
function generationsOf(all: readonly Described[]): Described[][] {
  const generations: Described[][] = [];
  let left = [...all];
  while (left.length > 0) {
    const ids = new Set(left.map(({ id }) => id));
    const ready = left.filter(({ parentId }) => parentId === null || !ids.has(parentId));
    const next = ready.length === 0 ? left : ready;
    generations.push(next);
    const taken = new Set(next);
    left = left.filter((each) => !taken.has(each));
  }
  return generations;
}
