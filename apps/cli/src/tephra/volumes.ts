import { resolve } from "node:path";
import type { AnswerOf, BodyOf } from "@tephra/wire";
import { type Command, Option } from "commander";
import { ApiError, type Client } from "./client.ts";
import { resolveId } from "./names.ts";
import { formatBytes, renderFields, renderTable } from "./output.ts";
import { addWaitOptions, openSession, positiveInteger } from "./session.ts";

interface Volume {
  id: string;
  name: string | null;
  description: string | null;
  status: string;
  /** GiB, rounded up. */
  size: number;
  /** The exact length; null for callers without permission to query it. */
  bytes?: number | null;
  created_at: string;
  attachments: { server_id: string | null; host_name: string | null }[];
}

export function addVolumeCommands(program: Command): void {
  const volume = program.command("volume").description("Volumes, and their import from and export to files.");
  addWaitOptions(volume.command("create"))
    .description("Create an empty volume.")
    .requiredOption("--size <GiB>", "size in GiB", positiveInteger)
    .option("--name <name>")
    .option("--description <text>")
    .action(create);
  addWaitOptions(volume.command("import"))
    .description("Import a file as a volume.")
    .argument("<path>", "A regular file in one of the service's import_roots.")
    .option("--name <name>")
    .option("--id <uuid>", "The volume's id in earlier backups, on which incremental backups will build.")
    .option("--backend <name>", "With --id: the volume backend (default: the default backend).")
    .action((path: string, options: ImportOptions, command: Command) => importVolume({ ...options, path }, command));
  addWaitOptions(volume.command("adopt"))
    .description(
      "Make a volume of an image or device, which stays where it is, or of a file that lies in a volume backend since before the loss of the database.",
    )
    .argument(
      "[url]",
      "What a volume backend names so: qcow2:/PATH, raw:/PATH or device:/PATH, in the backend's roots.",
    )
    .option("--id <uuid>", "Without an image: the volume's id; its file is volume-<uuid>.")
    .option("--name <name>")
    .option("--backend <name>", "The volume backend (default: the default backend).")
    .action(adopt);
  addWaitOptions(volume.command("export"))
    .description("Export a volume to a new file.")
    .argument("<volume>", "id or name")
    .argument("<path>", "A file in one of the service's import_roots.")
    .option("--overwrite", "Overwrite an existing file.")
    .action(exportFile);
  volume.command("list").description("all volumes of the project").action(list);
  volume.command("show").argument("<volume>", "id or name").action(show);
  volume
    .command("protection")
    .description("How protected volumes are: those without a good backup first, then by its age.")
    .addOption(new Option("--state <state>").choices(["protected", "late", "at risk", "never", "excluded"]))
    .option("--like <text>", "a part of the name, or how the id begins")
    .option("--of-project <id>", "of this project (admins and observers)")
    .option("--policy <id>", "to which this policy applies")
    .option("--backend <name>", "on this volume backend")
    .addOption(new Option("--sort <order>").choices(["age", "name", "size", "stored"]))
    .option("--limit <number>", "", positiveInteger, 100)
    .action(protection);
  volume
    .command("calendar")
    .description(
      "One letter a day, the newest right. R: one can go back to it; p: made, and deleted since; F: failed; M: missed; X: excluded; .: nothing was due.",
    )
    .argument("[volumes...]", "ids or names (default: the least protected ones)")
    .option("--from <day>", "YYYY-MM-DD (default: 34 days before the last one).")
    .option("--to <day>", "The last day (default: today).")
    .option("--timezone <zone>", "Whose days, such as Europe/Berlin.", Intl.DateTimeFormat().resolvedOptions().timeZone)
    .action(calendar);
  volume
    .command("exclude")
    .argument("<volume>", "id or name")
    .description("Leave a volume out of what policies back up, on purpose.")
    .requiredOption("--reason <text>")
    .option("--until <time>", "ISO 8601, such as 2026-12-31T00:00:00Z (default: until it is included again).")
    .action(exclude);
  volume.command("include").argument("<volume>", "id or name").description("Take an exclusion back.").action(include);
  addWaitOptions(volume.command("delete")).argument("<volume>", "id or name").action(remove);
}

interface ProtectionOptions {
  state?: string;
  like?: string;
  ofProject?: string;
  policy?: string;
  backend?: string;
  sort?: string;
  limit: number;
}

async function protection(options: ProtectionOptions, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const { state, like: q, ofProject: project_id, policy: policy_id, backend, sort, limit } = options;
  const filters = Object.entries({ state, q, project_id, policy_id, backend, sort, limit: String(limit) });
  const search = new URLSearchParams(filters.filter((one): one is [string, string] => one[1] !== undefined));
  const answer = await client.get<AnswerOf<"GET /ops/volumes">>(`/ops/volumes?${search}`);
  const rows = answer.volumes.map(
    ({ id, name, points, stored_bytes, protection: { state, last_good, policy, next_at, reason } }) => [
      id,
      name,
      state,
      last_good?.at,
      points,
      formatBytes(stored_bytes),
      policy?.name,
      next_at,
      reason,
    ],
  );
  const states = Object.entries(answer.facets.state).map(([state, number]) => `${number} ${state}`);
  const table = renderTable(["ID", "NAME", "STATE", "LAST GOOD", "POINTS", "STORED", "POLICY", "NEXT", "REASON"], rows);
  write(answer, `${table}${states.join(", ")}\n`);
}

async function calendar(
  references: string[],
  options: { from?: string; to?: string; timezone: string },
  command: Command,
): Promise<void> {
  const { client, print: write } = openSession(command);
  const known = await client.get<AnswerOf<"GET /ops/volumes">>("/ops/volumes?limit=100");
  const ids = await Promise.all(references.map((reference) => resolveId(client, "volume", reference)));
  const asked = ids.length > 0 ? ids : known.volumes.map(({ id }) => id);
  if (asked.length === 0) return write({ volumes: [] }, "There are no volumes.\n");
  const search = new URLSearchParams({ volume_id: asked.join(","), tz: options.timezone });
  if (options.from !== undefined) search.set("from", options.from);
  if (options.to !== undefined) search.set("to", options.to);
  const answer = await client.get<AnswerOf<"GET /ops/protection/days">>(`/ops/protection/days?${search}`);
  const names = new Map(known.volumes.map(({ id, name }) => [id, name]));
  const rows = answer.volumes.map(({ id, days }) => [id, names.get(id), days]);
  write(answer, renderTable(["ID", "NAME", `FROM ${answer.from}`], rows));
}

async function exclude(
  reference: string,
  options: { reason: string; until?: string },
  command: Command,
): Promise<void> {
  const { client, print: write } = openSession(command);
  const id = await resolveId(client, "volume", reference);
  const { reason, until = null } = options;
  const body: BodyOf<"PUT /ops/volumes/:id/exclusion"> = { reason, until };
  const answer = await client.put<AnswerOf<"PUT /ops/volumes/:id/exclusion">>(`/ops/volumes/${id}/exclusion`, body);
  write(answer, renderFields({ id, state: answer.protection.state, reason, until }));
}

async function include(reference: string, _options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const id = await resolveId(client, "volume", reference);
  await client.delete(`/ops/volumes/${id}/exclusion`);
  write({ volume: { id, status: "included" } }, renderFields({ id, status: "included" }));
}

async function create(options: { size: number; name?: string; description?: string }, command: Command): Promise<void> {
  const session = openSession(command);
  const { size, name, description } = options;
  const { volume } = await session.client.post<{ volume: Volume }>(session.client.block("/volumes"), {
    volume: { size, name: name ?? null, description: description ?? null },
  });
  await session.settle({ kind: "volume-create", volume_id: volume.id });
  await print(command, volume.id);
}

async function adopt(image: string | undefined, options: ImportOptions, command: Command): Promise<void> {
  if (image === undefined && options.id === undefined) command.error("error: an image or --id is needed");
  await importVolume({ ...options, ...(image === undefined ? {} : { image }) }, command);
}

interface ImportOptions {
  path?: string;
  image?: string;
  id?: string;
  name?: string;
  backend?: string;
}

async function importVolume({ path, image, id, name, backend }: ImportOptions, command: Command): Promise<void> {
  const { client, ...session } = openSession(command);
  const body: BodyOf<"POST /ops/volumes/import"> = {
    ...(path === undefined ? {} : { path: resolve(path) }),
    ...(image === undefined ? {} : { image }),
    ...(id === undefined ? {} : { id }),
    ...(name === undefined ? {} : { name }),
    ...(backend === undefined ? {} : { backend }),
    ...(client.project === undefined ? {} : { project_id: client.project }),
  };
  const accepted = await client.post<AnswerOf<"POST /ops/volumes/import">>("/ops/volumes/import", body);
  const { operation } = accepted;
  await session.settle({ id: operation.id });
  const begun = await client.get<AnswerOf<"GET /ops/operations/:id">>(`/ops/operations/${operation.id}`);
  const { state } = begun.operation;
  // A volume imported under an existing id exists only once the operation has ended.
  if ((id !== undefined || image !== undefined) && state !== "succeeded") {
    return session.print(begun, renderFields({ operation: operation.id, state, volume: accepted.volume.id }));
  }
  await print(command, begun.operation.volume_id ?? accepted.volume.id, { operation: begun.operation });
}

async function exportFile(
  reference: string,
  path: string,
  { overwrite = false }: { overwrite?: boolean },
  command: Command,
): Promise<void> {
  const { client, ...session } = openSession(command);
  const id = await resolveId(client, "volume", reference);
  const { operation } = await client.post<AnswerOf<"POST /ops/volumes/:id/export">>(`/ops/volumes/${id}/export`, {
    path: resolve(path),
    overwrite,
  } satisfies BodyOf<"POST /ops/volumes/:id/export">);
  await session.settle({ id: operation.id });
  const now = await client.get<AnswerOf<"GET /ops/operations/:id">>(`/ops/operations/${operation.id}`);
  session.print(
    now,
    renderFields({ operation: operation.id, state: now.operation.state, volume: id, path: resolve(path) }),
  );
}

async function list(_options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const volumes = await client.listAll<Volume>(client.block("/volumes/detail"), "volumes");
  const rows = volumes.map((volume) => [volume.id, volume.name, volume.status, volume.size, volume.created_at]);
  write({ volumes }, renderTable(["ID", "NAME", "STATUS", "GiB", "CREATED"], rows));
}

async function show(reference: string, _options: object, command: Command): Promise<void> {
  const { client } = openSession(command);
  await print(command, await resolveId(client, "volume", reference));
}

async function remove(reference: string, _options: object, command: Command): Promise<void> {
  const { client, waiting, ...session } = openSession(command);
  const id = await resolveId(client, "volume", reference);
  await client.delete(client.block(`/volumes/${id}`));
  await session.settle({ kind: "volume-delete", volume_id: id });
  const status = waiting === null ? "deleting" : "deleted";
  session.print({ volume: { id, status } }, renderFields({ id, status }));
}

async function print(command: Command, id: string, more: Record<string, unknown> = {}): Promise<void> {
  const session = openSession(command);
  const { volume } = await session.client.get<{ volume: Volume }>(session.client.block(`/volumes/${id}`));
  const bytes = await exactBytes(session.client, id);
  const users = volume.attachments.map((attachment) => attachment.server_id ?? attachment.host_name);
  const fields = {
    id: volume.id,
    name: volume.name,
    status: volume.status,
    size: `${volume.size} GiB`,
    bytes,
    description: volume.description,
    "attached to": users.join(", "),
    created: volume.created_at,
  };
  session.print({ volume: { ...volume, bytes }, ...more }, renderFields(fields));
}

async function exactBytes(client: Client, id: string): Promise<number | null> {
  try {
    return (await client.get<AnswerOf<"GET /ops/volumes/:id">>(`/ops/volumes/${id}`)).volume.bytes;
  } catch (error) {
    if (error instanceof ApiError && error.status === 403) return null;
    throw error;
  }
}
