import type { Command } from "commander";
import { addFilesCommands } from "./files.ts";
import { resolveId } from "./names.ts";
import { renderFields, renderTable } from "./output.ts";
import { addWaitOptions, openSession } from "./session.ts";
import { waitForStatus } from "./wait.ts";

interface Snapshot {
  id: string;
  name: string | null;
  description: string | null;
  status: string;
  volume_id: string;
  size: number;
  created_at: string;
}

export function addSnapshotCommands(program: Command): void {
  const snapshot = program.command("snapshot").description("Snapshots of volumes.");
  addWaitOptions(snapshot.command("create"))
    .argument("<volume>", "id or name")
    .option("--name <name>")
    .option("--force", "Also while the volume is in use.")
    .action(create);
  snapshot.command("list").description("all snapshots of the project").action(list);
  snapshot.command("show").argument("<snapshot>", "id or name").action(show);
  addWaitOptions(snapshot.command("delete")).argument("<snapshot>", "id or name").action(remove);
  addFilesCommands(snapshot, "snapshot");
}

async function create(reference: string, options: { name?: string; force?: boolean }, command: Command): Promise<void> {
  const { client, waiting, settle } = openSession(command);
  const volume_id = await resolveId(client, "volume", reference);
  const { snapshot } = await client.post<{ snapshot: Snapshot }>(client.block("/snapshots"), {
    snapshot: { volume_id, name: options.name ?? null, ...(options.force === true ? { force: true } : {}) },
  });
  // The operation has the progress and the reason; with several concurrent snapshots it may belong to another one, so the status is
  // checked too.
  await settle({ kind: "snapshot-create", volume_id });
  if (waiting !== null) {
    const read = (signal: AbortSignal) => readSnapshot(command, snapshot.id, signal);
    await waitForStatus(read, { ...waiting, pending: ["creating"] });
  }
  await print(command, snapshot.id);
}

async function list(_options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const snapshots = await client.listAll<Snapshot>(client.block("/snapshots/detail"), "snapshots");
  const rows = snapshots.map((snapshot) => [
    snapshot.id,
    snapshot.name,
    snapshot.status,
    snapshot.volume_id,
    snapshot.size,
    snapshot.created_at,
  ]);
  write({ snapshots }, renderTable(["ID", "NAME", "STATUS", "VOLUME", "GiB", "CREATED"], rows));
}

async function show(reference: string, _options: object, command: Command): Promise<void> {
  const { client } = openSession(command);
  await print(command, await resolveId(client, "snapshot", reference));
}

async function remove(reference: string, _options: object, command: Command): Promise<void> {
  const { client, waiting, print: write } = openSession(command);
  const id = await resolveId(client, "snapshot", reference);
  await client.delete(client.block(`/snapshots/${id}`));
  if (waiting !== null) {
    const read = (signal: AbortSignal) => readSnapshot(command, id, signal);
    await waitForStatus(read, { ...waiting, pending: ["deleting"] });
  }
  const status = waiting === null ? "deleting" : "deleted";
  write({ snapshot: { id, status } }, renderFields({ id, status }));
}

async function print(command: Command, id: string): Promise<void> {
  const { client, print: write } = openSession(command);
  const { snapshot } = await client.get<{ snapshot: Snapshot }>(client.block(`/snapshots/${id}`));
  const fields = {
    id: snapshot.id,
    name: snapshot.name,
    status: snapshot.status,
    volume: snapshot.volume_id,
    size: `${snapshot.size} GiB`,
    description: snapshot.description,
    created: snapshot.created_at,
  };
  write({ snapshot }, renderFields(fields));
}

async function readSnapshot(command: Command, id: string, signal: AbortSignal): Promise<Snapshot> {
  const { client } = openSession(command);
  return (await client.getPatiently<{ snapshot: Snapshot }>(client.block(`/snapshots/${id}`), signal)).snapshot;
}
