import { chmodSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { inDatabase } from "@tephra/control/process";
import { expect, inject, it } from "vitest";
import { withClient } from "../../../scripts/postgres.ts";
import { migrate } from "../../../scripts/services.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { startSteppedPostgres } from "../../kit/stepped-clock.ts";

const MiB = 1024 * 1024;
const hour = 3_600;

it("a database whose clock is set back or forth keeps nothing waiting, and costs no worker its leases", async () => {
  const dir = mkdtempSync(join(inject("servers").dir, "clock-"));
  chmodSync(dir, 0o711);
  await using postgres = await startSteppedPostgres(dir);
  const { url } = postgres.server;
  migrate(url);
  const adminUrl = inDatabase(url, "postgres");
  await withClient(adminUrl, (client) => client.query("ALTER DATABASE tephra RENAME TO tephra_template"));
  const logs = join(dir, "logs");
  await using instance = await startInstance({
    logs,
    servers: { adminUrl, template: "tephra_template" },
    config: {
      range_bytes: 2 * MiB,
      // A lease may also run out because the machine is busy: not so soon.
      worker: { slots: 2, lease_ms: 6_000, heartbeat_ms: 400 },
      tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
    },
    repository: { object_bytes: 512 * 1024 },
  });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 48 * MiB, [{ offset: 0, data: randomBytesOf("clock", 48 * MiB) }]);
  const volume = await user.importVolume(image);
  const other = await user.importVolume(image);
  const clock = async (): Promise<number> => {
    const [row] = await instance.sql("SELECT extract(epoch FROM clock_timestamp())::float8 AS s");
    return row.s - Date.now() / 1_000;
  };
  const copying = async () =>
    (await instance.sql("SELECT 1 FROM tasks WHERE kind = 'copy' AND state = 'running'")).length > 0;

  const killed = await user.startBackup(volume);
  await instance.waitFor(copying, { what: "a range is copied", timeoutMs: 60_000, everyMs: 10 });
  instance.workers[0]?.kill("SIGKILL");
  const queued = await user.startBackup(other);
  postgres.set(-hour);
  expect(await clock(), "its clock was set back").toBeLessThan(-hour / 2);
  await instance.startWorker();
  await user.settled("backups", killed, "available", 60_000);
  await user.settled("backups", queued, "available", 60_000);

  const running = await user.startBackup(volume);
  await instance.waitFor(copying, { what: "a range is copied", timeoutMs: 60_000, everyMs: 10 });
  postgres.set(hour);
  await user.settled("backups", running, "available", 60_000);
  const [held] = await instance.sql(
    "SELECT max(claim) AS claims FROM tasks WHERE operation_id = (SELECT id FROM operations WHERE backup_id = $1)",
    [running],
  );
  expect(held).toEqual({ claims: 1 });
  const said = () => readdirSync(logs).map((name) => readFileSync(join(logs, name), "utf8"));
  await expect.poll(() => said().join("\n")).toMatch(/the clock of PostgreSQL was set (back|forth)/);
  expect((await instance.request("GET", "/metrics")).text).toMatch(/^tephra_database_clock_steps_total [1-9]/m);
  await user.expectExact(running, await sha256Of(image));
});
