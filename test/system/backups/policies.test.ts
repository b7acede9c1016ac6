import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, writeIslands } from "../../kit/journey.ts";
import { type Finished, startTephra } from "../../kit/tephra-command.ts";

const MiB = 1024 * 1024;

async function tephra(instance: Instance, ...args: string[]): Promise<Finished> {
  const finished = await startTephra([...args, "--json"], { TEPHRA_URL: instance.url }).finished;
  expect(finished.status, `tephra ${args.join(" ")}: ${finished.stderr}`).toBe(0);
  return finished;
}

const sha256 = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

/** A receiver of notifications, and the types of the events about policies that have come, by policy. */
async function openReceiver(stack: AsyncDisposableStack) {
  const told: { event_type: string; payload: Record<string, unknown> }[] = [];
  const server = createServer(async (req, res) => {
    const text = (await req.toArray()).join("");
    told.push(JSON.parse(text));
    res.end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  stack.defer(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, "close");
  });
  return { told, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/` };
}

it("a policy backs a project up by itself: full first, then incremental, late ones made up for once, and all exact", async () => {
  await using stack = new AsyncDisposableStack();
  const receiver = await openReceiver(stack);
  const webhooks = [{ name: "here", url: receiver.url, secret: "sixteen characters" }];
  await using instance = await startInstance({
    config: { notifications: { webhooks } },
    repository: { object_bytes: MiB },
  });
  const user = journeyOn(instance);
  const source = join(instance.dataDir, "disk.img");
  writeFileSync(source, randomBytes(3 * MiB));
  const volumes = [await user.importVolume(source, "one"), await user.importVolume(source, "two")];
  const rules = [
    "--cron",
    "0 2 * * *",
    "--timezone",
    "Europe/Berlin",
    "--full-every",
    "3",
    "--keep",
    "daily=7",
    "--keep",
    "within=36h",
  ];
  const made = (await tephra(instance, "policy", "create", "nightly", ...rules)).json.policy;
  expect(made).toMatchObject({
    name: "nightly",
    kind: { full_every: 3 },
    retention: { keep_daily: 7, keep_within: "36h" },
  });
  await tephra(instance, "policy", "assign", "nightly", "--whole-project");
  expect((await tephra(instance, "policy", "of", "one")).json).toMatchObject({
    policy: { name: "nightly" },
    by: "project",
  });

  const runs = async () => (await tephra(instance, "policy", "runs", "nightly")).json.runs;
  const ended = async (count: number) =>
    instance.waitFor(
      async () => {
        const found = await runs();
        return found.length === count && found.every((run: { finished_at: string | null }) => run.finished_at) && found;
      },
      { what: `${count} runs have ended` },
    );
  const makeDue = (ago: string) =>
    instance.sql("UPDATE policies SET next_at = now() - $1::interval WHERE id = $2", [ago, made.id]);
  const latest = async (volume: string): Promise<{ id: string; parent_id: string | null; name: string }> =>
    (
      await instance.sql(
        "SELECT id, parent_id, name FROM backups WHERE volume_id = $1 ORDER BY created_at DESC LIMIT 1",
        [volume],
      )
    )[0];
  /** The newest backups, restored, are what the volumes are. */
  const expectExact = async () => {
    for (const volume of volumes) await user.expectExact((await latest(volume)).id, sha256(user.volumeFile(volume)));
  };

  await makeDue("1 second");
  const [first] = await ended(1);
  expect(first).toMatchObject({ state: "ran", scheduled: true, volumes: { succeeded: 2, failed: 0 } });
  const fulls = await Promise.all(volumes.map(latest));
  expect(fulls.map(({ parent_id, name }) => [parent_id, name.slice(0, 8)])).toEqual([
    [null, "nightly "],
    [null, "nightly "],
  ]);
  await expectExact();

  for (const volume of volumes) {
    await writeIslands(user.volumeFile(volume), null, [{ offset: MiB, data: randomBytes(4096) }]);
  }
  await makeDue("10 minutes");
  const second = (await ended(2)).find((run: { state: string }) => run.state === "late");
  expect(second).toMatchObject({
    state: "late",
    reason: expect.stringContaining("No worker was alive"),
    volumes: { succeeded: 2 },
  });
  expect((await Promise.all(volumes.map(latest))).map(({ parent_id }) => parent_id)).toEqual(fulls.map(({ id }) => id));
  await expectExact();

  // By hand, and while one of the two volumes is busy.
  await instance.sql("UPDATE volumes SET status = 'maintenance' WHERE id = $1", [volumes[1]]);
  const begun = (await tephra(instance, "policy", "run", "nightly")).json.run;
  expect(begun).toMatchObject({ scheduled: false, finished_at: null });
  const shown = async () => (await tephra(instance, "policy", "runs", "nightly", begun.id)).json;
  await instance.waitFor(async () => (await shown()).run.volumes.succeeded === 1, { what: "the volume is backed up" });
  const busy = (await shown()).items.find((item: { volume_id: string }) => item.volume_id === volumes[1]);
  expect(busy).toMatchObject({ state: "waiting", reason: expect.stringContaining('"maintenance"') });
  await instance.sql("UPDATE volumes SET status = 'available' WHERE id = $1", [volumes[1]]);
  await instance.sql("UPDATE policy_run_items SET starts_at = now()");
  await ended(3);
  await expectExact();

  const protection = async () => (await tephra(instance, "volume", "protection")).json;
  expect(await protection()).toMatchObject({
    facets: { state: { protected: 2, late: 0, excluded: 0 } },
    volumes: [
      { protection: { state: "protected", policy: { name: "nightly" } } },
      { protection: { state: "protected" } },
    ],
  });
  await tephra(instance, "volume", "exclude", "two", "--reason", "scratch");
  expect((await protection()).facets.state).toMatchObject({ protected: 1, excluded: 1 });
  await tephra(instance, "volume", "include", "two");
  expect((await protection()).facets.state).toMatchObject({ protected: 2, excluded: 0 });
  const counted = (await tephra(instance, "status")).json.status.figures.volumes as Record<string, number>;
  expect(Object.values(counted).reduce((sum, number) => sum + number, 0)).toBe(2);

  await tephra(instance, "policy", "update", "nightly", "--disable");
  expect((await tephra(instance, "policy", "show", "nightly")).json.policy).toMatchObject({
    enabled: false,
    next_at: null,
  });
  await tephra(instance, "policy", "unassign", "nightly", "--whole-project");
  expect((await tephra(instance, "policy", "of", "two")).json).toMatchObject({ policy: null });
  const metrics = (await instance.request("GET", "/metrics")).text;
  expect(metrics).toContain('tephra_policy_runs_total{outcome="succeeded"} 2');
  expect(metrics).toContain('tephra_policy_runs_total{outcome="late"} 1');
  const types = () => receiver.told.map(({ event_type }) => event_type).filter((type) => type.startsWith("policy."));
  await expect
    .poll(() => types().sort())
    .toEqual([...Array(3).fill("policy.run.end"), ...Array(3).fill("policy.run.start")]);
  await tephra(instance, "policy", "delete", "nightly");
  expect((await tephra(instance, "policy", "list")).json.policies).toEqual([]);
  const orphans = await instance.sql(
    "SELECT count(*)::int AS n FROM backups WHERE policy_id = $1 AND status = 'available'",
    [made.id],
  );
  expect(orphans).toEqual([{ n: 6 }]);
});

it("a machine is backed up as a whole, at one instant", async () => {
  await using instance = await startInstance();
  const user = journeyOn(instance);
  const source = join(instance.dataDir, "disk.img");
  writeFileSync(source, randomBytes(MiB));
  const disks = [await user.importVolume(source, "boot"), await user.importVolume(source, "data")];
  const machine = { name: "machine", power_state: "SHUTOFF", boot_volume_id: disks[0] };
  const { id } = (await instance.request("POST", "/ops/instances", { instance: machine })).body.instance;
  expect((await instance.request("POST", `/ops/instances/${id}/attach`, { volume_id: disks[1] })).status).toBe(200);
  const verify = ["--verify", "quick,every=2"];
  const { policy } = (await tephra(instance, "policy", "create", "machines", "--cron", "0 2 * * *", ...verify)).json;
  expect(policy.verify).toEqual({ mode: "quick", every: 2, sample: 100 });
  await tephra(instance, "policy", "assign", "machines", "--instance", id);
  const runEnds = async (): Promise<{ items: Record<string, unknown>[]; run: Record<string, unknown> }> => {
    const { run } = (await tephra(instance, "policy", "run", "machines")).json;
    return instance.waitFor(
      async () => {
        const shown = (await tephra(instance, "policy", "runs", "machines", run.id)).json;
        return shown.run.finished_at && shown;
      },
      { what: "the run has ended" },
    );
  };
  for (const incremental of [false, true]) {
    const { items } = await runEnds();
    expect(items).toMatchObject([{ instance_id: id, volume_id: null, state: "succeeded", incremental }]);
  }
  const backups = await instance.sql(
    `SELECT volume_id, group_snapshot_id, parent_id IS NOT NULL AS incremental FROM backups
     WHERE policy_id IS NOT NULL AND status = 'available' ORDER BY created_at`,
  );
  expect(backups).toHaveLength(4);
  expect(new Set(backups.map((row) => row.group_snapshot_id)).size).toBe(2);
  expect(backups.filter((row) => row.incremental)).toHaveLength(2);
  // Of the second run, and without anybody asking.
  const verified = async () =>
    (await instance.sql("SELECT parent_id FROM backups WHERE verified_mode = 'quick'")).map((row) => row.parent_id);
  await instance.waitFor(async () => (await verified()).length === 2, { what: "both are verified" });
  expect(await verified()).not.toContain(null);
  const shown = (await tephra(instance, "volume", "protection")).json.volumes;
  expect(shown.map((row: { protection: object }) => row.protection)).toMatchObject(
    disks.map(() => ({ last_good: { verified_mode: "quick" } })),
  );
});
