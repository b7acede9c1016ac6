import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { startTephra } from "../../kit/tephra-command.ts";

const MiB = 1024 * 1024;

const tephra = (instance: Instance, ...args: string[]) =>
  startTephra(["--json", "--url", instance.url, "--project", project, ...args]).finished;

const decode = (record: { backup_url: string }) => JSON.parse(Buffer.from(record.backup_url, "base64").toString());

it("all records are exported into one file, and imported from it, parents first, as often as wanted", {
  timeout: 180_000,
}, async () => {
  await using instance = await startInstance({ repository: { object_bytes: 512 * 1024 } });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 2 * MiB, [{ offset: 0, data: randomBytesOf("all", MiB) }]);
  const volume = await user.importVolume(image, "disk");
  const backups: string[] = [];
  const hashes: string[] = [];
  for (const incremental of [false, true, true]) {
    const change = { offset: backups.length * 1000, data: randomBytesOf(`change ${backups.length}`, 500) };
    await writeIslands(user.volumeFile(volume), null, [change]);
    const { body } = await instance.request("POST", `/v3/${project}/backups`, {
      backup: { volume_id: volume, incremental },
    });
    await user.settled("backups", body.backup.id, "available");
    backups.push(body.backup.id);
    hashes.push(await sha256Of(user.volumeFile(volume)));
  }
  const broken = await user.backUp(volume);
  const file = join(instance.dataDir, "records.json");
  const exported = await tephra(instance, "backup", "export", "--all", "--output", file);
  expect([exported.status, exported.json]).toEqual([0, { exported: 4, problems: [] }]);
  const { "backup-records": records } = JSON.parse(await readFile(file, "utf8"));
  expect(records.map((record: { backup_url: string }) => decode(record).id).sort()).toEqual(
    [...backups, broken].sort(),
  );

  const shown = decode(records.find((record: { backup_url: string }) => decode(record).id === broken));
  await rm(join(instance.repositoryDir, shown.container), { recursive: true });
  await instance.sql(
    "TRUNCATE backups, volumes, attachments, snapshots, operations, tasks, quotas, notifications CASCADE",
  );
  const foreign = { ...shown, id: "11111111-2222-4333-8444-555555555555", project_id: "f".repeat(32) };
  const orphan = { ...shown, id: "22222222-2222-4333-8444-555555555555", parent_id: broken };
  const more = [orphan, foreign].map((record) => ({
    backup_service: records[0].backup_service,
    backup_url: Buffer.from(JSON.stringify(record)).toString("base64"),
  }));
  // Children before their parents.
  const order = (record: { backup_url: string }) => backups.indexOf(decode(record).id);
  const all = [...more, ...records].sort((one, other) => order(other) - order(one));
  await writeFile(file, JSON.stringify({ "backup-records": all }));
  const imported = await tephra(instance, "backup", "import", "--all", "--of-project", project, file);
  expect(imported.status, imported.stderr).toBe(1);
  expect({ ...imported.json, imported: imported.json.imported.sort() }).toEqual({
    imported: [...backups].sort(),
    known: [],
    passed_over: 1,
    problems: [
      { id: broken, problem: expect.any(String) },
      { id: orphan.id, problem: "Its parent was not imported." },
    ],
  });
  for (const [at, id] of backups.entries()) await user.expectExact(id, hashes[at] as string);
  const again = await tephra(instance, "backup", "import", "--all", "--of-project", project, file);
  expect(again.json.known.sort()).toEqual([...backups, broken].sort());

  await writeFile(file, JSON.stringify([{ backup_service: "x", backup_url: "?" }]));
  const bad = await tephra(instance, "backup", "import", "--all", file);
  expect([bad.status, bad.json.error]).toEqual([1, { code: "bad_record", message: "Record 1 cannot be read." }]);
});
