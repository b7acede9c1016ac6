import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Instance } from "../kit/instance.ts";
import { times } from "../kit/long.ts";
import { randomFrom } from "../kit/random.ts";
import { asking, type BesideWorld, same, startWorld, write } from "./beside-world.ts";

/** Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const races = times({ usual: 20, long: 200 });
/** Of them at the same time. */
const lanes = 4;
/** The longest that the user waits before he does something, in ms: a backup or restore takes about as long. */
const momentMax = 3_000;

let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;

beforeAll(async () => {
  world = await startWorld();
  instance = await world.start({
    workers: 2,
    config: {
      tasks: { reconcile_ms: 300, backoff_ms: 100 },
      quotas: { backups: -1, backup_gigabytes: -1 },
    },
  });
  ask = asking(instance, world.user);
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
});

const deeds = ["delete", "attach", "detach", "extend", "break off"] as const;
type Deed = (typeof deeds)[number];

/** Why a backup fails that the user has come before. */
const ofCinder = /^Cinder (?:could not|refused to) /;
const refusals: Partial<Record<Deed, RegExp>> = { extend: /^The source of volume .* bytes long|^Cinder / };

/** What the user asks Cinder for, whose answer is never 5xx. @returns whether Cinder has accepted */
async function does(deed: Deed, id: string): Promise<boolean> {
  const { user } = world;
  const call = async (method: string, path: string, body?: object): Promise<boolean> => {
    const { status, body: answer } = await user.call(method, path, body);
    expect(status, JSON.stringify(answer)).toBeLessThan(500);
    return status < 300;
  };
  const ofVolume = async (): Promise<{ id: string }[]> =>
    (await user.must("GET", `/attachments?volume_id=${id}`)).attachments;
  switch (deed) {
    case "delete":
      return call("DELETE", `/volumes/${id}`);
    case "extend":
      return call("POST", `/volumes/${id}/action`, { "os-extend": { new_size: 2 } });
    case "attach":
      return call("POST", "/attachments", { attachment: { volume_uuid: id, connector: { host: "guest" } } });
    case "detach":
      return call("POST", `/volumes/${id}/action`, { "os-detach": {} });
    case "break off": {
      const [first] = await ofVolume();
      return first !== undefined && (await call("DELETE", `/attachments/${first.id}`));
    }
  }
}

/** The newest operation of that kind once it has ended and nothing of it is left to do. */
async function settled(kind: string, backup: string) {
  return instance.waitFor(
    async () => {
      const [row] = await instance.sql(
        `SELECT o.state, o.fail_reason, (SELECT count(*) FROM tasks t WHERE t.operation_id = o.id
             AND t.state IN ('ready', 'dispatched', 'running', 'blocked')) AS left
         FROM operations o WHERE o.kind = $1 AND o.backup_id = $2 ORDER BY o.created_at DESC LIMIT 1`,
        [kind, backup],
      );
      const { state, fail_reason } = row;
      return !["preparing", "queued", "running"].includes(state) && Number(row.left) === 0 && { state, fail_reason };
    },
    { what: `the ${kind} of ${backup} has ended`, timeoutMs: 120_000 },
  );
}

/** The status of the user's volume, once Cinder is at rest with it; null when it is gone. */
async function statusOf(id: string): Promise<string | null> {
  const found = await instance.waitFor(
    async () => {
      const { status, body } = await world.user.call("GET", `/volumes/${id}`);
      if (status === 404) return { status: null };
      return /^(?:deleting|extending|detaching)$/.test(body.volume.status) ? null : { status: body.volume.status };
    },
    { what: `volume ${id} is at rest`, timeoutMs: 60_000 },
  );
  return found.status;
}

/** Restores to a new volume and compares. */
async function expectRestored(backup: string, expected: string): Promise<void> {
  const reply = await ask("POST", `/backups/${backup}/restore`, { restore: {} });
  expect(reply.status, reply.text).toBe(202);
  const { volume_id: target } = reply.body.restore;
  expect(await settled("backup-restore", backup)).toEqual({ state: "succeeded", fail_reason: null });
  await world.user.volumeIn(target, "available");
  expect(same(expected, world.cinder.file(target), GiB)).toBe(true);
  await world.user.must("DELETE", `/volumes/${target}`);
}

const counts: Record<string, number> = {};
const count = (what: string): void => {
  counts[what] = (counts[what] ?? 0) + 1;
};

interface Race {
  number: number;
  deed: Deed;
  momentMs: number;
}

/** A copy of a new volume's bytes, which nobody changes. */
async function newVolume(name: string): Promise<{ id: string; bytes: string }> {
  const { user, cinder } = world;
  const { id } = await user.createVolume({ name });
  write(cinder.file(id), 3 * MiB, 2 * MiB, `${seed} ${name}`);
  const bytes = join(instance.dataDir, name.replaceAll(" ", "-"));
  execFileSync("cp", ["--sparse=always", cinder.file(id), bytes]);
  return { id, bytes };
}

/** As a client does that is told to try again later: Cinder was too slow. */
async function asked(path: string, body: object): ReturnType<typeof ask> {
  for (let tries = 1; ; tries += 1) {
    const reply = await ask("POST", path, body);
    if (reply.status !== 503 || tries === 20) return reply;
    count("tried again");
    await sleep(500);
  }
}

async function raceWithBackup({ number, deed, momentMs }: Race): Promise<void> {
  const { id, bytes } = await newVolume(`backup ${number}`);
  const [reply, accepted] = await Promise.all([
    asked("/backups", { backup: { volume_id: id, force: true } }),
    sleep(momentMs).then(() => does(deed, id)),
  ]);
  if (reply.status !== 202) {
    // He was first: Cinder's own words.
    expect([400, 404], reply.text).toContain(reply.status);
    count("backup refused");
  } else {
    const backup = reply.body.backup.id;
    const { state, fail_reason: reason } = await settled("backup-create", backup);
    const { status } = (await ask("GET", `/backups/${backup}`)).body.backup;
    expect([state, status]).toEqual(state === "succeeded" ? ["succeeded", "available"] : ["failed", "error"]);
    if (state === "succeeded") await expectRestored(backup, bytes);
    else expect([deed, reason]).toEqual([deed, expect.stringMatching(refusals[deed] ?? ofCinder)]);
    count(`backup ${state}`);
  }
  const expected = !accepted ? "available" : { delete: null, attach: "attaching" }[deed as "delete"];
  expect([deed, await statusOf(id)]).toEqual([deed, expected === undefined ? "available" : expected]);
  rmSync(bytes);
}

async function raceWithRestore({ number, deed, momentMs }: Race, source: { backup: string; bytes: string }) {
  const { id: target } = await world.user.createVolume({ name: `target ${number}` });
  const { backup, bytes } = source;
  const [reply, accepted] = await Promise.all([
    asked(`/backups/${backup}/restore`, { restore: { volume_id: target } }),
    sleep(momentMs).then(() => does(deed, target)),
  ]);
  if (reply.status !== 202) {
    expect([400, 404], reply.text).toContain(reply.status);
    count("restore refused");
  } else {
    const { state, fail_reason: reason } = await settled("backup-restore", backup);
    count(`restore ${state}`);
    if (state !== "succeeded")
      expect(reason).toMatch(/attachment of the volume was removed|was deleted|Cinder could not/);
    else if ((await statusOf(target)) !== null)
      expect([deed, same(bytes, world.cinder.file(target), GiB)]).toEqual([deed, true]);
  }
  const status = await statusOf(target);
  // Never held by us, nor by anybody but the user.
  const possible =
    deed === "delete" && accepted ? [null] : deed === "attach" && accepted ? ["attaching"] : ["available"];
  expect([...possible, "error_restoring"], `${deed} ${accepted}`).toContain(status);
  expect((await ask("GET", `/backups/${backup}`)).body.backup.status).toBe("available");
}

it(`${races} races with the user: no wrong byte, no volume that is held or harmed`, async () => {
  process.stderr.write(`seed ${seed}\n`);
  const random = randomFrom(seed);
  const all = Array.from({ length: races }, (_, number): Race & { ofRestore: boolean } => ({
    number,
    ofRestore: number % 2 === 1,
    deed: deeds[random(deeds.length)] ?? "delete",
    momentMs: random(momentMax),
  }));
  const before = (await world.service.volumes()).length;
  expect(before).toBe(0);
  await Promise.all(
    Array.from({ length: lanes }, async (_, lane) => {
      const { id, bytes } = await newVolume(`source ${lane}`);
      const accepted = await ask("POST", "/backups", { backup: { volume_id: id } });
      const source = { backup: accepted.body.backup.id, bytes };
      expect((await settled("backup-create", source.backup)).state).toBe("succeeded");
      for (const { ofRestore, ...race } of all.filter(({ number }) => number % lanes === lane)) {
        if (ofRestore) await raceWithRestore(race, source);
        else await raceWithBackup(race);
      }
    }),
  );
  process.stderr.write(`races: ${JSON.stringify(counts)}\n`);
  const left = (await world.service.volumes()).filter(({ name }) => name?.startsWith("tephra-backup-"));
  expect(left).toEqual([]);
}, 3_600_000);
