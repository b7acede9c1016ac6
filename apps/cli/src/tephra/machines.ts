import { writeFileSync } from "node:fs";
import type { Command } from "commander";
import { addTransferOptions, type TransferOptions } from "./disks.ts";
import { chooseByName } from "./names.ts";
import { renderFields, renderTable } from "./output.ts";
import { addOvirtOptions, findNamed, listItems, type Named, type OvirtSession, openOvirtSession } from "./ovirt.ts";
import { addWaitOptions } from "./session.ts";
import { downloadTo } from "./transfer-bytes.ts";
import { OperationFailedError, waitForStatus } from "./wait.ts";

/** As oVirt's API writes them in JSON: all values are texts, times in milliseconds. */
interface Machine extends Named {
  status: string;
  description?: string;
  memory: string;
  cpu: { topology: { sockets: string; cores: string; threads: string } };
  creation_time: string;
  initialization?: { configuration: { data: string } };
}

interface DiskAttachment {
  id: string;
  active: string;
  bootable: string;
  disk: { id: string };
}

interface MachineSnapshot {
  id: string;
  description: string;
  date: string;
  snapshot_status: string;
  snapshot_type: string;
}

interface SnapshotDisk extends Named {
  image_id: string;
}

const machines = { path: "/vms", item: "vm", shown: "virtual machine" };

export function addMachineCommands(program: Command): void {
  const vm = addOvirtOptions(program.command("vm")).description("Virtual machines, by oVirt's API.");
  vm.command("list").description("all virtual machines of the user's project").action(list);
  vm.command("show").argument("<vm>", "id or name").action(show);
  vm.command("ovf")
    .description("Write the configuration, by which the machine can be made again.")
    .argument("<vm>", "id or name")
    .argument("<path>", "a new file")
    .action(writeOvf);
  const snapshot = vm.command("snapshot").description("Snapshots of all disks of a machine at one moment.");
  snapshot.command("list").argument("<vm>", "id or name").action(listSnapshots);
  snapshot
    .command("show")
    .description("A snapshot with its disks.")
    .argument("<vm>", "id or name")
    .argument("<snapshot>", "id, or description that one snapshot has")
    .action(showSnapshot);
  addTransferOptions(snapshot.command("download"))
    .description("Write the bytes of a snapshot's disk to a new file; the machine may run.")
    .argument("<vm>", "id or name")
    .argument("<snapshot>", "id, or description that one snapshot has")
    .argument("<disk>", "id or name")
    .argument("<path>", "a new file")
    .action(download);
  addWaitOptions(snapshot.command("create"))
    .argument("<vm>", "id or name")
    .requiredOption("--description <text>")
    .action(createSnapshot);
  addWaitOptions(snapshot.command("delete"))
    .argument("<vm>", "id or name")
    .argument("<snapshot>", "id, or description that one snapshot has")
    .action(removeSnapshot);
  addWaitOptions(snapshot.command("restore"))
    .description("Take a machine that is off back to a snapshot. Newer ones are deleted.")
    .argument("<vm>", "id or name")
    .argument("<snapshot>", "id, or description that one snapshot has")
    .action(restoreSnapshot);
  addWaitOptions(snapshot.command("preview"))
    .description("Show a machine that is off as it was at a snapshot, until that is committed or undone.")
    .argument("<vm>", "id or name")
    .argument("<snapshot>", "id, or description that one snapshot has")
    .action(previewSnapshot);
  addWaitOptions(snapshot.command("commit"))
    .description("Keep what is previewed. Newer snapshots are deleted.")
    .argument("<vm>", "id or name")
    .action(endPreview("commit"));
  addWaitOptions(snapshot.command("undo"))
    .description("Leave the preview: the machine is again what it was before.")
    .argument("<vm>", "id or name")
    .action(endPreview("undo"));
  vm.command("freeze")
    .description("Freeze the guest's file systems, until they are thawed or the service's limit.")
    .argument("<vm>", "id or name")
    .action(setFrozen("freeze"));
  vm.command("thaw").argument("<vm>", "id or name").action(setFrozen("thaw"));
}

const find = ({ api }: OvirtSession, reference: string): Promise<Machine> =>
  findNamed<Machine>(api, machines, reference);

async function list(_options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const vms = await listItems<Machine>(session.api, machines.path, machines.item);
  session.print(
    { vms },
    renderTable(
      ["ID", "NAME", "STATUS", "MiB"],
      vms.map(({ id, name, status, memory }) => [id, name, status, mebibytes(memory)]),
    ),
  );
}

const mebibytes = (bytes: string): number => Math.round(Number(bytes) / 1024 ** 2);
const timeOf = (ms: string): string => new Date(Number(ms)).toISOString();

async function show(reference: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const vm = await find(session, reference);
  const disks = await listItems<DiskAttachment>(session.api, `/vms/${vm.id}/diskattachments`, "disk_attachment");
  const { sockets, cores, threads } = vm.cpu.topology;
  const fields = {
    id: vm.id,
    name: vm.name,
    status: vm.status,
    description: vm.description,
    memory: `${mebibytes(vm.memory)} MiB`,
    processors: `${sockets} sockets, ${cores} cores, ${threads} threads`,
    disks: disks.map(({ id, bootable }) => (bootable === "true" ? `${id} (bootable)` : id)).join(", "),
    created: timeOf(vm.creation_time),
  };
  session.print({ vm: { ...vm, disk_attachments: disks } }, renderFields(fields));
}

async function writeOvf(reference: string, path: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const { id } = await find(session, reference);
  const { initialization } = await session.api.get<Machine>(`/vms/${id}?all_content=true`);
  writeFileSync(path, initialization?.configuration.data ?? "", { flag: "wx" });
  session.print({ vm: { id, path } }, renderFields({ id, path }));
}

const snapshotsOf = ({ api }: OvirtSession, vm: string): Promise<MachineSnapshot[]> =>
  listItems<MachineSnapshot>(api, `/vms/${vm}/snapshots`, "snapshot");

async function listSnapshots(reference: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const { id } = await find(session, reference);
  const snapshots = await snapshotsOf(session, id);
  session.print(
    { snapshots },
    renderTable(
      ["ID", "DESCRIPTION", "TYPE", "STATUS", "DATE"],
      snapshots.map((each) => [each.id, each.description, each.snapshot_type, each.snapshot_status, timeOf(each.date)]),
    ),
  );
}

/** The snapshot as it is when nothing is being done to it any more; null when there is none. */
async function settled(session: OvirtSession, path: string): Promise<MachineSnapshot | null> {
  if (session.waiting === null) return session.api.get<MachineSnapshot>(path);
  const read = async (signal: AbortSignal) => {
    const snapshot = await session.api.getPatiently<MachineSnapshot>(path, signal);
    return { status: snapshot.snapshot_status, snapshot };
  };
  return (await waitForStatus(read, { ...session.waiting, pending: ["locked"] }))?.snapshot ?? null;
}

async function createSnapshot(
  reference: string,
  { description }: { description: string },
  command: Command,
): Promise<void> {
  const session = openOvirtSession(command);
  const { id } = await find(session, reference);
  const begun = await session.api.post<MachineSnapshot>(`/vms/${id}/snapshots`, { description });
  const snapshot = await settled(session, `/vms/${id}/snapshots/${begun.id}`);
  // One that cannot be taken is removed.
  if (snapshot === null) throw new OperationFailedError("the snapshot could not be taken", null);
  const fields = { id: snapshot.id, description: snapshot.description, status: snapshot.snapshot_status };
  session.print({ snapshot }, renderFields({ ...fields, date: timeOf(snapshot.date) }));
}

/** The path of a machine's snapshot. @throws NameError */
async function findSnapshot(session: OvirtSession, reference: string, chosen: string): Promise<string> {
  const vm = await find(session, reference);
  const named = (await snapshotsOf(session, vm.id)).map(({ id, description }) => ({ id, name: description }));
  return `/vms/${vm.id}/snapshots/${chooseByName("snapshot", chosen, named).id}`;
}

const disksOf = ({ api }: OvirtSession, snapshot: string): Promise<SnapshotDisk[]> =>
  listItems<SnapshotDisk>(api, `${snapshot}/disks`, "disk");

async function showSnapshot(reference: string, chosen: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const path = await findSnapshot(session, reference, chosen);
  const snapshot = await session.api.get<MachineSnapshot>(path);
  const disks = await disksOf(session, path);
  const fields = {
    id: snapshot.id,
    description: snapshot.description,
    status: snapshot.snapshot_status,
    date: timeOf(snapshot.date),
    disks: disks.map(({ id, name }) => (name === id ? id : `${id} (${name})`)).join(", "),
  };
  session.print({ snapshot: { ...snapshot, disks } }, renderFields(fields));
}

async function download(
  reference: string,
  chosen: string,
  disk: string,
  path: string,
  { format, timeout }: TransferOptions,
  command: Command,
): Promise<void> {
  const session = openOvirtSession(command);
  const disks = await disksOf(session, await findSnapshot(session, reference, chosen));
  const { id, image_id: image } = chooseByName("disk of the snapshot", disk, disks);
  const request = { subject: { snapshot: { id: image } }, path, format, patienceMs: timeout * 1_000 };
  const bytes = await downloadTo(session.api, request);
  session.print({ disk: { id, image_id: image, path, bytes } }, renderFields({ id, image, path, bytes }));
}

async function restoreSnapshot(reference: string, chosen: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const path = await findSnapshot(session, reference, chosen);
  const id = path.split("/").at(-1) ?? "";
  const disks = await disksOf(session, path);
  await session.api.post(`${path}/restore`, {});
  const { waiting } = session;
  for (const disk of waiting === null ? [] : disks) {
    const read = (signal: AbortSignal) => session.api.getPatiently<{ status: string }>(`/disks/${disk.id}`, signal);
    const end = waiting && (await waitForStatus(read, { ...waiting, pending: ["locked"] }));
    if (end?.status !== "ok") throw new OperationFailedError(`disk ${disk.id} could not be taken back`, null);
  }
  const status = waiting === null ? "locked" : "restored";
  session.print({ snapshot: { id, status } }, renderFields({ id, status }));
}

async function previewSnapshot(reference: string, chosen: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const path = await findSnapshot(session, reference, chosen);
  const [, , vm, , id = ""] = path.split("/");
  await session.api.post(`/vms/${vm}/previewsnapshot`, { snapshot: { id } });
  const { waiting } = session;
  const end = waiting && (await settled(session, path));
  if (end && end.snapshot_status !== "in_preview") {
    throw new OperationFailedError("the snapshot could not be previewed", null);
  }
  const status = end?.snapshot_status ?? "locked";
  session.print({ snapshot: { id, status } }, renderFields({ id, status }));
}

/** Whether something is kept of what the machine was before a preview. */
const isPreviewing = async ({ api }: OvirtSession, vm: string): Promise<boolean> => {
  const all = await listItems<MachineSnapshot>(api, `/vms/${vm}/snapshots`, "snapshot");
  return all.some(({ snapshot_type: type }) => type === "preview");
};

const endPreview =
  (verb: "commit" | "undo") =>
  async (reference: string, _options: object, command: Command): Promise<void> => {
    const session = openOvirtSession(command);
    const { id } = await find(session, reference);
    await session.api.post(`/vms/${id}/${verb}snapshot`, {});
    const { waiting } = session;
    const read = async (): Promise<{ status: string }> => ({
      status: (await isPreviewing(session, id)) ? "locked" : "ended",
    });
    if (waiting !== null) await waitForStatus(read, { ...waiting, pending: ["locked"] });
    const status = waiting === null ? "locked" : verb === "commit" ? "committed" : "undone";
    session.print({ vm: { id, status } }, renderFields({ id, status }));
  };

const setFrozen =
  (verb: "freeze" | "thaw") =>
  async (reference: string, _options: object, command: Command): Promise<void> => {
    const session = openOvirtSession(command);
    const { id } = await find(session, reference);
    await session.api.post(`/vms/${id}/${verb}filesystems`, {});
    const status = verb === "freeze" ? "frozen" : "thawed";
    session.print({ vm: { id, status } }, renderFields({ id, status }));
  };

async function removeSnapshot(reference: string, chosen: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const path = await findSnapshot(session, reference, chosen);
  const id = path.split("/").at(-1) ?? "";
  await session.api.delete(path);
  if (session.waiting !== null && (await settled(session, path)) !== null) {
    throw new OperationFailedError("the snapshot could not be deleted", null);
  }
  const status = session.waiting === null ? "locked" : "deleted";
  session.print({ snapshot: { id, status } }, renderFields({ id, status }));
}
