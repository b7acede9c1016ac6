import { execFile } from "node:child_process";
import { mkdtemp } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { DiskExport, MachineDisk } from "@tephra/engine";
import { NbdClient } from "../../packages/engine/src/volume/nbd/nbd-client.ts";
import { provideQemu } from "../../scripts/qemu-package.ts";
import { type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { appears } from "./qemu.ts";
import { installQemuUtils } from "./qemu-utils.ts";

/** Puts qemu-storage-daemon, qemu-img and qemu-io on this process's PATH. */
export async function installStorageDaemon(): Promise<void> {
  await installQemuUtils();
  const utils = process.env["LD_LIBRARY_PATH"];
  const { command, environment } = await provideQemu("qemu-storage-daemon", (line) =>
    process.stderr.write(`${line}\n`),
  );
  process.env["PATH"] = `${dirname(command)}:${process.env["PATH"]}`;
  process.env["LD_LIBRARY_PATH"] = [environment["LD_LIBRARY_PATH"], utils].filter(Boolean).join(":");
}

/** A machine that runs: a storage daemon of its own with the disks open, each exported to its guest under the disk's id. */
export interface RunningMachine extends AsyncDisposable {
  readonly qmpSocket: string;
  readonly nbdSocket: string;
  readonly program: Program;
  /** The guest's access to a disk. */
  guest(diskId: string): Promise<NbdClient>;
}

interface MachineOptions {
  /** A folder in whose place the machine has a file system of its own, of that many bytes: /proc/PID/root leads there. */
  small?: { folder: string; bytes: number };
}

/** `layers`: of each disk, the active one first; the lowest may be raw. */
export async function startMachine(
  dir: string,
  disks: readonly { disk: MachineDisk; layers: readonly Pick<MachineDisk, "path" | "format">[] }[],
  { small }: MachineOptions = {},
): Promise<RunningMachine> {
  const folder = await mkdtemp(join(dir, "m-"));
  const [qmpSocket, nbdSocket, pidFile] = ["q", "n", "pid"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const program = await spawnProgram({
    name: "machine",
    command: small === undefined ? "qemu-storage-daemon" : "unshare",
    args: [
      ...(small === undefined ? [] : inSmall(small)),
      ...["--chardev", `socket,path=${qmpSocket},server=on,wait=off,id=m`, "--monitor", "chardev=m"],
      ...disks.flatMap(({ disk, layers }) => [
        "--blockdev",
        JSON.stringify({ ...nodeOf(layers), "node-name": `d-${disk.id.slice(0, 8)}` }),
      ]),
      ...["--nbd-server", `addr.type=unix,addr.path=${nbdSocket},max-connections=64`],
      ...disks.flatMap(({ disk: { id } }) => [
        "--export",
        `type=nbd,id=g-${id},node-name=d-${id.slice(0, 8)},name=${id},writable=on`,
      ]),
      ...["--pidfile", pidFile],
    ],
    env: process.env as Record<string, string>,
  });
  await appears(pidFile, program);
  return {
    qmpSocket,
    nbdSocket,
    program,
    guest: (diskId) => NbdClient.open({ path: nbdSocket }, diskId, diskId),
    [Symbol.asyncDispose]: async () => void (await program.stop()),
  };
}

/** Needs no rights: a user namespace. */
const inSmall = ({ folder, bytes }: { folder: string; bytes: number }): string[] => [
  ...["-Urm", "sh", "-c", 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"', "sh"],
  ...[String(bytes), folder, "qemu-storage-daemon"],
];

function nodeOf([layer, ...below]: readonly Pick<MachineDisk, "path" | "format">[]): object | null {
  if (layer === undefined) return null;
  const file = { driver: "file", filename: layer.path, discard: "unmap" };
  if (layer.format === "raw") return { driver: "raw", file };
  return { driver: "qcow2", discard: "unmap", file, backing: nodeOf(below) };
}

/** All bytes of an export. */
export async function readExport({ socketPath, name, sizeBytes }: DiskExport): Promise<Buffer> {
  await using client = await NbdClient.open({ path: socketPath }, name, name);
  if (client.sizeBytes !== sizeBytes) throw new Error(`${name} has ${client.sizeBytes} bytes, not ${sizeBytes}`);
  const bytes = Buffer.alloc(sizeBytes);
  await client.read(bytes, 0);
  return bytes;
}

/** The parts of an export that are marked as changed. */
export async function changedParts({
  socketPath,
  name,
  changes,
}: DiskExport): Promise<{ start: number; length: number }[]> {
  const image = `driver=nbd,server.type=unix,server.path=${socketPath},export=${name},x-dirty-bitmap=${changes}`;
  const { stdout } = await promisify(execFile)("qemu-img", ["map", "--output=json", "--image-opts", image]);
  const parts = JSON.parse(stdout) as { start: number; length: number; data: boolean }[];
  return parts.filter(({ data }) => !data); // With x-dirty-bitmap, what is marked is shown as no data.
}

/** An incremental, put on the image that it builds on. */
export async function applyChanges(to: Buffer, from: DiskExport): Promise<Buffer> {
  const image = Buffer.concat([to, Buffer.alloc(from.sizeBytes - to.length)]);
  await using client = await NbdClient.open({ path: from.socketPath }, from.name, from.name);
  for (const { start, length } of await changedParts(from))
    await client.read(image.subarray(start, start + length), start);
  return image;
}
