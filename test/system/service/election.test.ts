import { join } from "node:path";
import { expect, it } from "vitest";
import type { Program } from "../../../scripts/spawn-program.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const config = { range_bytes: MiB, worker: { slots: 1 } };

/** The worker that dispatches at the moment. */
async function dispatcherOf(instance: Instance): Promise<Program> {
  const holds =
    "SELECT w.pid FROM leaders l JOIN workers w ON w.id = l.holder WHERE l.role = 'dispatcher' AND l.held_until > now()";
  const find = async (): Promise<Program | undefined> => {
    const [row] = await instance.sql(holds);
    return instance.workers.find((worker) => worker.pid === row?.pid && worker.running());
  };
  return instance.waitFor(find, { what: "a worker dispatches" });
}

it("goes on with a backup when the worker that dispatches is killed, or stops for a while", async () => {
  await using instance = await startInstance({
    workers: 3,
    config,
    repository: { object_bytes: MiB, compression: "none" },
  });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 24 * MiB, [{ offset: 0, data: randomBytesOf("election", 24 * MiB) }]);
  const volume = await user.importVolume(image);

  const first = await user.startBackup(volume, { force: true });
  const killed = await dispatcherOf(instance);
  killed.kill("SIGKILL");
  await user.settled("backups", first, "available");

  const stopped = await dispatcherOf(instance);
  expect(stopped.pid).not.toBe(killed.pid);
  stopped.kill("SIGSTOP");
  try {
    const second = await user.startBackup(volume, { force: true });
    await user.settled("backups", second, "available");
    expect((await dispatcherOf(instance)).pid).not.toBe(stopped.pid);
    await user.expectExact(second, await sha256Of(image));
  } finally {
    stopped.kill("SIGCONT");
  }
  await user.expectExact(first, await sha256Of(image));
  await user.expectQuiet();
});
