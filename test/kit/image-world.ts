import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Config,
  type Database,
  getImageTransfer,
  type ImageTransfer,
  type ImageTransferRequest,
  type Principal,
  requestImageTransfer,
} from "@tephra/control";
import { loadConfig, openDatabase } from "@tephra/control/process";
import { openVolumeBackend, type VolumeBackend } from "@tephra/engine";
import { freePort } from "../../scripts/spawn-program.ts";
import { ImageClient } from "./image-client.ts";
import { type Instance, startInstance } from "./instance.ts";
import { waitFor } from "./wait-for.ts";

export const owner: Principal = {
  userId: "u",
  projectId: "p1",
  roles: ["member"],
  isAdmin: false,
  requestId: "req-test",
};

/** A download as `raw` where it does not say otherwise. */
type WorldRequest = Partial<Omit<ImageTransferRequest, "subject">> & ({ volumeId: string } | { snapshotId: string });

/** A service with one server of images, and volumes of any length in both kinds of backends. */
export interface ImageWorld {
  readonly instance: Instance;
  readonly database: Database;
  readonly config: Config;
  readonly backends: Readonly<Record<"files" | "images", VolumeBackend>>;
  /** Where the files of `images` are. */
  readonly imagesDir: string;
  addVolume(backend: "files" | "images", sizeBytes: number): Promise<string>;
  /** A snapshot of a volume as it is now. */
  addSnapshot(backend: "files" | "images", volumeId: string): Promise<string>;
  begin(request: WorldRequest): Promise<ImageTransfer>;
  /** Begins one, and settles when its client may. */
  open(request: WorldRequest): Promise<{ id: string; client: ImageClient }>;
  reach(id: string, phase: string): Promise<ImageTransfer>;
  statusOf(volumeId: string): Promise<string | null>;
  /** The bytes of a volume, as its backend reads them. */
  bytesOf(backend: "files" | "images", volumeId: string): Promise<Buffer>;
}

export async function openImageWorld(
  stack: AsyncDisposableStack,
  options: { env?: Record<string, string>; config?: Record<string, unknown>; images?: Record<string, unknown> } = {},
): Promise<ImageWorld> {
  const dir = await mkdtemp(join(tmpdir(), "tephra-images-"));
  stack.defer(() => rm(dir, { recursive: true, force: true }));
  const files = await mkdtemp(join(dir, "files-"));
  const images = await mkdtemp(join(dir, "qemu-"));
  const given = {
    volume_backends: [
      { name: "files", driver: "file", path: files },
      { name: "images", driver: "qemu", path: images },
    ],
    image_transfers: { port: await freePort(), ...options.images },
    worker: { heartbeat_ms: 500, lease_ms: 2_000, down_ms: 30_000 },
    tasks: { reconcile_ms: 300 },
    ...options.config,
  };
  const instance = stack.use(await startInstance({ api: false, config: given, env: options.env ?? {} }));
  await instance.startTransfer();
  const database = openDatabase(instance.databaseUrl);
  stack.defer(() => database.$disconnect());
  const config = loadConfig({
    DATABASE_URL: instance.databaseUrl,
    REDIS_URL: instance.redisUrl,
    TEPHRA_DATA_DIR: instance.dataDir,
    TEPHRA_CONFIG: join(instance.dataDir, "tephra.yml"),
  });
  const backends = {
    files: await openVolumeBackend({ driver: "file", path: files }),
    images: await openVolumeBackend({ driver: "qemu", path: images }),
  };
  const begin: ImageWorld["begin"] = (request) =>
    requestImageTransfer(database, config, owner, {
      direction: "download",
      format: "raw",
      timeoutPolicy: "legacy",
      inactivityTimeout: null,
      host: null,
      subject: "volumeId" in request ? { volumeId: request.volumeId } : { snapshotId: request.snapshotId },
      ...request,
    });
  const reach: ImageWorld["reach"] = (id, phase) =>
    instance.waitFor(
      async () => {
        const seen = await getImageTransfer(database, config, owner, id);
        return seen.status === phase ? seen : null;
      },
      { what: `transfer ${id} is ${phase}`, timeoutMs: 60_000 },
    );
  return {
    instance,
    database,
    config,
    backends,
    imagesDir: images,
    addVolume: async (backend, sizeBytes) => {
      const id = randomUUID();
      await backends[backend].create(id, sizeBytes);
      const place = { sizeGib: 1, sizeBytes: BigInt(sizeBytes), backend, availabilityZone: "nova" };
      await database.volume.create({ data: { id, projectId: "p1", userId: "u", status: "available", ...place } });
      return id;
    },
    addSnapshot: async (backend, volumeId) => {
      const id = randomUUID();
      const run = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
      const { sizeBytes } = await backends[backend].freeze(volumeId, id, run);
      const row = { id, projectId: "p1", userId: "u", volumeId, status: "available", sizeGib: 1 };
      await database.snapshot.create({ data: { ...row, sizeBytes: BigInt(sizeBytes) } });
      return id;
    },
    begin,
    open: async (request) => {
      const { id } = await begin(request);
      const { url } = await reach(id, "transferring");
      const client = new ImageClient(url ?? "");
      stack.defer(() => client[Symbol.dispose]());
      return { id, client };
    },
    reach,
    statusOf: async (id) => (await database.volume.findUnique({ where: { id } }))?.status ?? null,
    bytesOf: async (backend, volumeId) => {
      await using source = await backends[backend].openSource({ volumeId });
      const bytes = Buffer.alloc(source.sizeBytes);
      await source.read(bytes, 0);
      return bytes;
    },
  };
}

/** Settles when nothing is locked, no ticket is valid, and no draft is left. */
export async function nothingIsLeft({ database, instance }: ImageWorld): Promise<void> {
  const left = async (): Promise<string> => {
    const [live, tickets, locked, read] = await Promise.all([
      database.imageTransfer.count({ where: { endedAt: null } }),
      database.imageTransfer.count({ where: { ticketHash: { not: null } } }),
      database.volume.count({ where: { status: { in: ["uploading", "downloading"] } } }),
      database.snapshot.count({ where: { status: "backing-up" } }),
    ]);
    return [live, tickets, locked, read].join(" ");
  };
  await waitFor(async () => (await left()) === "0 0 0 0", {
    what: "no transfer is live, no ticket valid, no volume and no snapshot locked",
    timeoutMs: 60_000,
    context: instance.logs,
  });
}
