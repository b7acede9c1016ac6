import { randomBytes } from "node:crypto";
import { readdirSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { times } from "../../kit/long.ts";
import { randomFrom } from "../../kit/random.ts";
import { startTephra } from "../../kit/tephra-command.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;

/** Printed with every failure; set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(3).readUIntLE(0, 3));

const graceSeconds = 3;
const brisk = {
  config: {
    range_bytes: 1 * MiB,
    quotas: { backups: -1, backup_gigabytes: -1, volumes: -1, gigabytes: -1 },
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400 },
    // A lease may also run out because the machine is busy, which is no fault of the task.
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100, attempts_max: 20 },
    reaper: { grace_minutes: graceSeconds / 60, interval_hours: null },
  },
  repository: { object_bytes: 256 * 1024 },
};

interface Chain {
  volume: string;
  /** Oldest first, each with the digest of the volume then. */
  backups: { id: string; sha256: string }[];
}

/** A volume of 4 MiB, backed up as often as asked; each incremental changes a little. */
async function makeChain(instance: Instance, user: Journey, length: number): Promise<Chain> {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 4 * MiB + 321, [{ offset: 0, data: randomBytesOf("disk", 3 * MiB) }]);
  const volume = await user.importVolume(image);
  const chain: Chain = { volume, backups: [] };
  for (let i = 0; i < length; i += 1) await addMember(user, chain, i);
  return chain;
}

async function addMember(user: Journey, chain: Chain, step: number): Promise<void> {
  const data = randomBytesOf(`change ${step} ${chain.backups.length}`, 30_000);
  await writeIslands(user.volumeFile(chain.volume), null, [{ offset: MiB + 17 + step * 60_000, data }]);
  const sha256 = await sha256Of(user.volumeFile(chain.volume));
  const id = await user.backUp(chain.volume, { incremental: chain.backups.length > 0, force: true });
  chain.backups.push({ id, sha256 });
}

const squash = async (user: Journey, id: string): Promise<string> =>
  (await user.accepted("POST", `/ops/backups/${id}/squash`, {})).operation.id;

async function ended(instance: Instance, id: string, state = "succeeded") {
  const operation = await instance.waitFor(
    async () => {
      const { body } = await instance.request("GET", `/ops/operations/${id}`);
      return ["succeeded", "failed", "cancelled"].includes(body.operation.state) && body.operation;
    },
    { what: `operation ${id} has ended`, timeoutMs: 90_000 },
  );
  expect(operation.state, operation.fail_reason).toBe(state);
  return operation;
}

const idsOf = async (user: Journey): Promise<string[]> =>
  (await user.get(`${base}/backups`)).backups.map(({ id }: { id: string }) => id).sort();

/** Waits until the backups of the project are these. */
const left = (instance: Instance, user: Journey, ids: readonly string[]): Promise<unknown> =>
  instance.waitFor(async () => JSON.stringify(await idsOf(user)) === JSON.stringify([...ids].sort()), {
    what: `backups ${ids.join(", ")} are left`,
    timeoutMs: 90_000,
  });

/** Prefixes of all backups in the repository, whole or not. */
function prefixesIn(instance: Instance): string[] {
  const prefixes = new Set<string>();
  for (const entry of readdirSync(instance.repositoryDir, { recursive: true, withFileTypes: true })) {
    if (entry.isFile() && entry.name.startsWith("volume_"))
      prefixes.add(entry.name.replace(/(?:-\d+|_[a-z0-9]+)$/, ""));
  }
  return [...prefixes].sort();
}

async function prefixesOfRows(instance: Instance): Promise<string[]> {
  const rows = await instance.sql("SELECT service_metadata AS prefix FROM backups WHERE deleted_at IS NULL");
  return rows.map((row) => String(row["prefix"])).sort();
}

/** Quiet, with objects of the rows and of nothing else. */
async function expectNothingBehind(instance: Instance, user: Journey): Promise<void> {
  await user.expectQuiet();
  expect(prefixesIn(instance)).toEqual(await prefixesOfRows(instance));
}

async function expectAllExact(user: Journey, backups: Chain["backups"]): Promise<void> {
  for (const { id, sha256 } of backups) await user.expectExact(id, sha256);
}

describe("a squash", { timeout: 240_000 }, () => {
  it("makes a full backup of an incremental, lets go of what it was merged of, and is told like everything else", async () => {
    await using instance = await startInstance(brisk);
    const user = journeyOn(instance);
    const chain = await makeChain(instance, user, 5);
    const [first, , , squashed, newest] = chain.backups as Chain["backups"] & { length: 5 };
    const before = (await user.get(`${base}/backups/${squashed?.id}`)).backup;
    const asked = ["backup", "squash", squashed?.id ?? "", "--wait", "--json"];
    const done = await startTephra(asked, { TEPHRA_URL: instance.url }).finished;
    expect(done.status, done.stderr).toBe(0);
    const { result, kind } = done.json.operation;
    expect(kind).toBe("backup-squash");
    // Of 17 windows two were changed.
    expect(result.squash).toMatchObject({ id: squashed?.id, objects: 17 });
    expect(result.squash.taken_bytes + result.squash.merged_bytes).toBe(4 * MiB + 321);
    expect(result.squash.merged_bytes).toBeLessThanOrEqual(3 * 256 * 1024);
    expect(result.squash.merged).toEqual(
      chain.backups
        .slice(0, 3)
        .map(({ id }) => id)
        .reverse(),
    );
    await left(instance, user, [squashed?.id ?? "", newest?.id ?? ""]);
    const after = (await user.get(`${base}/backups/${squashed?.id}`)).backup;
    expect(after).toMatchObject({ status: "available", is_incremental: false, name: before.name, size: before.size });
    expect(after.created_at).toBe(before.created_at);
    await expectNothingBehind(instance, user);
    await expectAllExact(user, chain.backups.slice(3));
    const events = await instance.sql(
      "SELECT event_type FROM notifications WHERE event_type LIKE 'backup.squash%' ORDER BY sequence",
    );
    expect(events.map((row) => row["event_type"])).toEqual(["backup.squash.start", "backup.squash.end"]);
    const { audit } = await user.get(`/ops/audit?resource=backup&resource_id=${first?.id}`);
    expect(audit.map(({ to }: { to: string }) => to)).toContain("deleted");
    expect(JSON.stringify(audit)).toContain(`It was merged into backup ${squashed?.id}.`);
    const used = await instance.sql("SELECT backups_used AS used FROM quotas WHERE project_id = $1", [project]);
    expect(used.map((row) => Number(row["used"]))).toEqual([2]);
    // It goes on: an incremental on the newest, and another squash.
    await addMember(user, chain, 7);
    await ended(instance, await squash(user, chain.backups[5]?.id ?? ""));
    await left(instance, user, [chain.backups[5]?.id ?? ""]);
    await expectNothingBehind(instance, user);
    await expectAllExact(user, chain.backups.slice(5));
  });

  it("is refused for what it cannot be of, with the reason, and changes nothing", async () => {
    await using instance = await startInstance(brisk);
    const user = journeyOn(instance);
    const { backups } = await makeChain(instance, user, 3);
    const [full, middle, newest] = backups.map(({ id }) => id) as [string, string, string];
    const ask = async (id: string, body: unknown = {}) => {
      const { status, text } = await instance.request("POST", `/ops/backups/${id}/squash`, body);
      return { status, text };
    };
    expect(await ask(full)).toMatchObject({ status: 400, text: expect.stringContaining("nothing to squash") });
    expect(await ask("00000000-0000-4000-8000-000000000000")).toMatchObject({ status: 404 });
    expect(await ask(newest, { into: "x" })).toMatchObject({ status: 400, text: expect.stringContaining("into") });
    await instance.sql("UPDATE backups SET damage = 'x-00001: it is missing' WHERE id = $1", [middle]);
    expect(await ask(newest)).toMatchObject({
      status: 400,
      text: expect.stringContaining(`backup ${middle} is damaged`),
    });
    await instance.sql("UPDATE backups SET damage = NULL WHERE id = $1", [middle]);
    await instance.sql("UPDATE backups SET status = 'error' WHERE id = $1", [middle]);
    expect(await ask(newest)).toMatchObject({ status: 400, text: expect.stringContaining(`backup ${middle} must be`) });
    await instance.sql("UPDATE backups SET status = 'available' WHERE id = $1", [middle]);
    await instance.workers[0]?.stop();
    const running = await squash(user, newest);
    expect(await ask(middle)).toMatchObject({ status: 409, text: expect.stringContaining(running) });
    expect(await ask(newest)).toMatchObject({ status: 409 });
    expect(await idsOf(user)).toEqual([full, middle, newest].sort());
  });

  it("waits with the old objects for who reads them: a restore that was planned before is exact", async () => {
    await using instance = await startInstance({ ...brisk, workers: 1 });
    const user = journeyOn(instance);
    const chain = await makeChain(instance, user, 4);
    const [, , squashed, newest] = chain.backups as [unknown, unknown, Chain["backups"][0], Chain["backups"][0]];
    await user.expectQuiet();
    await instance.workers[0]?.stop();
    const doomed = await instance.startWorker(crashAt("restore:1"));
    const target = await user.startRestore(newest.id);
    await instance.waitFor(() => !doomed.running(), { what: "the worker died in the restore", timeoutMs: 60_000 });
    // Nobody goes on with it for now.
    const hold =
      "UPDATE tasks SET needs = array_append(needs, 'nowhere') WHERE kind = 'restore' AND state <> 'succeeded'";
    await instance.sql(hold);
    const old = prefixesIn(instance);
    await instance.startWorker();
    await ended(instance, await squash(user, squashed.id));
    // What is accepted now has the new chain.
    await user.expectExact(squashed.id, squashed.sha256);
    const [tidy] = await instance.sql(
      "SELECT t.state FROM tasks t JOIN operations o ON o.id = operation_id WHERE o.kind = 'backup-squash' AND t.kind = 'tidy'",
    );
    expect(tidy).toEqual({ state: "blocked" });
    expect(prefixesIn(instance)).toEqual(expect.arrayContaining(old));
    expect(await idsOf(user)).toHaveLength(4);
    await instance.sql("UPDATE tasks SET needs = array_remove(needs, 'nowhere') WHERE 'nowhere' = ANY(needs)");
    await user.settled("volumes", target, "available");
    expect(await sha256Of(user.volumeFile(target))).toBe(newest.sha256);
    await left(instance, user, [squashed.id, newest.id]);
    await expectNothingBehind(instance, user);
    await expectAllExact(user, [squashed, newest]);
  });

  it("keeps a member that others build on, and what that builds on", async () => {
    await using instance = await startInstance(brisk);
    const user = journeyOn(instance);
    const chain = await makeChain(instance, user, 4);
    const [full, middle, above, squashed] = chain.backups as [
      Chain["backups"][0],
      Chain["backups"][0],
      Chain["backups"][0],
      Chain["backups"][0],
    ];
    // A volume that was restored from the second builds on it.
    const branch: Chain = { volume: await user.restore(middle.id), backups: [] };
    await writeIslands(user.volumeFile(branch.volume), null, [
      { offset: 2 * MiB + 5, data: randomBytesOf("branch", 9000) },
    ]);
    const sha256 = await sha256Of(user.volumeFile(branch.volume));
    const child = { id: await user.backUp(branch.volume, { incremental: true }), sha256 };
    await ended(instance, await squash(user, squashed.id));
    const kept = [full, middle, squashed, child];
    await left(
      instance,
      user,
      kept.map(({ id }) => id),
    );
    expect(await idsOf(user)).not.toContain(above.id);
    await expectNothingBehind(instance, user);
    await expectAllExact(user, kept);
    // Each is an ordinary backup, and can be deleted when nothing builds on it.
    for (const { id } of [child, middle, full]) await user.deleteBackup(id);
    await expectAllExact(user, [squashed]);
  });

  it("that is sealed and not entered is one backup to a rescan that knows the repository alone", async () => {
    await using instance = await startInstance({ ...brisk, workers: 1 });
    const user = journeyOn(instance);
    const chain = await makeChain(instance, user, 4);
    const squashed = chain.backups[2] as Chain["backups"][0];
    await user.expectQuiet();
    await instance.workers[0]?.stop();
    const doomed = await instance.startWorker(crashAt("seal-squash.reporting:1"));
    await squash(user, squashed.id);
    await instance.waitFor(() => !doomed.running(), { what: "the worker died in the seal", timeoutMs: 60_000 });
    expect(prefixesIn(instance)).toHaveLength(5);
    await instance.sql("DELETE FROM tasks");
    await instance.sql("DELETE FROM operations");
    await instance.sql("DELETE FROM backups");
    await instance.startWorker();
    const { operation } = await user.accepted("POST", "/ops/repositories/main/rescan", { project_id: project });
    const { result } = await ended(instance, operation.id);
    expect(result).toMatchObject({ found: 4, entered: 4, problems: [] });
    const parents = await instance.sql("SELECT id, parent_id AS parent FROM backups ORDER BY created_at, id");
    const ids = chain.backups.map(({ id }) => id);
    const byId = new Map(parents.map((row) => [row["id"], row["parent"]]));
    expect(ids.map((id) => byId.get(id))).toEqual([null, ids[0], null, ids[2]]);
    await expectAllExact(user, chain.backups);
  });

  it("ends with the deletion of its backup, and leaves nothing behind", async () => {
    await using instance = await startInstance({ ...brisk, workers: 1 });
    const user = journeyOn(instance);
    const chain = await makeChain(instance, user, 3);
    const newest = chain.backups[2] as Chain["backups"][0];
    await user.expectQuiet();
    await instance.workers[0]?.stop();
    const doomed = await instance.startWorker(crashAt("seal-squash.reporting:1"));
    const operation = await squash(user, newest.id);
    await instance.waitFor(() => !doomed.running(), { what: "the worker died in the seal", timeoutMs: 60_000 });
    await user.accepted("DELETE", `${base}/backups/${newest.id}`);
    await instance.startWorker();
    await ended(instance, operation, "cancelled");
    await left(
      instance,
      user,
      chain.backups.slice(0, 2).map(({ id }) => id),
    );
    await expectNothingBehind(instance, user);
    await expectAllExact(user, chain.backups.slice(0, 2));
  });

  it("is spared by the reaper while it lives, and what a dead one has left is removed", async () => {
    await using instance = await startInstance({ ...brisk, workers: 1 });
    const user = journeyOn(instance);
    const chain = await makeChain(instance, user, 3);
    const newest = chain.backups[2] as Chain["backups"][0];
    await user.expectQuiet();
    const before = prefixesIn(instance);
    await instance.workers[0]?.stop();
    const doomed = await instance.startWorker(crashAt("seal-squash:1"));
    const operation = await squash(user, newest.id);
    await instance.waitFor(() => !doomed.running(), { what: "the worker died in the seal", timeoutMs: 60_000 });
    await instance.sql("UPDATE tasks SET needs = array_append(needs, 'nowhere') WHERE kind = 'seal-squash'");
    const whole = prefixesIn(instance);
    expect(whole).toHaveLength(4);
    const since = Date.now();
    await instance.startWorker();
    const reap = async () => {
      await instance.waitFor(() => Date.now() > since + (graceSeconds + 2) * 1000, { what: "names are old enough" });
      const yesterday = new Date(since - 86_400_000);
      for (const entry of readdirSync(instance.repositoryDir, { recursive: true, withFileTypes: true })) {
        utimesSync(join(entry.parentPath, entry.name), yesterday, yesterday);
      }
      const asked = await user.accepted("POST", "/ops/repositories/main/reap", {});
      return (await ended(instance, asked.operation.id)).result.removed;
    };
    expect(await reap()).toMatchObject({ objects: 0 });
    expect(prefixesIn(instance)).toEqual(whole);
    // It ends, and nobody cleans up.
    await instance.sql("DELETE FROM tasks WHERE operation_id = $1", [operation]);
    await instance.sql("UPDATE operations SET state = 'failed', finished_at = now() - interval '1 day' WHERE id = $1", [
      operation,
    ]);
    expect((await reap()).objects).toBeGreaterThan(0);
    expect(prefixesIn(instance)).toEqual(before);
    await expectAllExact(user, chain.backups);
    // So is what one that succeeded has replaced.
    const second = await squash(user, newest.id);
    await ended(instance, second);
    await left(instance, user, [newest.id]);
    await expectNothingBehind(instance, user);
  });
});

/** Where a worker dies, and which time it is there. */
const points = [
  "plan-squash.claimed",
  "plan-squash",
  "plan-squash.reporting",
  "squash.claimed",
  "squash",
  "squash.reporting",
  "squash.done",
  "seal-squash.claimed",
  "seal-squash",
  "seal-squash.reporting",
  "seal-squash.done",
  "tidy.claimed",
  "tidy",
  "tidy.reporting",
  "remove-backup.claimed",
  "remove-backup",
  "remove-backup.reporting",
  "transaction.committed",
];

const rounds = times({ usual: 2, long: 60 });

/** What one round does: where the worker dies, and what goes on beside the squash. */
async function squashAndKill(instance: Instance, user: Journey, random: (below: number) => number): Promise<string> {
  const chain: Chain = await makeChain(instance, user, 2 + random(3));
  const target = 1 + random(chain.backups.length - 1);
  const squashed = chain.backups[target] as Chain["backups"][0];
  const times = 1 + random(4);
  const point = `${points[random(points.length)]}:${times}`;
  const what = `${point}, squash of ${target} of ${chain.backups.length}`;
  await user.expectQuiet();
  for (const worker of instance.workers.filter((each) => each.running())) await worker.stop();
  const doomed = await instance.startWorker(crashAt(point));
  const operation = await squash(user, squashed.id);
  const restored = random(2) === 0 ? chain.backups[random(chain.backups.length)] : undefined;
  const volume = restored && (await user.startRestore(restored.id));
  if (random(2) === 0) doomed.kill("SIGKILL");
  await instance.startWorker();
  if (random(2) === 0) await addMember(user, chain, 9);
  await ended(instance, operation);
  if (volume !== undefined) {
    await user.settled("volumes", volume, "available");
    expect(await sha256Of(user.volumeFile(volume)), what).toBe(restored?.sha256);
  }
  const kept = [...(await neededBelow(instance, chain, target)), ...chain.backups.slice(target)];
  await left(
    instance,
    user,
    kept.map(({ id }) => id),
  );
  // The doomed one may not have come to its point.
  doomed.kill("SIGKILL");
  await expectNothingBehind(instance, user);
  await expectAllExact(user, kept);
  for (const { id } of kept.toReversed()) await discard(instance, id);
  return what;
}

/**
 * Members that stay: a backup that was made meanwhile builds on the newest available one, which is a member while what is squashed is being
 * restored. Oldest first.
 */
async function neededBelow(instance: Instance, chain: Chain, target: number): Promise<Chain["backups"]> {
  const newer = chain.backups.slice(target + 1).map(({ id }) => id);
  const rows = await instance.sql("SELECT parent_id AS parent FROM backups WHERE id = ANY($1)", [newer]);
  const parents = rows.map((row) => chain.backups.findIndex(({ id }) => id === row["parent"]));
  return chain.backups.slice(0, Math.max(0, ...parents.filter((at) => at < target).map((at) => at + 1)));
}

/** Deletes a backup that may be deleted already, as one that was merged is when nothing builds on it any more. */
async function discard(instance: Instance, id: string): Promise<void> {
  await instance.request("DELETE", `${base}/backups/${id}`);
  const isGone = async () => (await instance.request("GET", `${base}/backups/${id}`)).status === 404;
  await instance.waitFor(isGone, { what: `backup ${id} is gone`, timeoutMs: 90_000 });
}

describe("workers that are killed at random moments of squashes", () => {
  it(`lose nothing and spoil nothing (seed ${seed}, ${rounds} rounds)`, {
    timeout: 60_000 + rounds * 90_000,
  }, async () => {
    await using instance = await startInstance({ ...brisk, workers: 1 });
    const user = journeyOn(instance);
    const random = randomFrom(seed);
    const done: string[] = [];
    for (let round = 0; round < rounds; round += 1) {
      done.push(
        await squashAndKill(instance, user, random).catch((error: unknown) => {
          throw new Error(`round ${round} (seed ${seed}), after ${done.join("; ")}`, { cause: error });
        }),
      );
    }
    expect(done).toHaveLength(rounds);
  });
});
