import { type Command, InvalidArgumentError, Option } from "commander";
import { renderFields, renderTable } from "./output.ts";
import { addOvirtOptions, findNamed, listItems, type Named, type OvirtSession, openOvirtSession } from "./ovirt.ts";
import { addWaitOptions, positiveInteger } from "./session.ts";
import { downloadTo, type TransferRequest, uploadFrom } from "./transfer-bytes.ts";
import { OperationFailedError, waitForStatus } from "./wait.ts";

/** As oVirt's API writes it in JSON: all values are texts. */
interface Disk extends Named {
  status: string;
  format: string;
  provisioned_size: string;
  description?: string;
  backup: string;
  storage_domains: { storage_domain: { id: string }[] };
}

const disks = { path: "/disks", item: "disk", shown: "disk" };

export function addDiskCommands(program: Command): void {
  const disk = addOvirtOptions(program.command("disk")).description("Disks in bytes, by oVirt's API.");
  disk.command("list").description("all disks of the user's project").action(list);
  disk.command("show").argument("<disk>", "id or name").action(show);
  addWaitOptions(disk.command("create"))
    .description("Create an empty disk.")
    .requiredOption("--size <bytes>", "in whole sectors of 512 bytes", positiveInteger)
    .addOption(formatOption("Of its image in the storage.").makeOptionMandatory())
    .option("--name <name>")
    .option("--description <text>")
    .action(create);
  addWaitOptions(disk.command("delete")).argument("<disk>", "id or name").action(remove);
  addTransferOptions(disk.command("download"))
    .description("Write a disk's bytes to a new file.")
    .argument("<disk>", "id or name")
    .argument("<path>", "a new file")
    .action(download);
  addTransferOptions(disk.command("upload"))
    .description("Write a file's bytes to a disk that no running machine has.")
    .argument("<path>")
    .argument("<disk>", "id or name")
    .action(upload);
}

const formatOption = (text: string): Option => new Option("--format <format>", text).choices(["raw", "cow"]);

/** For commands that move bytes. */
export const addTransferOptions = (command: Command): Command =>
  command
    .addOption(formatOption("Of the file: raw bytes as a guest sees them, or the image itself.").default("raw"))
    .option(
      "--timeout <seconds>",
      "Give up when the disk is not ready, or not released, after this long.",
      seconds,
      300,
    );

function seconds(text: string): number {
  const value = Number(text);
  if (!(value > 0) || !Number.isFinite(value)) throw new InvalidArgumentError("It must be a number above 0.");
  return value;
}

const find = ({ api }: OvirtSession, reference: string): Promise<Disk> => findNamed<Disk>(api, disks, reference);

async function list(_options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const found = await listItems<Disk>(session.api, disks.path, disks.item);
  session.print(
    { disks: found },
    renderTable(
      ["ID", "NAME", "STATUS", "FORMAT", "BYTES"],
      found.map(({ id, name, status, format, provisioned_size: size }) => [id, name, status, format, Number(size)]),
    ),
  );
}

async function show(reference: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  print(session, await find(session, reference));
}

/** The disk as it is when nothing is being done to it any more; null when there is none. */
async function settled(session: OvirtSession, id: string): Promise<Disk | null> {
  const path = `/disks/${id}`;
  if (session.waiting === null) return session.api.get<Disk>(path);
  const read = (signal: AbortSignal): Promise<Disk> => session.api.getPatiently<Disk>(path, signal);
  return waitForStatus(read, { ...session.waiting, pending: ["locked"] });
}

interface NewDisk {
  size: number;
  format: string;
  name?: string;
  description?: string;
}

async function create({ size, format, name, description }: NewDisk, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const { id } = await session.api.post<Disk>("/disks", {
    provisioned_size: size,
    format,
    ...(name === undefined ? {} : { name }),
    ...(description === undefined ? {} : { description }),
  });
  const disk = await settled(session, id);
  if (disk === null || disk.status === "illegal") throw new OperationFailedError("the disk could not be created", null);
  print(session, disk);
}

async function remove(reference: string, _options: object, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const { id } = await find(session, reference);
  await session.api.delete(`/disks/${id}`);
  if (session.waiting !== null && (await settled(session, id)) !== null) {
    throw new OperationFailedError("the disk could not be deleted", null);
  }
  const status = session.waiting === null ? "locked" : "deleted";
  session.print({ disk: { id, status } }, renderFields({ id, status }));
}

export type TransferOptions = Pick<TransferRequest, "format"> & { timeout: number };

async function download(reference: string, path: string, options: TransferOptions, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const { id } = await find(session, reference);
  const request = { subject: { disk: { id } }, path, format: options.format, patienceMs: options.timeout * 1_000 };
  const bytes = await downloadTo(session.api, request);
  session.print({ disk: { id, path, bytes } }, renderFields({ id, path, bytes }));
}

async function upload(path: string, reference: string, options: TransferOptions, command: Command): Promise<void> {
  const session = openOvirtSession(command);
  const { id } = await find(session, reference);
  const request = { subject: { disk: { id } }, path, format: options.format, patienceMs: options.timeout * 1_000 };
  const bytes = await uploadFrom(session.api, request);
  session.print({ disk: { id, path, bytes } }, renderFields({ id, path, bytes }));
}

function print(session: OvirtSession, disk: Disk): void {
  const fields = {
    id: disk.id,
    name: disk.name,
    status: disk.status,
    format: disk.format,
    bytes: disk.provisioned_size,
    backup: disk.backup,
    "storage domain": disk.storage_domains.storage_domain.map(({ id }) => id).join(", "),
    description: disk.description,
  };
  session.print({ disk }, renderFields(fields));
}
