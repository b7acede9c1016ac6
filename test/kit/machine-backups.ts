import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { expect } from "vitest";
import { inspectImage } from "../../packages/engine/src/volume/qemu/image-chain.ts";
import { freePort, type Program } from "../../scripts/spawn-program.ts";
import { type Asked, ask, type EngineReply, ovirtUsers } from "../dialects/ovirt/engine.ts";
import { ImageClient } from "./image-client.ts";
import { type Instance, startInstance } from "./instance.ts";
import { installStorageDaemon, type RunningMachine, startMachine } from "./storage-daemon.ts";

const base = "/ovirt-engine/api";

/** A service with oVirt's API, a worker and a server of images, and machines whose disks are qcow2 images. */
export interface BackupWorld {
  readonly instance: Instance;
  /** The first one. */
  readonly imageServer: Program;
  readonly imagesDir: string;
  /** Of the raw disks. */
  readonly filesDir: string;
  /** Where sockets and scratch files are. */
  readonly socketDir: string;
  readonly scratchDir: string;
  /** Settles with what is there once it is as wanted. */
  until(path: string, seen: (json: EngineReply["json"]) => boolean, what: string): Promise<EngineReply["json"]>;
  answered(status: number, method: string, path: string, asked?: Asked): Promise<EngineReply>;
  addDisk(name: string, sizeBytes: number, more?: { format?: "cow" | "raw"; backup?: string }): Promise<string>;
  addMachine(name: string, disks: readonly string[]): Promise<string>;
  /** A hypervisor with disks open, of which the service does not know. */
  start(disks: readonly string[]): Promise<RunningMachine>;
  /** The machine's hypervisor, which the service can reach. */
  run(machine: string, disks: readonly string[]): Promise<RunningMachine>;
  /** Begins a backup. @returns its id */
  begin(machine: string, asked: object): Promise<string>;
  /** Settles when the backup is in that phase. */
  reach(machine: string, backup: string, phase: string): Promise<EngineReply["json"]>;
  /** Begins to download a disk of a backup. */
  open(backup: string, disk: string): Promise<{ id: string; client: ImageClient }>;
  finish(transfer: string): Promise<void>;
  /** Settles when a transfer is in that phase. */
  settled(transfer: string, phase: string): Promise<void>;
  /** Settles when nothing is locked and nothing left of any backup. */
  nothingIsLeft(): Promise<void>;
}

export async function openBackupWorld(
  stack: AsyncDisposableStack,
  options: { config?: Record<string, unknown>; workers?: number } = {},
): Promise<BackupWorld> {
  await installStorageDaemon();
  const dir = await mkdtemp(join(tmpdir(), "tephra-b-"));
  stack.defer(() => rm(dir, { recursive: true, force: true }));
  const [files, images, sockets, scratch] = (await Promise.all(
    ["files-", "images-", "s-", "scratch-"].map((name) => mkdtemp(join(dir, name))),
  )) as [string, string, string, string];
  const paths = { PATH: process.env["PATH"] ?? "", LD_LIBRARY_PATH: process.env["LD_LIBRARY_PATH"] ?? "" };
  const instance = stack.use(
    await startInstance({
      env: paths,
      workers: options.workers ?? 1,
      config: {
        ovirt: { users: ovirtUsers },
        quotas: { volumes: -1, gigabytes: -1, snapshots: -1 },
        volume_backends: [
          { name: "files", driver: "file", path: files },
          { name: "images", driver: "qemu", path: images },
        ],
        instances: { qmp_socket_roots: [dir] },
        image_transfers: { port: await freePort() },
        machine_backups: { socket_dir: sockets, scratch_dir: scratch, reserve_bytes: 0 },
        worker: { heartbeat_ms: 500, lease_ms: 3_000, down_ms: 30_000 },
        tasks: { reconcile_ms: 300 },
        ...options.config,
      },
    }),
  );
  const imageServer = await instance.startTransfer();
  const answered: BackupWorld["answered"] = async (status, method, path, asked = {}) => {
    const headers = { accept: "application/json" };
    const reply = await ask(instance, method, base + path, { headers, ...asked });
    expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(status);
    return reply;
  };
  const until = (path: string, seen: (json: EngineReply["json"]) => boolean, what: string) =>
    instance.waitFor(
      async () => {
        const { json } = await answered(200, "GET", path);
        return seen(json) && json;
      },
      { what, timeoutMs: 60_000 },
    );
  const settled = async (id: string, phase: string): Promise<void> => {
    await until(`/imagetransfers/${id}`, (seen) => seen.phase === phase, `transfer ${id} is ${phase}`);
  };
  const start = async (disks: readonly string[]) =>
    startMachine(
      dir,
      await Promise.all(
        disks.map(async (id) => {
          const disk = { id, path: join(images, `volume-${id}`), format: "qcow2" } as const;
          return { disk, layers: await layersOf(disk.path) };
        }),
      ),
    );
  return {
    instance,
    imageServer,
    imagesDir: images,
    filesDir: files,
    until,
    socketDir: sockets,
    scratchDir: scratch,
    answered,
    addDisk: async (name, sizeBytes, { format = "cow", backup = "incremental" } = {}) => {
      const json = { alias: name, provisioned_size: sizeBytes, format, backup };
      const { id } = (await answered(202, "POST", "/disks", { json })).json;
      await until(`/disks/${id}`, ({ status }) => status === "ok", `disk ${name} is there`);
      return id;
    },
    addMachine: async (name, disks) => {
      const json = { name, cluster: { name: "Default" }, template: { name: "Blank" } };
      const { id } = (await answered(201, "POST", "/vms", { json })).json;
      for (const disk of disks) {
        await answered(201, "POST", `/vms/${id}/diskattachments`, { json: { active: true, disk: { id: disk } } });
      }
      return id;
    },
    start,
    run: async (id, disks) => {
      const running = await start(disks);
      const nbd = join(sockets, `nbd-${id}`);
      // Its server of exports is there already, elsewhere.
      await symlink(running.nbdSocket, nbd);
      const to = "UPDATE instances SET driver = 'qmp', qmp_socket = $2, power_state = $3 WHERE id = $1";
      await instance.sql(to, [id, running.qmpSocket, "ACTIVE"]);
      return {
        ...running,
        [Symbol.asyncDispose]: async () => {
          await running[Symbol.asyncDispose]();
          await instance.sql(to, [id, running.qmpSocket, "SHUTOFF"]);
          await rm(nbd, { force: true });
        },
      };
    },
    begin: async (machine, json) => (await answered(201, "POST", `/vms/${machine}/backups`, { json })).json.id,
    reach: (machine, backup, phase) =>
      until(`/vms/${machine}/backups/${backup}`, (seen) => seen.phase === phase, `backup ${backup} is ${phase}`),
    open: async (backup, disk) => {
      const json = { direction: "download", format: "raw", disk: { id: disk }, backup: { id: backup } };
      const { id } = (await answered(201, "POST", "/imagetransfers", { json })).json;
      const { transfer_url: url } = await until(
        `/imagetransfers/${id}`,
        ({ phase }) => phase === "transferring",
        `transfer ${id} can begin`,
      );
      const client = new ImageClient(url);
      stack.defer(() => client[Symbol.dispose]());
      return { id, client };
    },
    finish: async (id) => {
      await answered(200, "POST", `/imagetransfers/${id}/finalize`, { json: {} });
      await settled(id, "finished_success");
    },
    settled,
    nothingIsLeft: async () => {
      const left = async (): Promise<string> => {
        const [row] = await instance.sql(`SELECT
          (SELECT count(*) FROM machine_backups WHERE ended_at IS NULL OR leftovers)::int AS backups,
          (SELECT count(*) FROM machine_backup_disks WHERE export_socket IS NOT NULL)::int AS exports,
          (SELECT count(*) FROM volumes WHERE machine_backup_id IS NOT NULL OR status = 'backing-up')::int AS locked,
          (SELECT count(*) FROM image_transfers WHERE ended_at IS NULL OR ticket_hash IS NOT NULL)::int AS transfers`);
        const open = readdirSync("/proc").filter((pid) => /^\d+$/.test(pid) && isDaemonIn(pid, sockets));
        return JSON.stringify({
          ...row,
          files: [...readdirSync(sockets), ...readdirSync(scratch)].filter((name) => !name.startsWith("nbd-")),
          open,
        });
      };
      const nothing = JSON.stringify({ backups: 0, exports: 0, locked: 0, transfers: 0, files: [], open: [] });
      let last = "";
      await instance
        .waitFor(
          async () => {
            last = await left();
            return last === nothing;
          },
          { what: "nothing is left", timeoutMs: 20_000 },
        )
        .catch((error: Error) => {
          throw new Error(`${last}\n${error.message}`, { cause: error });
        });
    },
  };
}

/** An image and all that it builds on. */
async function layersOf(path: string): Promise<{ path: string; format: "qcow2" | "raw" }[]> {
  if (path.endsWith(".raw")) return [{ path, format: "raw" }];
  const { backing } = await inspectImage(path);
  return [{ path, format: "qcow2" }, ...(backing === null ? [] : await layersOf(join(dirname(path), backing)))];
}

/** Whether a process is a storage daemon whose sockets are in that folder. */
function isDaemonIn(pid: string, folder: string): boolean {
  try {
    const line = readFileSync(`/proc/${pid}/cmdline`, "utf8");
    return line.includes("qemu-storage-daemon") && line.includes(folder);
  } catch {
    return false;
  }
}

/** What a client keeps of a disk: all of it, or what has changed put on what it had. */
export async function download(client: ImageClient, before: Buffer | null, sizeBytes: number): Promise<Buffer> {
  if (before === null) return client.get(0, sizeBytes);
  const image = Buffer.concat([before, Buffer.alloc(sizeBytes - before.length)]);
  const { status, text } = await client.ask("GET", "/extents?context=dirty");
  expect(status, text).toBe(200);
  for (const { start, length, dirty, zero } of JSON.parse(text)) {
    if (!dirty) continue;
    if (zero) image.fill(0, start, start + length);
    else (await client.get(start, length)).copy(image, start);
  }
  return image;
}
