import { readFile, writeFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import type { AnswerOf, BodyOf } from "@tephra/wire";
import type { Command } from "commander";
import { resolveId } from "./names.ts";
import { formatBytes, renderFields, renderTable } from "./output.ts";
import { addWaitOptions, openSession } from "./session.ts";

/** The record with which one service imports another's backup. */
interface BackupRecord {
  backup_service: string;
  backup_url: string;
}

/** The input is not a record; no request was sent. */
export class RecordError extends Error {
  readonly code = "bad_record";
}

export function addRecordCommands(program: Command): void {
  const backup = program.commands.find((command) => command.name() === "backup") ?? program.command("backup");
  backup
    .command("export")
    .description("Print the record with which another Tephra or Cinder can import a backup.")
    .argument("<backup>", "id or name")
    .option("--output <file>", "write it to a new file")
    .action(exportRecord);
  addWaitOptions(backup.command("import"))
    .description("Import a backup whose objects are in the repository from its record. Import parents first.")
    .argument("<record>", "a file as `export` writes it, or - for standard input")
    .action(importRecord);
  const repository = program.command("repository").description("Repositories, where backups are stored.");
  repository
    .command("list")
    .description("What is stored in each, and which workers reach it (admins and observers only).")
    .action(listRepositories);
  addWaitOptions(repository.command("reap"))
    .description("Remove what is no longer needed: objects of deleted backups, and leftovers of failed operations.")
    .argument("<repository>", "its configured name")
    .option("--dry-run", "Only report what would be removed.")
    .action(reap);
  addWaitOptions(repository.command("rescan"))
    .description("Add every backup in a repository that the service does not know, after the loss of the database.")
    .argument("<repository>", "its configured name")
    .option("--to-project <id>", "The project that owns all of them (default: the project recorded in each).")
    .action(rescan);
}

async function listRepositories(_options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { repositories } = await client.get<AnswerOf<"GET /ops/repositories">>("/ops/repositories");
  const rows = repositories.map((repository) => [
    repository.name,
    repository.driver,
    repository.state,
    repository.reached_by.length,
    repository.backups,
    formatBytes(repository.bytes),
    formatBytes(repository.stored_bytes),
    repository.unreachable_from.map(({ worker, why }) => `${worker}: ${why}`).join("; ") || null,
  ]);
  const head = ["NAME", "DRIVER", "STATE", "WORKERS", "BACKUPS", "BYTES", "STORED", "NOT REACHED BY"];
  print({ repositories }, renderTable(head, rows));
}

async function exportRecord(reference: string, options: { output?: string }, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const id = await resolveId(client, "backup", reference);
  const document = await client.get<{ "backup-record": BackupRecord }>(client.block(`/backups/${id}/export_record`));
  if (options.output === undefined) return print(document, `${JSON.stringify(document)}\n`);
  await writeFile(options.output, `${JSON.stringify(document)}\n`, { flag: "wx" });
  print(document, renderFields({ id, record: options.output }));
}

async function importRecord(path: string, _options: object, command: Command): Promise<void> {
  const { client, print, settle } = openSession(command);
  const record = parseRecord(path === "-" ? await text(process.stdin) : await readFile(path, "utf8"));
  const body = { "backup-record": record };
  const { backup } = await client.post<{ backup: { id: string } }>(client.block("/backups/import_record"), body);
  await settle({ kind: "backup-import", backup_id: backup.id });
  const shown = await client.get<{ backup: { id: string; name: string | null; status: string } }>(
    client.block(`/backups/${backup.id}`),
  );
  const { id, name, status } = shown.backup;
  print(shown, renderFields({ id, name, status }));
}

/** The output of `export`, or only the record inside it. */
function parseRecord(input: string): BackupRecord {
  let value: unknown;
  try {
    value = JSON.parse(input);
  } catch (cause) {
    throw new RecordError("The record is not valid JSON.", { cause });
  }
  const outer = (value as { "backup-record"?: unknown } | null)?.["backup-record"] ?? value;
  const { backup_service: service, backup_url: url } = (outer ?? {}) as Partial<BackupRecord>;
  if (typeof service !== "string" || typeof url !== "string") {
    throw new RecordError("The record has no backup_service and backup_url.");
  }
  return { backup_service: service, backup_url: url };
}

async function reap(name: string, options: { dryRun?: boolean }, command: Command): Promise<void> {
  const { client, print, settle } = openSession(command);
  const path = `/ops/repositories/${encodeURIComponent(name)}/reap`;
  const accepted = await client.post<AnswerOf<"POST /ops/repositories/:name/reap">>(path, {
    dry_run: options.dryRun === true,
  } satisfies BodyOf<"POST /ops/repositories/:name/reap">);
  await settle({ id: accepted.operation.id });
  const shown = await client.get<AnswerOf<"GET /ops/operations/:id">>(`/ops/operations/${accepted.operation.id}`);
  const { id, state, result: ended } = shown.operation;
  const result = ended !== undefined && "removed" in ended ? ended : undefined;
  const verb = result?.dry_run ? "would go" : "gone";
  const names = (result?.names ?? []).map((each, index) => [`${verb} ${index + 1}`, each]);
  const unknown = (result?.unknown ?? []).map((each, index) => [`unknown ${index + 1}`, each]);
  const listed = [...names, ...unknown, ...passedOver(result)];
  const fields = { operation: id, state, ...result?.removed, ...Object.fromEntries(listed) };
  print(shown, renderFields(fields));
}

/** Places that the worker is not allowed to read, and which are left unchanged. */
const passedOver = (result: { passed_over?: string[] | undefined } | undefined): [string, string][] =>
  (result?.passed_over ?? []).map((place, index) => [`passed over ${index + 1}`, place]);

async function rescan(name: string, options: { toProject?: string }, command: Command): Promise<void> {
  const { client, print, settle } = openSession(command);
  const body: BodyOf<"POST /ops/repositories/:name/rescan"> = { project_id: options.toProject ?? null };
  const path = `/ops/repositories/${encodeURIComponent(name)}/rescan`;
  const accepted = await client.post<AnswerOf<"POST /ops/repositories/:name/rescan">>(path, body);
  await settle({ id: accepted.operation.id });
  const shown = await client.get<AnswerOf<"GET /ops/operations/:id">>(`/ops/operations/${accepted.operation.id}`);
  const { id, state, result: ended } = shown.operation;
  const result = ended !== undefined && "found" in ended ? ended : undefined;
  const problems = (result?.problems ?? []).map((each) => [each.id, each.problem]);
  const fields = { operation: id, state, found: result?.found, entered: result?.entered };
  print(shown, renderFields({ ...fields, ...Object.fromEntries([...problems, ...passedOver(result)]) }));
}
