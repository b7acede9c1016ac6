import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { provideQemuUtils } from "../../../scripts/qemu-utils-package.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const KiB = 1024;
const base = `/v3/${project}`;

let images: string;
let env: Record<string, string>;
beforeAll(async () => {
  env = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  images = mkdtempSync(join(tmpdir(), "tephra-images-"));
}, 300_000);
afterAll(() => rmSync(images, { recursive: true, force: true }));

async function qemu(command: string, ...args: string[]): Promise<string> {
  return (await promisify(execFile)(command, args, { env: { ...process.env, ...env }, timeout: 60_000 })).stdout;
}

/** How many ranges of a backup were told what has changed when they were planned, and how many were not. */
async function rangesTold(instance: Instance, backup: string): Promise<{ told: number; untold: number }> {
  const [row] = await instance.sql(
    `SELECT count(*) FILTER (WHERE tasks.input ? 'changed')::int AS told, count(*) FILTER (WHERE NOT tasks.input ? 'changed')::int AS untold
     FROM tasks JOIN operations ON operations.id = operation_id WHERE backup_id = $1 AND tasks.kind = 'copy'`,
    [backup],
  );
  return row;
}

/** Bytes of the volume that a backup has read. */
async function bytesRead(instance: Instance, backup: string): Promise<number> {
  const [row] = await instance.sql(
    `SELECT sum((report ->> 'bytesRead')::float8) AS bytes FROM tasks JOIN operations ON operations.id = operation_id
     WHERE backup_id = $1 AND tasks.kind = 'copy'`,
    [backup],
  );
  return row.bytes;
}

it("an incremental reads what the storage says has changed and samples; one untruth, and everything is read again", {
  timeout: 240_000,
}, async () => {
  const config = { range_bytes: 8 * MiB, volume_backends: [{ name: "images", driver: "qemu", path: images }] };
  await using instance = await startInstance({ config, env, repository: { object_bytes: 4 * MiB } });
  const user = journeyOn(instance, { patienceMs: 120_000 });
  const raw = join(instance.dataDir, "image.raw");
  await writeIslands(raw, 16 * MiB, [{ offset: 0, data: randomBytesOf("image", 16 * MiB) }]);
  const volume = await user.importVolume(raw);
  const image = join(images, `volume-${volume}`);
  const expectRestored = async (backup: string): Promise<void> => {
    const restored = join(images, `volume-${await user.restore(backup)}`);
    await qemu("qemu-img", "compare", "-f", "qcow2", "-F", "raw", restored, raw);
  };
  const write = async (pattern: number, offset: number, length: number): Promise<void> => {
    await qemu("qemu-io", "-f", "qcow2", "-c", `write -P ${pattern} ${offset} ${length}`, image);
    await writeIslands(raw, null, [{ offset, data: Buffer.alloc(length, pattern) }]);
  };
  const snapshot = async (): Promise<string> => {
    const made = await user.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: volume, force: true } });
    await user.settled("snapshots", made.snapshot.id, "available");
    return made.snapshot.id;
  };
  /** Two samples of each window of 4 MiB. */
  const samplesBytes = 4 * 2 * 32 * KiB;

  const first = await snapshot();
  await user.backUp(volume, { snapshot_id: first });
  await write(7, 3 * MiB, 192 * KiB);
  const second = await snapshot();
  const incremental = await user.backUp(volume, { snapshot_id: second, incremental: true });
  expect(await bytesRead(instance, incremental)).toBeLessThanOrEqual(192 * KiB + samplesBytes);
  expect(await rangesTold(instance, incremental), "asked once, for all ranges").toEqual({ told: 2, untold: 0 });
  await expectRestored(incremental);
  // A backup of the volume itself takes a snapshot of its own, and may believe what has changed since the user's.
  await write(8, 5 * MiB, 64 * KiB);
  const ofVolume = await user.backUp(volume, { incremental: true });
  expect(await bytesRead(instance, ofVolume)).toBeLessThanOrEqual(64 * KiB + samplesBytes);
  await expectRestored(ofVolume);

  const third = await snapshot();
  const onTemporary = await user.backUp(volume, { snapshot_id: third, incremental: true });
  expect(await bytesRead(instance, onTemporary), "of a parent from a snapshot that is gone").toBe(16 * MiB);
  expect(await rangesTold(instance, onTemporary)).toEqual({ told: 0, untold: 2 });
  // Somebody writes below the snapshots, which nothing tells of.
  const chain: { filename: string }[] = JSON.parse(
    await qemu("qemu-img", "info", "--backing-chain", "--force-share", "--output=json", image),
  );
  const patch = [{ offset: 8 * MiB, data: Buffer.alloc(4 * MiB, 9) }];
  for (const file of [chain.at(-1)?.filename ?? "", raw]) await writeIslands(file, null, patch);
  const fourth = await snapshot();
  const failed = await user.startBackup(volume, { snapshot_id: fourth, incremental: true });
  const { fail_reason: reason } = (await user.settled("backups", failed, "error")) as unknown as {
    fail_reason: string;
  };
  expect(reason).toContain("does not report all changes");
  const whole = await user.backUp(volume, { snapshot_id: fourth, incremental: true });
  expect(await bytesRead(instance, whole)).toBe(16 * MiB);
  await expectRestored(whole);
});
