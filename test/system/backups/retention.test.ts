import { createHash, randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, writeIslands } from "../../kit/journey.ts";
import { type Finished, startTephra } from "../../kit/tephra-command.ts";

const MiB = 1024 * 1024;

async function tephra(instance: Instance, ...args: string[]): Promise<Finished> {
  const finished = await startTephra([...args, "--json"], { TEPHRA_URL: instance.url }).finished;
  expect(finished.status, `tephra ${args.join(" ")}: ${finished.stderr}`).toBe(0);
  return finished;
}

const sha256 = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

it("a policy deletes what its rules do not keep; what is deleted comes back, restored exactly, or goes for good", async () => {
  await using instance = await startInstance({ repository: { object_bytes: MiB, deletion_delay_hours: 24 } });
  const user = journeyOn(instance);
  const source = join(instance.dataDir, "disk.img");
  writeFileSync(source, randomBytes(3 * MiB));
  const volume = await user.importVolume(source, "disk");
  await tephra(instance, "policy", "create", "few", "--cron", "0 2 * * *", "--full-every", "2", "--keep", "last=1");
  await tephra(instance, "policy", "assign", "few", "--volume", volume);

  const rows = (): Promise<{ id: string; hidden: boolean; parent_id: string | null }[]> =>
    instance.sql(
      `SELECT id, parent_id, undelete_until IS NOT NULL AS hidden FROM backups
       WHERE status <> 'creating' AND (deleted_at IS NULL OR undelete_until IS NOT NULL) ORDER BY created_at`,
    );
  const written: string[] = [];
  /** One more run of the policy, after a write. */
  const backUp = async (): Promise<void> => {
    await writeIslands(user.volumeFile(volume), null, [
      { offset: written.length * 8192, data: Buffer.alloc(4096, written.length + 1) },
    ]);
    written.push(sha256(user.volumeFile(volume)));
    await tephra(instance, "policy", "run", "few");
    const unended = "SELECT count(*)::int AS n FROM policy_runs WHERE finished_at IS NULL";
    await instance.waitFor(async () => (await instance.sql(unended))[0]?.n === 0, { what: "the run has ended" });
    expect(await rows()).toHaveLength(written.length);
  };
  for (let n = 0; n < 4; n++) await backUp();
  // Full, incremental, full, incremental: the first chain goes as a whole, the second full is needed.
  await instance.waitFor(async () => (await rows()).filter(({ hidden }) => hidden).length === 2, {
    what: "the first chain has gone",
  });
  const [one, two, three, four] = await rows();
  if (!one || !two || !three || !four) throw new Error("four backups were made");
  expect([one, two, three, four].map(({ hidden }) => hidden)).toEqual([true, true, false, false]);
  expect([two.parent_id, four.parent_id]).toEqual([one.id, three.id]);

  const { preview } = (await tephra(instance, "policy", "preview", "few")).json;
  expect(preview.keep).toMatchObject([{ backup_id: four.id, rules: ["keep_last", "min_good", "newest"] }]);
  expect(preview).toMatchObject({ go: [], blocked: [{ backup_id: three.id, because: [four.id] }] });

  const shown = (await tephra(instance, "backup", "list")).json.backups;
  expect(shown.map(({ id }: { id: string }) => id).sort()).toEqual([three.id, four.id].sort());
  const deleted = (await tephra(instance, "backup", "deleted")).json.backups;
  expect(deleted.map(({ id }: { id: string }) => id).sort()).toEqual([one.id, two.id].sort());
  const gone = await instance.request("GET", `/v3/${project}/backups/${two.id}`);
  expect(gone.status).toBe(404);

  const back = (await tephra(instance, "backup", "undelete", two.id)).json.backups;
  expect(back).toEqual([{ id: one.id }, { id: two.id }]);
  await tephra(instance, "backup", "hold", two.id, "--until", "2999-01-01", "--reason", "court order");
  await user.expectExact(one.id, written[0] ?? "");
  await user.expectExact(two.id, written[1] ?? "");

  const refused = await startTephra(["backup", "delete", two.id, "--json"], { TEPHRA_URL: instance.url }).finished;
  expect(refused.status).toBe(1);
  expect(refused.stderr).toContain("Backup is held until 2999-01-01T00:00:00.000Z: court order");
  await tephra(instance, "backup", "release", two.id);
  const hidden = (await tephra(instance, "backup", "delete", two.id)).json.backup;
  expect(hidden).toMatchObject({ id: two.id, status: "deleted" });
  await tephra(instance, "backup", "purge", two.id);
  await instance.waitFor(
    async () =>
      !(await tephra(instance, "backup", "deleted")).json.backups.some((b: { id: string }) => b.id === two.id),
    { what: "the incremental is removed for good" },
  );
  const lost = await startTephra(["backup", "undelete", two.id, "--json"], { TEPHRA_URL: instance.url }).finished;
  expect(lost.status).toBe(1);
  await user.expectExact(four.id, written[3] ?? "");

  const { simulation } = (await tephra(instance, "policy", "simulate", "few", "--days", "30", "--change-rate", "2%"))
    .json;
  expect(simulation).toMatchObject({ made: 30 });
  expect(simulation.backups.length).toBeLessThanOrEqual(2);
});

it("a policy has its chain squashed, so that old members go; what is left restores exactly", async () => {
  await using instance = await startInstance({ repository: { object_bytes: MiB } });
  const user = journeyOn(instance);
  const source = join(instance.dataDir, "disk.img");
  writeFileSync(source, randomBytes(3 * MiB));
  const volume = await user.importVolume(source, "disk");
  const rules = ["--cron", "0 2 * * *", "--full-every", "100", "--keep", "last=2", "--squash", "2"];
  await tephra(instance, "policy", "create", "one-chain", ...rules);
  await tephra(instance, "policy", "assign", "one-chain", "--volume", volume);
  const written: string[] = [];
  const live = (): Promise<{ id: string; parent_id: string | null }[]> =>
    instance.sql("SELECT id, parent_id FROM backups WHERE deleted_at IS NULL ORDER BY created_at");
  const unended = "SELECT count(*)::int AS n FROM policy_runs WHERE finished_at IS NULL";
  for (let n = 0; n < 4; n++) {
    await writeIslands(user.volumeFile(volume), null, [{ offset: n * 300_000, data: Buffer.alloc(4096, n + 1) }]);
    written.push(sha256(user.volumeFile(volume)));
    await tephra(instance, "policy", "run", "one-chain");
    await instance.waitFor(async () => (await instance.sql(unended))[0]?.n === 0, { what: "the run has ended" });
    const expected = Math.min(n + 1, 2);
    await instance.waitFor(async () => (await live()).length === expected, { what: "what was merged has gone" });
  }
  const [full, incremental] = await live();
  expect([full?.parent_id, incremental?.parent_id]).toEqual([null, full?.id]);
  await user.expectExact(full?.id ?? "", written[2] ?? "");
  await user.expectExact(incremental?.id ?? "", written[3] ?? "");
});
