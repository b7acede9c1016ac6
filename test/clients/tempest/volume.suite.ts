import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { startIdentity } from "../../kit/keystone.ts";
import { runTempest } from "./tempest.ts";
import { leftOut, modules, skipped } from "./tests.ts";

/** Fewer tests than these mean that a part was not run at all. */
const passedMin = 125;
/** What tests of backups are run for: they must be among those that pass. */
const backupTests = [
  "test_volumes_backup.VolumesBackupsTest.test_volume_backup_create_get_detailed_list_restore_delete",
  "test_volumes_backup.VolumesBackupsV39Test.test_update_backup",
  "admin.test_volumes_backup.VolumesBackupsAdminTest.test_volume_backup_export_import",
  "admin.test_volumes_backup.VolumesBackupsAdminTest.test_volume_backup_reset_status",
  "test_volumes_snapshots.VolumesSnapshotTestJSON.test_snapshot_backup",
];

const short = (name: string): string => name.replace(/^tempest\.api\.volume\./, "");

it("passes OpenStack's own tests of volumes, snapshots and backups", async () => {
  await using keystone = await startIdentity({ tokenLifeSeconds: 7200 });
  const own = { name: "tephra", password: "pw tephra", project: "service", role: "service" };
  await keystone.addUser(own);
  const settings = { url: `${keystone.url}/v3`, username: own.name, password: own.password, timeout_ms: 20_000 };
  await using instance = await startInstance({ config: { auth: { mode: "keystone", keystone: settings } } });
  await keystone.addService({ type: "volumev3", name: "tephra", url: `${instance.url}/v3/%(project_id)s` });

  const place = { keystone, dir: instance.dataDir };
  const outcomes = await runTempest(place, { modules: [...modules], leftOut: Object.keys(leftOut) });
  const ended = (as: string) => outcomes.filter((o) => o.outcome === as).map((o) => short(o.test));
  const failures = outcomes.filter((o) => o.outcome === "failed").map(({ test, why }) => `${short(test)}\n${why}`);
  process.stdout.write(
    `tempest: ${ended("passed").length} passed, ${ended("skipped").length} skipped for want of Nova or Glance\n`,
  );
  expect(failures).toEqual([]);
  expect(ended("skipped").sort()).toEqual(Object.keys(skipped).sort());
  expect(ended("passed")).toEqual(expect.arrayContaining(backupTests));
  expect(ended("passed").length).toBeGreaterThanOrEqual(passedMin);
});

it("names in its README what is run and what is not, with the reason", () => {
  const readme = readFileSync(join(import.meta.dirname, "README.md"), "utf8");
  for (const module of modules) expect(readme).toContain(`\`${module}\``);
  for (const [test, why] of [...Object.entries(leftOut), ...Object.entries(skipped)]) {
    expect(readme).toContain(`| \`${test.split(".").slice(-2).join(".")}\` | ${why} |`);
  }
});
