import { readFile, writeFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import type { AnswerOf, BodyOf } from "@tephra/wire";
import type { Command } from "commander";
import { exportAll, importAll, parseRecords } from "./all-records.ts";
import { resolveId } from "./names.ts";
import { type BackupRecord, RecordError, recordIn } from "./one-record.ts";
import { formatBytes, renderFields, renderTable } from "./output.ts";
import { addWaitOptions, openSession } from "./session.ts";

export function addRecordCommands(program: Command): void {
  const backup = program.commands.find((command) => command.name() === "backup") ?? program.command("backup");
  backup
    .command("export")
    .description("Print the record with which another Tephra or Cinder can import a backup.")
    .argument("[backup]", "id or name")
    .option("--output <file>", "write it to a new file")
    .option("--all", "The records of all backups, of a Tephra or a Cinder (--url, --token, --project).")
    .option("--all-projects", "With --all: of every project (admins only).")
    .action(exportRecord);
  addWaitOptions(backup.command("import"))
    .description("Import a backup whose objects are in the repository from its record. Import parents first.")
    .argument("<record>", "a file as `export` writes it, or - for standard input")
    .option(
      "--all",
      "The file has many records, as `export --all` writes it: all are imported, parents first, and waited for.",
    )
    .option("--of-project <id>", "With --all: only those that belonged to that project.")
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
    repository.free_bytes === null ? null : formatBytes(repository.free_bytes),
    repository.full_at,
    repository.unreachable_from.map(({ worker, why }) => `${worker}: ${why}`).join("; ") || null,
  ]);
  const head = [
    "NAME",
    "DRIVER",
    "STATE",
    "WORKERS",
    "BACKUPS",
    "BYTES",
    "STORED",
    "FREE",
    "FULL AT",
    "NOT REACHED BY",
  ];
  print({ repositories }, renderTable(head, rows));
}

interface ExportOptions {
  output?: string;
  all?: boolean;
  allProjects?: boolean;
}

async function exportRecord(reference: string | undefined, options: ExportOptions, command: Command): Promise<void> {
  if (options.all === true) return exportRecords(reference, options, command);
  if (reference === undefined) command.error("error: missing required argument 'backup', or --all");
  const { client, print } = openSession(command);
  const id = await resolveId(client, "backup", reference);
  const document = await client.get<{ "backup-record": BackupRecord }>(client.block(`/backups/${id}/export_record`));
  if (options.output === undefined) return print(document, `${JSON.stringify(document)}\n`);
  await writeFile(options.output, `${JSON.stringify(document)}\n`, { flag: "wx" });
  print(document, renderFields({ id, record: options.output }));
}

async function exportRecords(reference: string | undefined, options: ExportOptions, command: Command): Promise<void> {
  if (reference !== undefined) command.error("error: --all and a backup exclude each other");
  const { client, print } = openSession(command);
  const { records, problems } = await exportAll(client, { allProjects: options.allProjects === true });
  const document = { "backup-records": records };
  const listed = Object.fromEntries(problems.map(({ id, problem }) => [id, problem]));
  if (options.output === undefined) return print({ ...document, problems }, `${JSON.stringify(document)}\n`);
  await writeFile(options.output, `${JSON.stringify(document)}\n`, { flag: "wx" });
  const fields = { exported: records.length, records: options.output, ...listed };
  print({ exported: records.length, problems }, renderFields(fields));
}

async function importRecord(
  path: string,
  options: { all?: boolean; ofProject?: string },
  command: Command,
): Promise<void> {
  const { client, print, settle } = openSession(command);
  const input = path === "-" ? await text(process.stdin) : await readFile(path, "utf8");
  if (options.all === true) {
    const { passedOver, ...result } = await importAll(client, parseRecords(input), {
      ofProject: options.ofProject?.toLowerCase() ?? null,
    });
    const problems = Object.fromEntries(result.problems.map(({ id, problem }) => [id, problem]));
    const [imported, known] = [result.imported.length, result.known.length];
    if (result.problems.length > 0) process.exitCode = 1;
    return print(
      { ...result, passed_over: passedOver },
      renderFields({ imported, "known already": known, "of other projects": passedOver, ...problems }),
    );
  }
  const body = { "backup-record": parseRecord(input) };
  const { backup } = await client.post<{ backup: { id: string } }>(client.block("/backups/import_record"), body);
  await settle({ kind: "backup-import", backup_id: backup.id });
  const shown = await client.get<{ backup: { id: string; name: string | null; status: string } }>(
    client.block(`/backups/${backup.id}`),
  );
  const { id, name, status } = shown.backup;
  print(shown, renderFields({ id, name, status }));
}

function parseRecord(input: string): BackupRecord {
  try {
    return recordIn(JSON.parse(input));
  } catch (cause) {
    if (cause instanceof RecordError) throw cause;
    throw new RecordError("The record is not valid JSON.", { cause });
  }
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
