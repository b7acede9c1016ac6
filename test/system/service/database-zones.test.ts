import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const minute = 60_000;

it.each(["Asia/Kolkata", "America/St_Johns"])(
  "a database in %s, with dates in a form of its own, changes no time and lets the reaper remove nothing young",
  async (timezone) => {
    const databaseSettings = { timezone, datestyle: "SQL, DMY", intervalstyle: "sql_standard" };
    await using instance = await startInstance({
      databaseSettings,
      config: { reaper: { interval_hours: null, grace_minutes: 60 } },
    });
    const user = journeyOn(instance);
    const image = join(instance.dataDir, "disk.img");
    await writeIslands(image, 1024 * 1024, [{ offset: 0, data: randomBytesOf("zones", 4096) }]);
    const volume = await user.importVolume(image);
    const backup = await user.backUp(volume);

    const shown = (await user.get(`/v3/${"0".repeat(31)}1/backups/${backup}`)).backup;
    for (const time of [shown.created_at, shown.updated_at, shown.data_timestamp]) {
      expect(Math.abs(Date.parse(`${time}Z`) - Date.now()), `${time}`).toBeLessThan(10 * minute);
    }
    const [stored] = await instance.sql(
      "SELECT max(abs(extract(epoch FROM now() - t)))::float8 AS off FROM backups, LATERAL (VALUES (created_at), (updated_at), (data_timestamp)) v(t)",
    );
    expect(stored.off).toBeLessThan(600);
    const since = new Date(Date.now() - 10 * minute).toISOString();
    const { audit: entries } = await user.get(`/ops/audit?since=${since}&resource_id=${backup}`);
    expect(entries.length).toBeGreaterThan(0);
    expect((await user.get(`/ops/audit?until=${since}&resource_id=${backup}`)).audit).toEqual([]);

    // Of a put that is under way, and of a backup that another service is just writing to the same repository.
    const young = join(instance.repositoryDir, ".tephra/tmp", randomUUID());
    const other = randomUUID();
    const folder = join(instance.repositoryDir, other.slice(0, 2), other.slice(2, 4), other);
    const foreign = join(folder, `volume_${randomUUID()}_20261128200000_backup_${other}-00001`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(young, "half of an object");
    writeFileSync(foreign, "an object");
    const { operation } = await user.accepted("POST", "/ops/repositories/main/reap", {});
    const ended = async () => (await user.get(`/ops/operations/${operation.id}`)).operation.result?.removed;
    const removed = await instance.waitFor(ended, { what: "the reaper has passed", timeoutMs: 30_000 });
    expect(removed).toMatchObject({ objects: 0, staged: 0, temporary: 0 });
    expect([existsSync(young), existsSync(foreign)]).toEqual([true, true]);
  },
);
