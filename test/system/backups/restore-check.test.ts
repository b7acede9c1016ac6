import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { startTephra } from "../../kit/tephra-command.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;

interface Told {
  verdict: string;
  checks: { code: string; ok: boolean | null; text: string }[];
  estimate: { seconds: number | null; bytes: number; basis: string };
  ahead: number;
}

let instance: Instance;
let user: Journey;
let volume: string;
let full: string;
let backup: string;

beforeAll(async () => {
  instance = await startInstance();
  user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 16 * MiB, [{ offset: 0, data: randomBytesOf("image", 16 * MiB) }]);
  volume = await user.importVolume(image, "db-7");
  full = await user.backUp(volume);
  backup = await user.backUp(volume, { incremental: true });
  await prove(full);
  await prove(backup);
});
afterAll(() => instance?.[Symbol.asyncDispose]());

/** The operation, once it is in this state. */
const ended = (id: string, state: string) =>
  instance.waitFor(async () => (await user.get(`/ops/operations/${id}`)).operation.state === state, {
    what: `operation ${id} is ${state}`,
    timeoutMs: 60_000,
  });

async function prove(id: string): Promise<void> {
  const { operation } = await user.accepted("POST", `/ops/backups/${id}/verify`, { mode: "deep" });
  await ended(operation.id, "succeeded");
}

const check = async (id: string, query = ""): Promise<Told> => user.get(`/ops/backups/${id}/restore-check${query}`);
const failed = ({ checks }: Told) => checks.filter(({ ok }) => ok === false).map(({ code, text }) => [code, text]);

const restore = (id: string, volumeId: string | null = null) =>
  instance.request("POST", `${base}/backups/${id}/restore`, { restore: { volume_id: volumeId } });

/** The restore is accepted, and its operation ends as failed. */
async function expectFailure(id: string, volumeId: string | null = null): Promise<string> {
  const target = await user.startRestore(id, volumeId);
  const { id: operation } = await user.operation(`volume_id=${target}&limit=1`);
  await ended(operation, "failed");
  return (await user.get(`/ops/operations/${operation}`)).operation.fail_reason;
}

describe("a check of a restore", () => {
  it("says yes to what is proven, reached and has room, how long it takes once one has run, and starts nothing", async () => {
    const before = await instance.sql("SELECT count(*)::int AS count FROM operations");
    const told = await check(backup);
    expect(told).toMatchObject({ verdict: "yes", ahead: 0, estimate: { seconds: null, bytes: 16 * MiB } });
    expect(told.checks.map(({ code }) => code)).toEqual([
      ...["chain", "damage", "proof", "workers", "space", "quota", "target_free"],
    ]);
    expect(told.checks.map(({ text }) => text)).toContain("All 2 members are there.");
    const over = await check(backup, `?volume_id=${volume}`);
    expect([over.verdict, over.checks.some(({ code }) => code === "quota")]).toEqual(["yes", false]);
    expect(await instance.sql("SELECT count(*)::int AS count FROM operations")).toEqual(before);
    const sha256 = await sha256Of(user.volumeFile(volume));
    expect(await sha256Of(user.volumeFile(await user.restore(backup)))).toBe(sha256);
    const { estimate } = await check(backup);
    expect(estimate).toMatchObject({ bytes: 16 * MiB, basis: "the last restore from main" });
    expect(estimate.seconds).toBeGreaterThan(0);
  });

  it("says perhaps where nobody has read the backup", async () => {
    await instance.sql("UPDATE backups SET verified_mode = 'quick' WHERE id = $1", [backup]);
    expect((await check(backup)).verdict).toBe("perhaps");
    await instance.sql("UPDATE backups SET verified_mode = NULL, verified_at = NULL WHERE id = $1", [backup]);
    const told = await check(backup);
    expect([told.verdict, told.checks.find(({ code }) => code === "proof")]).toEqual([
      "perhaps",
      {
        code: "proof",
        ok: null,
        text: "Nobody has proven yet that it can be restored: a deep verification would.",
      },
    ]);
    await instance.sql("UPDATE backups SET verified_mode = 'deep', verified_at = now() WHERE id = $1", [backup]);
  });

  it("on the command line: the verdict, each sentence, and status 1 for no", async () => {
    const tephra = (...args: string[]) => startTephra(args, { TEPHRA_URL: instance.url }).finished;
    const yes = await tephra("backup", "restore", backup, "--check");
    expect([yes.status, yes.stdout]).toEqual([0, expect.stringMatching(/^would it work +yes$/m)]);
    expect(yes.stdout).toMatch(/^workers +yes +1 worker reaches main and files\.$/m);
    await instance.sql("UPDATE volumes SET status = 'in-use' WHERE id = $1", [volume]);
    const no = await tephra("backup", "restore", backup, "--check", "--volume", volume, "--json");
    expect([no.status, no.json.verdict]).toEqual([1, "no"]);
    await instance.sql("UPDATE volumes SET status = 'available' WHERE id = $1", [volume]);
  });
});

describe("what a check says no to is refused, or fails", () => {
  it("a target in use, or too short", async () => {
    await instance.sql("UPDATE volumes SET status = 'in-use' WHERE id = $1", [volume]);
    const told = await check(backup, `?volume_id=${volume}`);
    const text = "Volume to be restored to must be available: it is in-use.";
    expect([told.verdict, failed(told)]).toEqual(["no", [["target_free", text]]]);
    expect((await restore(backup, volume)).status).toBe(400);
    await instance.sql("UPDATE volumes SET status = 'available', size_bytes = size_bytes - 512 WHERE id = $1", [
      volume,
    ]);
    expect(failed(await check(backup, `?volume_id=${volume}`))).toEqual([
      ["target_free", expect.stringContaining("is too small to restore backup")],
    ]);
    expect((await restore(backup, volume)).status).toBe(400);
    await instance.sql("UPDATE volumes SET size_bytes = size_bytes + 512 WHERE id = $1", [volume]);
  });

  it("a disk of a machine that runs", async () => {
    const asked = { instance: { name: "pg-1", power_state: "ACTIVE", boot_volume_id: volume } };
    const made = await instance.request("POST", "/ops/instances", asked);
    expect(made.status, made.text).toBe(201);
    const told = await check(backup, `?volume_id=${volume}`);
    expect(failed(told)).toEqual([
      ["target_free", expect.stringContaining("it is in-use")],
      ["shut_off", expect.stringContaining("The volume is a disk of machine pg-1, which is ACTIVE")],
    ]);
    expect((await restore(backup, volume)).status).toBe(400);
    const gone = await instance.request("DELETE", `/ops/instances/${made.body.instance.id}`);
    expect(gone.status, gone.text).toBe(204);
    await user.settled("volumes", volume, "available");
  });

  it("a quota that is used up", async () => {
    const quota = (volumes: number) =>
      instance.request("PUT", `${base}/os-quota-sets/${project}`, { quota_set: { volumes } });
    const [{ used }] = await instance.sql("SELECT volumes_used AS used FROM quotas WHERE project_id = $1", [project]);
    expect((await quota(used)).status).toBe(200);
    const text = `Quota volumes exceeded: requested 1, limit ${used}, used ${used}.`;
    expect(failed(await check(backup))).toEqual([["quota", text]]);
    expect((await check(backup, `?volume_id=${volume}`)).verdict).toBe("yes");
    expect((await restore(backup)).status).toBe(413);
    expect((await quota(-1)).status).toBe(200);
  });

  it("a member that is damaged", async () => {
    const [{ service_metadata: prefix, container }] = await instance.sql("SELECT * FROM backups WHERE id = $1", [full]);
    const object = join(instance.repositoryDir, container, `${prefix}-00001`);
    const bytes = await readFile(object);
    const flipped = Buffer.from(bytes);
    flipped[flipped.length >> 1] = (flipped[flipped.length >> 1] ?? 0) ^ 1;
    await writeFile(object, flipped);
    await prove(full);
    const told = await check(backup);
    expect([told.verdict, failed(told)]).toEqual([
      "no",
      [["damage", expect.stringMatching(/^1 of its 2 members is damaged: .*00001.* \(backup /)]],
    ]);
    expect(await expectFailure(backup)).toContain("is damaged");
    expect(failed(await check(backup))).toContainEqual([
      "chain",
      "The backup is error_restoring: only an available one can be restored.",
    ]);
    expect((await restore(backup)).status).toBe(400);
    await writeFile(object, bytes);
    await prove(full);
    await prove(backup);
    expect((await check(backup)).verdict).toBe("yes");
  });

  it("a member that is not there", async () => {
    await instance.sql("UPDATE backups SET deleted_at = now() WHERE id = $1", [full]);
    expect(failed(await check(backup))).toEqual([["chain", `It builds on backup ${full}, which is not there.`]]);
    expect(await expectFailure(backup)).toContain(full);
    await instance.sql("UPDATE backups SET deleted_at = NULL WHERE id = $1", [full]);
  });

  it("a backend without room, and no worker at all", async () => {
    await user.expectQuiet();
    for (const worker of instance.workers) await worker.stop();
    const told = await check(full);
    expect([told.verdict, failed(told)]).toEqual([
      "no",
      [["workers", "No worker is alive and takes work: a restore would wait."]],
    ]);
    await instance.startWorker({ VOLUMES: instance.volumesDir }, [
      ...["unshare", "-Urm", "sh", "-c"],
      'mount -t tmpfs -o size=8m tmpfs "$VOLUMES" && exec "$@"',
      "sh",
    ]);
    await instance.waitFor(async () => failed(await check(full)).some(([code]) => code === "space"), {
      what: "the worker has said how little is free",
    });
    expect(failed(await check(full))).toEqual([
      ["space", "Only 8.0 MiB are free on files, at least 16.0 MiB are needed."],
    ]);
    expect(await expectFailure(full)).toMatch(/ENOSPC|no space|full/i);
  });
});
