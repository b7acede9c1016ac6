import { mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { levelDefault } from "@tephra/engine";
import { beforeAll, describe, expect, it } from "vitest";
import { provideIsal } from "../../../scripts/isal-package.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const options = {
  workers: 0,
  config: {
    range_bytes: MiB,
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 1_500, unplaced_timeout_ms: 2_000 },
  },
  repository: { zlib_encoder: "isal", object_bytes: 256 * 1024 },
};

let able: Record<string, string>;
beforeAll(async () => {
  able = await provideIsal((line) => process.stderr.write(`${line}\n`));
}, 300_000);

/** The environment of a worker that finds something else under ISA-L's name, also where ISA-L is installed. */
function unable(instance: Instance): Record<string, string> {
  const folder = join(instance.dataDir, "lib");
  mkdirSync(folder);
  const { sharedObjects } = process.report.getReport() as unknown as { sharedObjects: string[] };
  symlinkSync(sharedObjects.find((path) => path.includes("libm.so")) as string, join(folder, "libisal.so.2"));
  return { LD_LIBRARY_PATH: folder };
}

async function importImage(instance: Instance) {
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  const text = Buffer.alloc(6 * MiB, "lines that repeat ");
  await writeIslands(image, 10 * MiB, [
    { offset: 0, data: text },
    { offset: 7 * MiB, data: randomBytesOf("image", 2 * MiB) },
  ]);
  return { user, volume: await user.importVolume(image), sha256: await sha256Of(image) };
}

describe("a repository whose zlib streams ISA-L makes", () => {
  it("is written by workers that have it, and read by all", async () => {
    await using instance = await startInstance(options);
    const without = await instance.startWorker(unable(instance));
    const having = await instance.startWorker(able);
    const { user, volume, sha256 } = await importImage(instance);
    const backup = await user.backUp(volume);
    const [{ plan }] = await instance.sql("SELECT plan FROM operations WHERE kind = 'backup-create'");
    expect(plan).toMatchObject({ compression: "zlib", zlibEncoder: "isal", level: levelDefault("zlib", "isal") });
    const workers = await instance.sql(
      "SELECT DISTINCT split_part(worker_id, ':', 2) AS pid FROM tasks WHERE kind IN ('plan-backup', 'copy')",
    );
    expect(workers).toEqual([{ pid: String(having.pid) }]);
    await having.stop();
    expect(without.running()).toBe(true);
    await user.expectExact(backup, sha256);
  });

  it("gets no backup where no worker has it: the reason is told and the volume is as it was", async () => {
    await using instance = await startInstance(options);
    await instance.startWorker(unable(instance));
    const { user, volume } = await importImage(instance);
    const backup = await user.startBackup(volume);
    const shown = (await user.settled("backups", backup, "error")) as unknown as { fail_reason: string };
    expect(shown.fail_reason).toContain(
      "Service not found for creating backup. Compression zlib by ISA-L cannot be used",
    );
    await user.settled("volumes", volume, "available");
  });
});
