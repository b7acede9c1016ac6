import type { AnswerOf, BodyOf, RestoreCheck } from "@tephra/wire";
import { type Command, InvalidArgumentError, Option } from "commander";
import { addTransferOptions, type TransferOptions } from "./disks.ts";
import { addFilesCommands } from "./files.ts";
import { resolveId } from "./names.ts";
import { formatBytes, formatSeconds, renderFields, renderTable } from "./output.ts";
import { addOvirtOptions, openOvirtSession } from "./ovirt.ts";
import { addWaitOptions, openSession } from "./session.ts";
import { downloadTo } from "./transfer-bytes.ts";
import { OperationFailedError } from "./wait.ts";

interface Backup {
  id: string;
  name: string | null;
  description: string | null;
  status: string;
  volume_id: string;
  snapshot_id: string | null;
  container: string | null;
  /** GiB. */
  size: number;
  object_count: number;
  is_incremental: boolean;
  has_dependent_backups: boolean;
  fail_reason: string | null;
  created_at: string;
}

export function addBackupCommands(program: Command): void {
  const backup = program.command("backup").description("Backups of volumes.");
  addWaitOptions(backup.command("create"))
    .description("back up a volume")
    .argument("<volume>", "id or name")
    .option("--name <name>")
    .option("--description <text>")
    .option("--container <name>", "The container in the repository.")
    .option("--incremental", "Back up only what changed since the latest backup.")
    .option("--force", "Also while the volume is in use.")
    .option("--snapshot <snapshot>", "Back up from an existing snapshot (id or name).")
    .action(create);
  backup.command("list").description("all backups of the project").action(list);
  backup.command("show").argument("<backup>", "id or name").action(show);
  addWaitOptions(backup.command("delete")).argument("<backup>", "id or name").action(remove);
  backup
    .command("hold")
    .description("Nobody deletes the backup before this time, not even by force.")
    .argument("<backup>", "id or name")
    .requiredOption("--until <time>", "ISO 8601, such as 2027-01-31 or 2027-01-31T12:00:00Z")
    .requiredOption("--reason <text>")
    .action(hold);
  backup.command("release").description("End a hold.").argument("<backup>", "id or name").action(release);
  backup
    .command("deleted")
    .description("Deleted backups that can be brought back.")
    .option("--volume <volume>", "only of this volume (id)")
    .action(listDeleted);
  backup
    .command("undelete")
    .description("Bring back a deleted backup, with the deleted ones that it builds on.")
    .argument("<id>")
    .action(undelete);
  backup
    .command("purge")
    .description("Remove a deleted backup before its delay is over. Only admins may.")
    .argument("<id>")
    .action(purge);
  addWaitOptions(backup.command("restore"))
    .description("Restore a backup to a new volume or overwrite an existing one.")
    .argument("<backup>", "id or name")
    .option("--volume <volume>", "the volume to overwrite (id or name)")
    .option("--name <name>", "name of the new volume")
    .option("--check", "Say whether it would work, and start nothing. Exits with status 1 if it would not.")
    .action(restore);
  backup
    .command("chain")
    .description("What it builds on, what builds on that, and what a restore of it reads.")
    .argument("<backup>", "id or name")
    .action(chain);
  addWaitOptions(backup.command("verify"))
    .description("Verify that a backup can be restored. With --wait, exits with status 1 if it is damaged.")
    .argument("<backup>", "id or name")
    .addOption(
      new Option(
        "--mode <mode>",
        "quick: listings and sizes; deep: every byte and hash; drill: a restore test whose result is discarded",
      )
        .choices(["quick", "deep", "drill"])
        .default("quick"),
    )
    .action(verify);
  addWaitOptions(backup.command("squash"))
    .description(
      "Make a full backup of an incremental one and what it builds on, without reading its volume. What is not needed any more is deleted.",
    )
    .argument("<backup>", "id or name")
    .action(squash);
  addTransferOptions(addOvirtOptions(backup.command("download")))
    .description("Write the bytes of a backup to a new file, from where it is stored, as a user of oVirt's API.")
    .argument("<backup>", "id or name")
    .argument("<path>", "a new file")
    .action(download);
  addFilesCommands(backup, "backup");
}

interface CreateOptions {
  name?: string;
  description?: string;
  container?: string;
  incremental?: boolean;
  force?: boolean;
  snapshot?: string;
}

async function create(reference: string, options: CreateOptions, command: Command): Promise<void> {
  const { client, settle } = openSession(command);
  const { name, description, container, snapshot } = options;
  const { backup } = await client.post<{ backup: Backup }>(client.block("/backups"), {
    backup: {
      volume_id: await resolveId(client, "volume", reference),
      name: name ?? null,
      description: description ?? null,
      container: container ?? null,
      incremental: options.incremental === true,
      force: options.force === true,
      snapshot_id: snapshot === undefined ? null : await resolveId(client, "snapshot", snapshot),
    },
  });
  await settle({ kind: "backup-create", backup_id: backup.id });
  await print(command, backup.id);
}

async function list(_options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const backups = await client.listAll<Backup>(client.block("/backups/detail"), "backups");
  const rows = backups.map((backup) => [
    backup.id,
    backup.name,
    backup.status,
    backup.is_incremental ? "incremental" : "full",
    backup.volume_id,
    backup.size,
    backup.object_count,
    backup.created_at,
  ]);
  write({ backups }, renderTable(["ID", "NAME", "STATUS", "KIND", "VOLUME", "GiB", "OBJECTS", "CREATED"], rows));
}

async function show(reference: string, _options: object, command: Command): Promise<void> {
  const { client } = openSession(command);
  await print(command, await resolveId(client, "backup", reference));
}

async function download(reference: string, path: string, options: TransferOptions, command: Command): Promise<void> {
  const { client } = openSession(command);
  const session = openOvirtSession(command);
  const id = await resolveId(client, "backup", reference);
  const request = { subject: { backup: { id } }, path, format: options.format, patienceMs: options.timeout * 1_000 };
  const bytes = await downloadTo(session.api, request);
  session.print({ backup: { id, path, bytes } }, renderFields({ id, path, bytes }));
}

async function remove(reference: string, _options: object, command: Command): Promise<void> {
  const { client, waiting, settle, print: write } = openSession(command);
  const id = await resolveId(client, "backup", reference);
  await client.delete(client.block(`/backups/${id}`));
  const path = `/ops/deleted-backups?id=${id}`;
  const { backups } = await client.get<AnswerOf<"GET /ops/deleted-backups">>(path);
  const [hidden] = backups.filter((backup) => !backup.removing);
  if (hidden !== undefined) {
    const { undelete_until } = hidden;
    const fields = { id, status: "deleted", "undelete until": undelete_until };
    return write({ backup: { id, status: "deleted", undelete_until } }, renderFields(fields));
  }
  await settle({ kind: "backup-delete", backup_id: id });
  const status = waiting === null ? "deleting" : "deleted";
  write({ backup: { id, status } }, renderFields({ id, status }));
}

async function hold(reference: string, options: { until: string; reason: string }, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const id = await resolveId(client, "backup", reference);
  const until = parseTime(options.until);
  const shown = await client.put<AnswerOf<"PUT /ops/backups/:id/hold">>(`/ops/backups/${id}/hold`, {
    hold: { until, reason: options.reason },
  });
  write(shown, renderFields({ id, "held until": until, reason: options.reason }));
}

function parseTime(text: string): string {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) throw new InvalidArgumentError(`--until: ${text} is no time in ISO 8601.`);
  return time.toISOString();
}

async function release(reference: string, _options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const id = await resolveId(client, "backup", reference);
  await client.delete(`/ops/backups/${id}/hold`);
  write({ backup: { id, hold: null } }, renderFields({ id, "held until": null }));
}

async function listDeleted(options: { volume?: string }, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const search = new URLSearchParams({ limit: "1000", ...(options.volume && { volume_id: options.volume }) });
  const { backups } = await client.get<AnswerOf<"GET /ops/deleted-backups">>(`/ops/deleted-backups?${search}`);
  const rows = backups.map((backup) => [
    ...[backup.id, backup.name, backup.volume_id, backup.data_timestamp, backup.deleted_at],
    backup.removing ? "being removed" : backup.undelete_until,
  ]);
  write({ backups }, renderTable(["ID", "NAME", "VOLUME", "DATA OF", "DELETED", "UNDELETE UNTIL"], rows));
}

async function undelete(id: string, _options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const shown = await client.post<AnswerOf<"POST /ops/backups/:id/undelete">>(`/ops/backups/${id}/undelete`, {});
  const others = shown.backups.map((backup) => backup.id).filter((other) => other !== id);
  write(shown, renderFields({ id, status: "available", "with it": others.join(", ") || null }));
}

async function purge(id: string, _options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  await client.delete(`/ops/deleted-backups/${id}`);
  write({ backup: { id, status: "deleting" } }, renderFields({ id, status: "deleting" }));
}

interface Restore {
  backup_id: string;
  volume_id: string;
  volume_name: string | null;
}

async function restore(
  reference: string,
  options: { volume?: string; name?: string; check?: boolean },
  command: Command,
): Promise<void> {
  const { client, waiting, settle, print: write } = openSession(command);
  const id = await resolveId(client, "backup", reference);
  const volume_id = options.volume === undefined ? null : await resolveId(client, "volume", options.volume);
  if (options.check === true) {
    const query = volume_id === null ? "" : `?volume_id=${volume_id}`;
    const told = await client.get<RestoreCheck>(`/ops/backups/${id}/restore-check${query}`);
    if (told.verdict === "no") process.exitCode = 1;
    return write(told, renderCheck(told));
  }
  const body = { restore: { volume_id, name: options.name ?? null } };
  const accepted = await client.post<{ restore: Restore }>(client.block(`/backups/${id}/restore`), body);
  // Found by volume: once available, a backup may be restored again, but a volume belongs to a single restore.
  await settle({ kind: "backup-restore", volume_id: accepted.restore.volume_id });
  const fields = {
    backup: id,
    volume: accepted.restore.volume_id,
    "volume name": accepted.restore.volume_name,
    state: waiting === null ? "accepted" : "restored",
  };
  write(accepted, renderFields(fields));
}

async function chain(reference: string, _options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const id = await resolveId(client, "backup", reference);
  const told = await client.get<AnswerOf<"GET /ops/backups/:id/chain">>(`/ops/backups/${id}/chain`);
  const rows = told.members.map((member) => [
    member.read ? "yes" : "no",
    `${"  ".repeat(Math.min(member.depth, 8))}${member.id}`,
    member.kind,
    member.data_timestamp,
    member.stored_bytes === null ? null : formatBytes(member.stored_bytes),
    member.sound ? "yes" : "no",
    member.proof?.at,
    member.damage,
  ]);
  const { restore } = told;
  const text = restore
    ? `A restore reads ${restore.members} of them: ${restore.objects} objects, ${formatBytes(restore.stored_bytes)}.\n`
    : "It cannot be restored: something that it builds on is gone.\n";
  write(told, `${renderTable(["READ", "ID", "KIND", "DATA OF", "STORED", "SOUND", "PROVEN", "DAMAGE"], rows)}${text}`);
}

const okWords = new Map([
  [true, "yes"],
  [false, "no"],
  [null, "not known"],
]);

function renderCheck({ verdict, checks, estimate, ahead }: RestoreCheck): string {
  const { seconds, bytes, basis } = estimate;
  const rows = checks.map(({ code, ok, text }) => [code, okWords.get(ok), text]);
  const time = seconds === null ? `not known: ${basis}` : `about ${formatSeconds(seconds)} (${basis})`;
  const fields = {
    "would it work": verdict,
    time,
    bytes: bytes === null ? null : formatBytes(bytes),
    "tasks before it": ahead,
  };
  return `${renderFields(fields)}\n${renderTable(["CHECK", "WELL", "WHY"], rows)}`;
}

async function verify(
  reference: string,
  options: BodyOf<"POST /ops/backups/:id/verify"> & object,
  command: Command,
): Promise<void> {
  const { client, settle, print: write } = openSession(command);
  const backup = await resolveId(client, "backup", reference);
  const accepted = await client.post<AnswerOf<"POST /ops/backups/:id/verify">>(`/ops/backups/${backup}/verify`, {
    mode: options.mode,
  });
  await settle({ id: accepted.operation.id });
  const shown = await client.get<AnswerOf<"GET /ops/operations/:id">>(`/ops/operations/${accepted.operation.id}`);
  const { id, state, result } = shown.operation;
  const found = result !== undefined && "verify" in result ? result.verify : undefined;
  const { objects, blocks, damaged = [], affected = [] } = found ?? {};
  if (damaged.length > 0) {
    const what = damaged.map(({ object, reason }) => `${object}: ${reason}`).join("; ");
    const others = affected.length > 0 ? ` Backups that build on it: ${affected.join(", ")}.` : "";
    throw new OperationFailedError(`backup ${backup} is damaged: ${what}.${others}`, shown.operation);
  }
  const verdict = result === undefined ? null : "no damage was found";
  write(shown, renderFields({ operation: id, backup, mode: options.mode, state, objects, blocks, verdict }));
}

async function squash(reference: string, _options: object, command: Command): Promise<void> {
  const { client, settle, print: write } = openSession(command);
  const backup = await resolveId(client, "backup", reference);
  const accepted = await client.post<AnswerOf<"POST /ops/backups/:id/squash">>(`/ops/backups/${backup}/squash`, {});
  await settle({ id: accepted.operation.id });
  const shown = await client.get<AnswerOf<"GET /ops/operations/:id">>(`/ops/operations/${accepted.operation.id}`);
  const { id, state, result } = shown.operation;
  const made = result !== undefined && "squash" in result ? result.squash : undefined;
  const { objects, taken_bytes: taken, merged_bytes, merged } = made ?? {};
  const fields = { operation: id, backup, state, objects, "taken bytes": taken, "merged bytes": merged_bytes };
  write(shown, renderFields({ ...fields, merged: merged?.join(", ") }));
}

async function print(command: Command, id: string): Promise<void> {
  const { client, print: write } = openSession(command);
  const { backup } = await client.get<{ backup: Backup }>(client.block(`/backups/${id}`));
  const { backup: health } = await client.get<AnswerOf<"GET /ops/backups/:id">>(`/ops/backups/${id}`);
  const fields = {
    id: backup.id,
    name: backup.name,
    status: backup.status,
    "fail reason": backup.fail_reason,
    kind: backup.is_incremental ? "incremental" : "full",
    "has dependents": backup.has_dependent_backups,
    volume: backup.volume_id,
    snapshot: backup.snapshot_id,
    size: `${backup.size} GiB`,
    objects: backup.object_count,
    container: backup.container,
    description: backup.description,
    created: backup.created_at,
    verified: health.verified_at === null ? null : `${health.verified_at} (${health.verified_mode})`,
    damage: health.damage,
    "held until": health.hold === null ? null : `${health.hold.until} (${health.hold.reason})`,
    "damaged parents": health.damaged_parents.map((parent) => parent.id).join(", ") || null,
  };
  write({ backup, health }, renderFields(fields));
}
