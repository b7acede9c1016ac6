import { readFile } from "node:fs/promises";
import {
  decodeExportRecord,
  describeBackup,
  type ImportRecord,
  InvalidRecordError,
  keepRecord,
  locateRecord,
  parseRecordText,
  type Repository,
  type RescannedBackup,
  recordOf,
  rescan,
  serviceMatches,
  toldContainer,
} from "@tephra/engine";
import { type Output, UsageError } from "./output.ts";
import {
  findChain,
  type NamedRepository,
  notePassedOver,
  openNamedRepository,
  prepareRepository,
} from "./repository.ts";

/** Prints the record with which Cinder or this service can import a backup. */
export async function exportCommand(
  options: NamedRepository & { backup: string },
  output: Output,
  signal: AbortSignal,
): Promise<void> {
  await using repository = await openNamedRepository(options);
  const rescanned = (await rescan(repository, signal, notePassedOver(output))).find(
    ({ backup }) => backup.reference.backupId === options.backup,
  );
  if (rescanned === undefined) throw new UsageError(`There is no backup ${options.backup} in the repository.`);
  const record = recordOf(repository, rescanned);
  if (record === null) throw new InvalidRecordError(`the backup cannot be read: ${rescanned.problem}`);
  output.result({ export_record: record }, [record.backup_url]);
}

interface ImportOptions extends NamedRepository {
  record: string;
  service?: string;
  dryRun?: boolean;
}

/**
 * Imports a record that was exported elsewhere: validates it, examines the backup that it names, prints what a restore would give, and
 * stores the record in the repository, so that `restore --backup` finds the backup by the record's id.
 */
export async function importCommand(options: ImportOptions, output: Output, signal: AbortSignal): Promise<void> {
  await using repository = await openNamedRepository(options);
  const { service: stated, url } = parseRecordText(await readRecord(options.record));
  const record = decodeExportRecord(url);
  checkService(repository, options.service ?? stated ?? record.service);
  const reference = await locateRecord(record, repository);
  const backup = await describeBackup(reference, signal);
  const problem = backup.problem ?? recordProblem(record, backup.objects);
  const keep = options.dryRun !== true && backup.problem === null;
  if (keep) {
    await prepareRepository(repository, options.repository, output);
    await keepRecord(repository, url, { signal, fence: () => {} });
  }
  const chain = keep ? (await findChain(repository, record.id, signal)).references.map((each) => each.backupId) : null;
  const view = {
    id: record.id,
    volume_id: backup.volumeId,
    parent_id: record.parentId,
    container: toldContainer(reference.container),
    prefix: record.prefix,
    name: record.name,
    volume_bytes: backup.volumeBytes,
    objects: backup.objects,
    chain,
    problem,
    kept: keep,
  };
  if (problem !== null) output.note(`Warning: ${problem}`);
  output.result({ import: view }, [
    `Backup ${record.id}: ${backup.volumeBytes} bytes in ${backup.objects} objects under ${view.container}/${record.prefix}`,
    keep ? `It can be restored: restore --backup ${record.id}` : "Nothing was kept.",
  ]);
  if (backup.problem !== null) throw new InvalidRecordError(`what it names cannot be restored: ${backup.problem}`);
}

/** Rebuilds the catalogue of a repository: every backup with its chain and record, parents first. */
export async function rescanCommand(options: NamedRepository, output: Output, signal: AbortSignal): Promise<void> {
  await using repository = await openNamedRepository(options);
  const backups = await rescan(repository, signal, notePassedOver(output));
  const lines = backups.map(({ backup, chain, problem }) => {
    const state = problem ?? `chain of ${chain.length}, ${backup.volumeBytes} bytes`;
    return `${backup.reference.backupId}  ${backup.createdAt ?? "?"}  volume ${backup.volumeId ?? "?"}  ${state}`;
  });
  const view = (rescanned: RescannedBackup): Record<string, unknown> => ({
    id: rescanned.backup.reference.backupId,
    volume_id: rescanned.backup.volumeId,
    parent_id: rescanned.backup.parentId,
    chain: rescanned.chain,
    created_at: rescanned.backup.createdAt,
    volume_bytes: rescanned.backup.volumeBytes,
    objects: rescanned.backup.objects,
    problem: rescanned.problem,
    export_record: recordOf(repository, rescanned),
  });
  output.result({ rescan: backups.map(view) }, lines.length > 0 ? lines : ["No backups."]);
}

function checkService(repository: Repository, stated: string | null): void {
  if (stated === null || serviceMatches(stated, repository.service)) return;
  throw new InvalidRecordError(
    `it belongs to service ${JSON.stringify(stated.slice(0, 200))}, this repository is ${repository.service}`,
  );
}

function recordProblem(record: ImportRecord, objects: number): string | null {
  return record.objects === objects ? null : `the record counts ${record.objects} objects, the backup has ${objects}`;
}

/** Records are small; a much larger file is something else. */
const recordFileBytesMax = 4 * 1024 * 1024;

async function readRecord(path: string): Promise<string> {
  if (path !== "-") {
    const text = await readFile(path, "utf8").catch((error: unknown) => {
      throw new UsageError(`The record ${path} cannot be read.`, { cause: error });
    });
    return text.length > recordFileBytesMax ? tooLarge() : text;
  }
  let text = "";
  for await (const chunk of process.stdin.setEncoding("utf8")) {
    text += chunk;
    if (text.length > recordFileBytesMax) tooLarge();
  }
  return text;
}

function tooLarge(): never {
  throw new InvalidRecordError(`it is longer than ${recordFileBytesMax} bytes`);
}
