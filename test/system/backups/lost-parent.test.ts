import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const latest = { "openstack-api-version": "volume 3.71" };

it("refuses an incremental on a chain of which somebody has removed a part, marks it and tells", async () => {
  await using instance = await startInstance({ repository: { object_bytes: MiB } });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 4 * MiB, [{ offset: 0, data: randomBytesOf("lost parent", 4 * MiB) }]);
  const volume = await user.importVolume(image);
  const change = (name: string) =>
    writeIslands(user.volumeFile(volume), null, [{ offset: 0, data: randomBytesOf(name, 1000) }]);
  const root = await user.backUp(volume);
  await change("one");
  const middle = await user.backUp(volume, { incremental: true });
  await change("two");
  const [{ container, service_metadata: prefix }] = await instance.sql(
    "SELECT container, service_metadata FROM backups WHERE id = $1",
    [root],
  );
  const folder = join(instance.repositoryDir, container);
  for (const name of await readdir(folder)) if (name.startsWith(`${prefix}-`)) await rm(join(folder, name));

  const refused = await user.startBackup(volume, { incremental: true });
  const row = (await user.settled("backups", refused, "error")) as { fail_reason?: string };
  expect(row.fail_reason).toContain(`Backup ${root} is damaged`);
  await user.settled("volumes", volume, "available");
  const marks = await instance.sql("SELECT id, damage FROM backups WHERE damage IS NOT NULL");
  expect(marks).toEqual([{ id: root, damage: expect.stringContaining("it is missing") }]);
  const messages = await instance.request("GET", `/v3/${project}/messages?resource_uuid=${root}`, undefined, latest);
  expect(messages.body.messages).toMatchObject([{ user_message: expect.stringContaining("is damaged") }]);
  const told = "SELECT 1 FROM notifications WHERE event_type = 'backup.verify.end' AND payload->>'backup_id' = $1";
  expect(await instance.sql(told, [root])).toHaveLength(1);
  const again = await instance.request("POST", `/v3/${project}/backups`, {
    backup: { volume_id: volume, incremental: true },
  });
  expect(again.status).toBe(400);
  expect(middle).not.toBe(refused);
}, 400_000);
