import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { provideQemuUtils } from "../../../scripts/qemu-utils-package.ts";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;
/** Short leases, so that a takeover is a matter of seconds. */
const brisk = {
  range_bytes: 2 * MiB,
  worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400, drain_ms: 1_000 },
  tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
};

let images: string;
let users: string;
let env: Record<string, string>;
beforeAll(async () => {
  env = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  images = mkdtempSync(join(tmpdir(), "tephra-images-"));
  users = mkdtempSync(join(tmpdir(), "tephra-users-"));
}, 300_000);
afterAll(() => {
  for (const folder of [images, users]) rmSync(folder, { recursive: true, force: true });
});

const imageOf = (id: string): string => join(images, `volume-${id}`);

/** Runs a program of QEMU, again while the images are in use: layers may be merged at any time, which keeps writers off for a moment. */
async function qemu(command: string, ...args: string[]): Promise<void> {
  for (const until = performance.now() + 20_000; ; await sleep(200)) {
    try {
      await promisify(execFile)(command, args, { env: { ...process.env, ...env }, timeout: 60_000 });
      return;
    } catch (error) {
      if (!(error as Error).message.includes("Is another process using the image") || performance.now() > until)
        throw error;
    }
  }
}

/** Compares a volume with a raw file, by qemu-img. */
async function expectImage(id: string, raw: string): Promise<void> {
  await qemu("qemu-img", "compare", "-f", "qcow2", "-F", "raw", imageOf(id), raw);
}

async function killedAt(instance: Instance, point: string, begin: () => Promise<string>): Promise<string> {
  for (const worker of instance.workers) if (worker.running()) await worker.stop();
  const doomed = await instance.startWorker({ ...env, ...crashAt(point) });
  const id = await begin();
  await instance.waitFor(() => !doomed.running(), { what: `the worker died at ${point}`, timeoutMs: 60_000 });
  await instance.startWorker(env);
  return id;
}

it("keeps, copies, backs up, restores and exports volumes that are qcow2 images, also when workers are killed", {
  timeout: 240_000,
}, async () => {
  const config = { ...brisk, volume_backends: [{ name: "images", driver: "qemu", path: images }] };
  await using instance = await startInstance({ config, env, repository: { object_bytes: MiB / 2 } });
  const user = journeyOn(instance, { patienceMs: 120_000 });
  const raw = join(instance.dataDir, "image.raw");
  const first = randomBytesOf("first", 4 * MiB);
  await writeIslands(raw, 8 * MiB, [{ offset: 2 * MiB, data: first }]);
  const volume = await user.importVolume(raw);
  await expectImage(volume, raw);

  const full = await killedAt(instance, "copy:2", () => user.startBackup(volume));
  await user.settled("backups", full, "available");

  const { snapshot } = await user.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: volume } });
  await user.settled("snapshots", snapshot.id, "available");
  const before = join(instance.dataDir, "before.raw");
  await qemu("cp", raw, before);
  const patch = join(instance.dataDir, "patch");
  await writeIslands(patch, MiB, [{ offset: 0, data: randomBytesOf("second", MiB) }]);
  await qemu("qemu-io", "-f", "qcow2", "-c", `write -s ${patch} 3M 1M`, imageOf(volume));
  await writeIslands(raw, null, [{ offset: 3 * MiB, data: await readFile(patch) }]);
  const incremental = await user.backUp(volume, { incremental: true });

  const clone = await user.accepted("POST", `${base}/volumes`, { volume: { snapshot_id: snapshot.id, size: 1 } });
  await user.settled("volumes", clone.volume.id, "available");
  const copy = await user.accepted("POST", `${base}/volumes`, { volume: { source_volid: volume } });
  await user.settled("volumes", copy.volume.id, "available");
  await expectImage(copy.volume.id, raw);
  await expectImage(clone.volume.id, before);

  const restored = await killedAt(instance, "restore:2", () => user.startRestore(incremental));
  await user.settled("volumes", restored, "available");
  await expectImage(restored, raw);
  await expectImage(await user.restore(full, copy.volume.id), before);

  const out = join(instance.dataDir, "out.raw");
  const { operation } = await user.accepted("POST", `/ops/volumes/${restored}/export`, { path: out });
  const exported = async () => (await user.get(`/ops/operations/${operation.id}`)).operation.state === "succeeded";
  await instance.waitFor(exported, { what: "the volume is exported", timeoutMs: 60_000 });
  expect((await readFile(out)).equals(await readFile(raw))).toBe(true);

  for (const id of [restored, clone.volume.id, copy.volume.id]) await user.accepted("DELETE", `${base}/volumes/${id}`);
  await user.accepted("DELETE", `${base}/snapshots/${snapshot.id}`);
  await user.expectQuiet();
  await expectImage(volume, raw);
});

it("makes a volume of an image that stays where it is, and refuses what leads elsewhere", {
  timeout: 240_000,
}, async () => {
  const backend = { name: "images", driver: "qemu", path: images, roots: [users] };
  await using instance = await startInstance({ config: { ...brisk, volume_backends: [backend] }, env });
  const user = journeyOn(instance, { patienceMs: 120_000 });
  const [image, raw] = [join(users, "web.qcow2"), join(instance.dataDir, "web.raw")];
  await writeIslands(raw, 4 * MiB, [{ offset: MiB, data: randomBytesOf("web", MiB) }]);
  await qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);
  const adopt = async (url: string) => {
    const accepted = await user.accepted("POST", "/ops/volumes/import", { image: url, project_id: project });
    const ended = async () => {
      const { operation } = await user.get(`/ops/operations/${accepted.operation.id}`);
      return ["succeeded", "failed"].includes(operation.state) && operation;
    };
    const operation = await instance.waitFor(ended, { what: "the adoption has ended", timeoutMs: 60_000 });
    return { id: accepted.volume.id as string, operation };
  };
  const refused = await adopt("qcow2:/etc/passwd");
  expect(refused.operation).toMatchObject({ state: "failed", fail_reason: expect.stringContaining("no image") });
  const { id, operation } = await adopt(`qcow2:${image}`);
  expect(operation.state).toBe("succeeded");

  await user.backUp(id);
  await qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 64k", image);
  await writeIslands(raw, null, [{ offset: 2 * MiB, data: Buffer.alloc(65_536, 7) }]);
  const incremental = await user.backUp(id, { incremental: true });
  await qemu("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 1M", image);
  await user.restore(incremental, id);
  await qemu("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw);
  expect(readdirSync(users)).toEqual(["web.qcow2"]);
  await user.accepted("DELETE", `${base}/volumes/${id}`);
  await user.expectQuiet();
  await qemu("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw);
});
