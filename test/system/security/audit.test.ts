import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { backupTransitions, snapshotTransitions, volumeTransitions } from "@tephra/control";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;

interface Entry {
  id: string;
  at: string;
  resource: string;
  resource_id: string;
  project_id: string;
  from: string | null;
  to: string;
  actor: string;
  user_id: string | null;
  user_project_id: string | null;
  worker_id: string | null;
  request_id: string | null;
  operation_id: string | null;
  reason: string | null;
}

describe("the audit", () => {
  let house: Instance;
  let journey: Journey;
  beforeAll(async () => {
    house = await startInstance({ config: { quotas: { backups: 3 } } });
    journey = journeyOn(house);
  });
  afterAll(() => house?.[Symbol.asyncDispose]());

  const audit = async (query = ""): Promise<Entry[]> => (await journey.get(`/ops/audit?limit=1000${query}`)).audit;

  async function importedVolume(name: string): Promise<string> {
    const path = join(house.dataDir, `${name}.img`);
    await writeIslands(path, 2 * MiB, [{ offset: 0, data: randomBytesOf(name, MiB) }]);
    return journey.importVolume(path, name);
  }

  it("has every transition of every row once, in a whole chain, and says who made it", async () => {
    const volume = await importedVolume("chain");
    const full = await journey.backUp(volume);
    const { snapshot } = await journey.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: volume } });
    await journey.settled("snapshots", snapshot.id, "available");
    const child = await journey.backUp(volume, { snapshot_id: snapshot.id, incremental: true });
    const restored = await journey.restore(child);
    await journey.deleteBackup(child);
    await journey.accepted("DELETE", `${base}/volumes/${restored}`);
    await journey.accepted("POST", `${base}/backups/${full}/action`, { "os-reset_status": { status: "error" } });
    await journey.expectQuiet();

    const entries = (await audit()).reverse();
    const tables: Record<string, Record<string, readonly string[]>> = {
      backup: backupTransitions,
      volume: volumeTransitions,
      snapshot: snapshotTransitions,
      operation: { queued: ["running"], running: ["succeeded", "failed", "cancelled"] },
    };
    for (const [id, chain] of Object.entries(Object.groupBy(entries, (entry) => entry.resource_id))) {
      for (const [at, entry] of (chain ?? []).entries()) {
        expect(entry.from, JSON.stringify(entry)).toBe(at === 0 ? null : chain?.[at - 1]?.to);
        if (entry.from !== null) expect(tables[entry.resource]?.[entry.from], id).toContain(entry.to);
        expect(["user", "worker"]).toContain(entry.actor);
        expect(entry.request_id).toMatch(/^req-/);
        expect(entry.user_id).toBe("admin");
        expect(entry.actor === "worker" ? entry.worker_id : entry.user_project_id).toBeTruthy();
      }
    }
    const last = Object.fromEntries(entries.map((entry) => [entry.resource_id, entry.to]));
    const rows = await house.sql(
      `SELECT id, status FROM backups UNION ALL SELECT id, status FROM volumes UNION ALL SELECT id, status FROM snapshots
       UNION ALL SELECT id, state FROM operations`,
    );
    for (const { id, status } of rows) expect(last[id], id).toBe(status);
    expect(last[restored]).toBe("deleted");
    expect(Object.keys(last)).toHaveLength(rows.length + 1);
  });

  it("tells why an operation failed, in the entries of all its rows, and what an administrator did", async () => {
    const volume = await importedVolume("failing");
    await house.sql("UPDATE volumes SET backend = 'nowhere' WHERE id = $1", [volume]);
    const backup = await journey.startBackup(volume);
    const force = { "os-force_delete": {} };
    const reply = await house.request("POST", `${base}/backups/${backup}/action`, force);
    expect(reply.status).toBe(202);
    const request = reply.headers.get("x-openstack-request-id") ?? "";
    const mine = await audit(`&request_id=${request}`);
    expect(mine.filter((entry) => entry.actor === "user").map((e) => [e.resource, e.from, e.to])).toEqual([
      ["operation", null, "queued"],
      ["backup", "creating", "deleting"],
      ["operation", "queued", "cancelled"],
      ["volume", "backing-up", "available"],
    ]);
    for (const entry of mine.filter((e) => e.to === "cancelled" || e.resource === "volume")) {
      expect(entry.reason).toBe("Cancelled by an administrator, who deleted the backup.");
    }
    expect(await audit(`&resource=volume&resource_id=${volume}&user_id=nobody`)).toEqual([]);
  });

  it("has nothing of what was undone: a refused request leaves no entry", async () => {
    const volume = await importedVolume("refused");
    // What the tests before have begun is in the audit, too.
    await journey.expectQuiet();
    await house.sql("UPDATE quotas SET backups = 0");
    const before = await audit();
    const reply = await house.request("POST", `${base}/backups`, { backup: { volume_id: volume } });
    expect(reply.status).toBe(413);
    expect((await audit()).length).toBe(before.length);
  });

  it("is read in pages by administrators, by API and command line", async () => {
    const all = await audit();
    const [first, second] = all;
    const page = await journey.get(`/ops/audit?limit=1&marker=${first?.id}`);
    expect(page.audit).toEqual([second]);
    const since = new Date(Date.parse(first?.at ?? "") + 60_000).toISOString();
    expect(await audit(`&since=${encodeURIComponent(since)}`)).toEqual([]);
    expect((await house.request("GET", "/ops/audit?colour=red")).status).toBe(400);
    const args = ["audit", "--json", "--of", String(first?.resource_id), "--limit", "1"];
    const run = spawnSync(projectNode(), [join(root, "apps/cli/dist/bundle/tephra.js"), ...args], {
      env: { ...process.env, TEPHRA_URL: house.url },
      encoding: "utf8",
    });
    expect(run.stderr).toBe("");
    expect(JSON.parse(run.stdout).audit).toEqual([first]);
  });

  it("forgets what is older than its retention", async () => {
    const [entry] = await audit();
    await house.sql("UPDATE audit SET at = now() - interval '91 days' WHERE id = $1", [entry?.id]);
    await house.setDue("forget-audit");
    const gone = async () => !(await audit()).some(({ id }) => id === entry?.id);
    await house.waitFor(gone, { what: "the old entry is forgotten", timeoutMs: 60_000 });
  });
});
