import { execFile } from "node:child_process";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type CephPool, startCephPool } from "../../kit/ceph-pool.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const sizeBytes = 6 * MiB;
/** Of each user operation: Ceph, two workers and the database share a small machine. */
const patienceMs = 180_000;

let cluster: CephPool;
beforeAll(async () => {
  cluster = await startCephPool();
});
afterAll(() => cluster?.[Symbol.asyncDispose]());

/** A service whose volumes are images of a pool. Short leases, so that a takeover is a matter of seconds; several ranges. */
async function start(): Promise<Instance> {
  const { ceph, keyring, environment } = cluster;
  const backend = { name: "ceph", driver: "rbd", pool: "volumes", conf: ceph.conf, user: "tephra", keyring };
  const config = {
    volume_backends: [backend],
    range_bytes: 2 * MiB,
    worker: { slots: 2, lease_ms: 3_000, heartbeat_ms: 500, drain_ms: 1_000 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
  };
  return startInstance({ workers: 2, config, env: environment, repository: { object_bytes: 512 * 1024 } });
}

/** What Ceph says is in a volume. */
async function exported(instance: Instance, volume: string): Promise<string> {
  const path = join(instance.dataDir, "exported");
  await rm(path, { force: true });
  await cluster.ceph.run("rbd", "export", `volumes/volume-${volume}`, path);
  return await sha256Of(path);
}

/** As a machine does that opens the volume now. */
async function write(instance: Instance, volume: string, bytes: Buffer, offset: number): Promise<void> {
  const path = join(instance.dataDir, "bytes");
  await writeFile(path, bytes);
  const file = { driver: "rbd", pool: "volumes", image: `volume-${volume}`, conf: cluster.ceph.conf };
  const args = ["-c", `write -s ${path} ${offset} ${bytes.length}`, `json:${JSON.stringify({ driver: "raw", file })}`];
  const env = { ...process.env, ...cluster.environment };
  const { stdout } = await promisify(execFile)("qemu-io", args, { env, timeout: 60_000 });
  if (!stdout.startsWith("wrote ")) throw new Error(stdout);
}

async function importImage(instance: Instance, user: Journey): Promise<{ volume: string; sha256: string }> {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, sizeBytes, [{ offset: MiB, data: randomBytesOf("image", 4 * MiB) }]);
  return { volume: await user.importVolume(image), sha256: await sha256Of(image) };
}

async function remove(instance: Instance, user: Journey, volume: string): Promise<void> {
  const path = `/v3/${project}/volumes/${volume}`;
  await user.accepted("DELETE", path);
  await instance.waitFor(async () => (await instance.request("GET", path)).status === 404, {
    what: `volume ${volume} is gone`,
    timeoutMs: patienceMs,
  });
}

test("a volume is imported, backed up twice while it changes, restored and deleted", { timeout: 600_000 }, async () => {
  await using instance = await start();
  const user = journeyOn(instance, { patienceMs });
  const { volume, sha256 } = await importImage(instance, user);
  const full = await user.backUp(volume);
  await write(instance, volume, randomBytesOf("more", 64 * 1024), 3 * MiB);
  const changed = await exported(instance, volume);
  const next = await user.backUp(volume, { incremental: true });
  await write(instance, volume, randomBytesOf("latest", MiB), 0);
  const before = await user.restore(full);
  expect(await exported(instance, before)).toBe(sha256);
  await user.restore(next, volume);
  expect(await exported(instance, volume)).toBe(changed);
  for (const each of [before, volume]) await remove(instance, user, each);
  await user.expectQuiet();
  const images = JSON.parse(await cluster.ceph.run("rbd", "ls", "--format=json", "volumes"));
  expect(images).toEqual(["tephra-snapshots"]);
});
