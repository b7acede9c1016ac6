import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { randomBytesOf } from "../../kit/bytes.ts";
import { type CephPool, startCephPool } from "../../kit/ceph-pool.ts";
import { childrenOf } from "../../kit/children-of.ts";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project } from "../../kit/journey.ts";
import { times } from "../../kit/long.ts";
import { type Random, randomFrom } from "../../kit/random.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const base = `/v3/${project}`;
/** Set TEPHRA_TEST_SEED to repeat a run. */
const firstSeed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(3).readUIntLE(0, 3));
/** Short leases, so that a takeover is a matter of seconds. */
const brisk = {
  worker: { slots: 2, lease_ms: 4_000, heartbeat_ms: 800, drain_ms: 1_000 },
  tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
};
/** Of backups, where nothing else is said. */
const usualObjectBytes = 50 * MiB;

let cluster: CephPool;
let home: string;
beforeAll(async () => {
  cluster = await startCephPool();
  home = await mkdtemp(join(tmpdir(), "tephra-rbd-service-"));
});
afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]();
  await rm(home, { recursive: true, force: true });
});

/** A service whose volumes are images of a namespace of their own. */
interface CephService extends AsyncDisposable {
  instance: Instance;
  user: Journey;
  /** Runs `rbd` as admin in the namespace. */
  rbd(verb: string[], ...more: string[]): Promise<string>;
  /** Writes to a volume as a machine does that has it open. */
  write(volume: string, offset: number, bytes: Buffer): Promise<void>;
  /** What Ceph's own tool says a volume, or a snapshot of one, contains. */
  exported(volume: string, snapshot?: string): Promise<string>;
  snapshot(volume: string): Promise<string>;
  images(): Promise<string[]>;
}

/** `path`: of a folder whose programs the workers run instead of others. `objectBytes`: where it is not the usual length. */
async function startService({ path, objectBytes }: { path?: string; objectBytes?: number } = {}): Promise<CephService> {
  const { ceph, environment, keyring } = cluster;
  const namespace = randomUUID();
  await ceph.run("rbd", "namespace", "create", `volumes/${namespace}`);
  const backend = { name: "ceph", driver: "rbd", pool: "volumes", namespace, conf: ceph.conf, user: "tephra", keyring };
  const quotas = { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1 };
  const config = { ...brisk, range_bytes: 256 * MiB, volume_backends: [backend], quotas };
  const env = path === undefined ? environment : { ...environment, PATH: `${path}:${environment["PATH"]}` };
  const repository = objectBytes === undefined ? {} : { object_bytes: objectBytes };
  const instance = await startInstance({ config, env, repository });
  const user = journeyOn(instance, { patienceMs: 240_000 });
  const place = ["--pool=volumes", `--namespace=${namespace}`];
  const rbd: CephService["rbd"] = (verb, ...more) => ceph.run("rbd", ...verb, ...place, ...more);
  return {
    instance,
    user,
    rbd,
    write: async (volume, offset, bytes) => {
      const file = { driver: "rbd", pool: "volumes", namespace, image: `volume-${volume}`, conf: ceph.conf };
      const image = `json:${JSON.stringify({ driver: "raw", file })}`;
      const data = join(home, randomUUID());
      await writeFile(data, bytes);
      await run("qemu-io", "-c", `write -s ${data} ${offset} ${bytes.length}`, image);
      await rm(data);
    },
    exported: async (volume, snapshot) => {
      const file = join(home, randomUUID());
      const of = snapshot === undefined ? [] : [`--snap=snapshot-${snapshot}`];
      await rbd(["export", "--no-progress"], `--image=volume-${volume}`, ...of, `--path=${file}`);
      return file;
    },
    snapshot: async (volume) => {
      const made = await user.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: volume, force: true } });
      await user.settled("snapshots", made.snapshot.id, "available");
      return made.snapshot.id;
    },
    images: async () => JSON.parse(await rbd(["ls", "--format=json"])),
    [Symbol.asyncDispose]: () => instance[Symbol.asyncDispose](),
  };
}

async function run(program: string, ...args: string[]): Promise<string> {
  const env = { ...process.env, ...cluster.environment };
  return (await promisify(execFile)(program, args, { env, timeout: 120_000 })).stdout;
}

/** By qemu-img, which reads no data where there are holes in both. */
const expectSame = (one: string, other: string): Promise<string> =>
  run("qemu-img", "compare", "-f", "raw", "-F", "raw", one, other);

/** Bytes of the volume that a backup has read, as its tasks have counted. */
async function bytesRead({ instance }: CephService, backup: string): Promise<number> {
  const [{ bytes }] = await instance.sql(
    `SELECT sum((report ->> 'bytesRead')::float8) AS bytes FROM tasks JOIN operations ON operations.id = operation_id
     WHERE backup_id = $1 AND tasks.kind = 'copy'`,
    [backup],
  );
  return bytes;
}

/** What is there but the index of snapshots and images that wait until their last user has gone. */
async function expectNoImages({ instance, images }: CephService, { retired }: { retired: boolean }): Promise<void> {
  const left = async () =>
    (await images()).filter((name) => name !== "tephra-snapshots" && !(retired && name.startsWith("retired-")));
  await instance.waitFor(async () => (await left()).length === 0, { what: "no image is left", timeoutMs: 60_000 });
}

it("an incremental of 64 MiB that were changed of 4 GiB reads these, 1 % of the rest, and each backup is restored exactly", {
  timeout: 2_400_000,
}, async () => {
  await using service = await startService();
  const { user, write } = service;
  const volume = await user.createVolume(4);
  for (let n = 0; n < 16; n++) await write(volume, n * 256 * MiB, randomBytesOf(`first ${n}`, 8 * MiB));
  const first = await service.snapshot(volume);
  const full = await user.backUp(volume, { snapshot_id: first });
  const before = await service.exported(volume, first);
  const random = randomFrom(firstSeed);
  // Within what was written before: where there was nothing, Ceph tells of its object from the beginning.
  const places = Array.from({ length: 16 }, (_, n) => n * 256 * MiB + random((8 - 4) * 32) * 32 * KiB);
  for (const [n, place] of places.entries()) await write(volume, place, randomBytesOf(`second ${n}`, 4 * MiB));
  const second = await service.snapshot(volume);
  const incremental = await user.backUp(volume, { snapshot_id: second, incremental: true });
  const after = await service.exported(volume, second);
  // Of each object's length, 1 % of what is said to be unchanged, rounded up to a block.
  const samples = 0.01 * 4 * GiB + (4 * GiB * 32 * KiB) / usualObjectBytes;
  const read = await bytesRead(service, incremental);
  process.stderr.write(`seed ${firstSeed}: ${(read / MiB).toFixed(1)} MiB read of 4 GiB, 64 MiB of them changed\n`);
  expect(read).toBeGreaterThanOrEqual(64 * MiB);
  expect(read).toBeLessThanOrEqual(64 * MiB + samples);

  const restored = await user.restore(incremental);
  await expectSame(await service.exported(restored), after);
  await write(restored, 100 * MiB, randomBytesOf("third", MiB));
  await user.restore(full, restored);
  await expectSame(await service.exported(restored), before);
  for (const id of [first, second]) await user.accepted("DELETE", `${base}/snapshots/${id}`);
  await user.expectQuiet();
  for (const id of [restored, volume]) await user.accepted("DELETE", `${base}/volumes/${id}`);
  await user.expectQuiet();
  await expectNoImages(service, { retired: false });
});

describe("a worker is lost", () => {
  /** The worker that runs is stopped, and another one, killed at that point, does what is begun; then a third goes on. */
  async function killedAt<T>({ instance }: CephService, point: string, begin: () => Promise<T>): Promise<T> {
    for (const worker of instance.workers) if (worker.running()) await worker.stop();
    const mark = randomUUID();
    const doomed = await instance.startWorker({ ...crashAt(point), TEST_MARK: mark });
    const begun = await begin();
    await instance.waitFor(() => !doomed.running(), { what: `the worker died at ${point}`, timeoutMs: 120_000 });
    await instance.waitFor(async () => (await serversOf(mark)) === 0, {
      what: `no qemu-nbd is left of the worker that died at ${point}`,
      timeoutMs: 2_000,
    });
    await instance.startWorker();
    return begun;
  }

  it("by a kill: backups and restores, to a new volume and in place, are finished by the next one, byte for byte", {
    timeout: 2_400_000,
  }, async () => {
    await using service = await startService({ objectBytes: 4 * MiB });
    const { instance, user, write } = service;
    const volume = await user.createVolume(1);
    await write(volume, 300 * MiB, randomBytesOf("first", 8 * MiB));
    const full = await killedAt(service, "copy:2", () => user.startBackup(volume));
    await user.settled("backups", full, "available");
    const before = await service.exported(volume);
    await write(volume, 302 * MiB, randomBytesOf("second", MiB));
    await write(volume, 900 * MiB, randomBytesOf("third", MiB));
    const after = await service.exported(volume);
    const incremental = await killedAt(service, "plan-backup:1", () => user.startBackup(volume, { incremental: true }));
    await user.settled("backups", incremental, "available");
    const made = await killedAt(service, "restore:2", () => user.startRestore(incremental));
    await user.settled("volumes", made, "available");
    await expectSame(await service.exported(made), after);
    for (const point of ["plan-restore:1", "restore:1", "publish:1"]) {
      await write(made, 500 * MiB, randomBytesOf(point, MiB));
      await killedAt(service, point, () => user.startRestore(full, made));
      await user.settled("volumes", made, "available");
      await expectSame(await service.exported(made), before);
    }
    await expectSame(await service.exported(volume), after);
    await user.expectQuiet();
    for (const id of [volume, made]) await user.accepted("DELETE", `${base}/volumes/${id}`);
    await user.expectQuiet();
    await expectNoImages(service, { retired: true });
    expect(instance.logs()).not.toContain(await keyOf(cluster.keyring));
  });

  it("and is only late: what it still writes reaches no volume that is available", { timeout: 2_400_000 }, async () => {
    await using service = await startService({ objectBytes: 4 * MiB });
    const { instance, user, write } = service;
    const volume = await user.createVolume(1);
    await write(volume, 0, randomBytesOf("late", 24 * MiB));
    const backup = await user.backUp(volume);
    const expected = await service.exported(volume);
    const target = await user.createVolume(1);
    const limit = "/ops/limits/repositories/repository/main";
    const set = await instance.request("PUT", limit, { bytes_per_second: 256 * KiB });
    expect(set.status, set.text).toBe(200);
    const [late] = instance.workers;
    if (late === undefined) throw new Error("there is no worker");
    await user.startRestore(backup, target);
    // One of them has the image of the restore open for writing.
    const begun = async () => (await service.images()).some((name) => name.startsWith("restore-"));
    await instance.waitFor(begun, { what: "the restore has an image", timeoutMs: 60_000 });
    const servers = await instance.waitFor(
      () => {
        const found = childrenOf(late.pid, "qemu-nbd");
        return found.length > 0 && found;
      },
      { what: "it writes", timeoutMs: 60_000 },
    );
    for (const pid of servers) process.kill(pid, "SIGSTOP");
    late.kill("SIGSTOP");
    expect((await instance.request("DELETE", limit)).status).toBe(204);
    const heir = await instance.startWorker();
    await user.settled("volumes", target, "available");
    await expectSame(await service.exported(target), expected);
    const owners = randomBytesOf("owner", 25 * MiB);
    await write(target, 0, owners);
    const now = await service.exported(target);
    for (const pid of servers) process.kill(pid, "SIGCONT");
    late.kill("SIGCONT");
    const given = () => childrenOf(late.pid, "qemu-nbd").every((pid) => !servers.includes(pid));
    await instance.waitFor(given, { what: "the late one has given up", timeoutMs: 60_000 });
    await expectSame(await service.exported(target), now);
    await user.expectQuiet();
    await heir.stop();
  });
});

/** How many qemu-nbd run that were started with this mark in their environment. */
async function serversOf(mark: string): Promise<number> {
  const read = (path: string): Promise<string> => readFile(path, "utf8").catch(() => "");
  let found = 0;
  for (const pid of (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name))) {
    if (!(await read(`/proc/${pid}/cmdline`)).includes("qemu-nbd")) continue;
    if ((await read(`/proc/${pid}/environ`)).includes(mark)) found += 1;
  }
  return found;
}

const keyOf = async (keyring: string): Promise<string> =>
  /key = (\S+)/.exec(await readFile(keyring, "utf8"))?.[1] ?? "no key";

it("an OSD that stops during a backup and is back lets the service finish it", { timeout: 2_400_000 }, async () => {
  await using service = await startService({ objectBytes: 4 * MiB });
  const { instance, user, write } = service;
  const volume = await user.createVolume(1);
  await write(volume, 0, randomBytesOf("osd", 64 * MiB));
  const backup = await user.startBackup(volume);
  const reads = () => instance.workers.some(({ pid }) => childrenOf(pid, "qemu-nbd").length > 0);
  await instance.waitFor(reads, { what: "a worker reads", timeoutMs: 60_000 });
  await cluster.ceph.stopOsd();
  await cluster.ceph.startOsd();
  await user.settled("backups", backup, "available");
  await expectSame(await service.exported(await user.restore(backup)), await service.exported(volume));
});

/** A program `rbd` that leaves out of every list of changes what begins at an offset in the file `lies`. */
async function lyingRbd(folder: string): Promise<void> {
  const real = join((cluster.ceph.environment["PATH"] ?? "").split(":")[0] ?? "", "rbd");
  const script = `#!/bin/sh
case " $* " in
*" diff "*) '${real}' "$@" | awk 'NR == FNR { lies[$1]; next } !($1 in lies)' '${folder}/lies' -; exit ;;
esac
exec '${real}' "$@"
`;
  await writeFile(join(folder, "lies"), "none\n");
  await writeFile(join(folder, "rbd"), script);
  await chmod(join(folder, "rbd"), 0o755);
}

/** Which of the objects that were changed a list leaves out: at least one. */
function leftOut(random: Random, changed: readonly number[]): number[] {
  const sure = random(changed.length);
  return changed.filter((_, n) => n === sure || random(2) === 0);
}

it("a list of changes that leaves out whole objects is noticed every time, and never believed again of that volume", {
  timeout: 1_800_000,
}, async () => {
  const folder = await mkdtemp(join(home, "lying-"));
  await lyingRbd(folder);
  const objectBytes = 4 * MiB;
  await using service = await startService({ path: folder, objectBytes });
  const { user, write } = service;
  const rounds = times({ usual: 3, long: 20 });
  let noticed = 0;
  for (let seed = firstSeed; seed < firstSeed + rounds; seed++) {
    const random = randomFrom(seed);
    await writeFile(join(folder, "lies"), "none\n");
    const volume = await user.createVolume(1);
    await write(volume, 0, randomBytesOf(`first ${seed}`, 32 * MiB));
    await user.backUp(volume, { snapshot_id: await service.snapshot(volume) });
    const changed = Array.from({ length: 8 }, (_, n) => n * objectBytes).filter((_, n) => n === 0 || random(2) === 0);
    for (const offset of changed) await write(volume, offset, randomBytesOf(`${seed} ${offset}`, objectBytes));
    const second = await service.snapshot(volume);
    const lies = leftOut(random, changed);
    await writeFile(join(folder, "lies"), lies.map((offset) => `${offset}\n`).join(""));
    const told = `seed ${seed}: of ${changed.join()} left out ${lies.join()}`;
    const failed = await user.startBackup(volume, { snapshot_id: second, incremental: true });
    const { fail_reason: reason } = (await user.settled("backups", failed, "error")) as { fail_reason?: string };
    expect(reason, told).toContain("does not report all changes");
    noticed += 1;
    const whole = await user.backUp(volume, { snapshot_id: second, incremental: true });
    expect(await bytesRead(service, whole), told).toBeGreaterThanOrEqual(32 * MiB);
    await expectSame(await service.exported(await user.restore(whole)), await service.exported(volume, second));
  }
  process.stderr.write(`seed ${firstSeed}: a falsified diff was noticed in ${noticed} of ${rounds}\n`);
});
