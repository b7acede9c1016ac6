import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { startTephra } from "../../kit/tephra-command.ts";

it("an operation whose priority an admin lowers goes after those that were asked for later", async () => {
  await using instance = await startInstance({ workers: 1, config: { worker: { slots: 1 } } });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 1024 * 1024, [{ offset: 0, data: randomBytesOf("image", 100_000) }]);
  const volumes: string[] = [];
  for (let n = 0; n < 3; n += 1) volumes.push(await user.importVolume(image));
  await user.expectQuiet();
  await instance.workers[0]?.stop();

  const backups: string[] = [];
  for (const volume of volumes) backups.push(await user.startBackup(volume));
  const [first = "", second = "", third = ""] = backups;
  const operationOf = (backup: string) => user.operation(`backup_id=${backup}`);
  const { id } = await operationOf(first);
  const change = async (...args: string[]) =>
    startTephra(["operation", "priority", ...args, "--url", instance.url, "--json"]).finished;
  const { status, json, stderr } = await change(id, "low");
  expect(status, stderr).toBe(0);
  expect(json.operation).toMatchObject({ id, state: "queued", priority: "low" });

  await instance.startWorker();
  for (const backup of backups) await user.settled("backups", backup, "available");
  const rows = await instance.sql(
    "SELECT backup_id AS id FROM operations WHERE kind = 'backup-create' ORDER BY started_at",
  );
  expect(rows.map((row) => row["id"])).toEqual([second, third, first]);
  expect((await operationOf(first)).priority).toBe("low");
  await user.expectExact(first, await sha256Of(image));
  expect(await change(id, "high")).toMatchObject({
    status: 1,
    stderr: expect.stringContaining("It has ended: succeeded."),
  });
});
