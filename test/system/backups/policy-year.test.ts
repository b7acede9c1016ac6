import { randomBytes, randomUUID } from "node:crypto";
import { chmodSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inDatabase } from "@tephra/control/process";
import { openRepository } from "@tephra/engine";
import { expect, inject, it } from "vitest";
import { withClient } from "../../../scripts/postgres.ts";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { migrate } from "../../../scripts/services.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, sha256Of, writeIslands } from "../../kit/journey.ts";
import { isLong } from "../../kit/long.ts";
import { startSteppedPostgres } from "../../kit/stepped-clock.ts";
import { startSwift } from "../../kit/swift.ts";
import { Random } from "../../reliability/fuzz/random.ts";

const MiB = 1024 * 1024;
/** Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());

/**
 * The long form: a year of twenty volumes. A real store takes several times as long for an object as a folder does. A backup that is kept for months
 * has all that were made since stay with it: what is squashed is as old as the oldest that is kept.
 */
const { days, counts, retention, longest } = isLong
  ? { days: 365, counts: { near: 16, far: 4 }, retention: { keep_daily: 7, keep_weekly: 4 }, longest: 30 }
  : { days: 6, counts: { near: 1, far: 0 }, retention: { keep_daily: 2, keep_weekly: 1 }, longest: 2 };

const volumeBytes = MiB;
const blockBytes = 32 * 1024;
const blocks = volumeBytes / blockBytes;
const countOf = (repository: string): number => counts[repository as keyof typeof counts];
/** Of a day. */
const changedBlocks = 2;
const stepMs = 61 * 60_000;

/** What the long form is run for: its figures. */
const say = (text: string): boolean => isLong && process.stdout.write(`${text}\n`);

/** A folder for programs of other users. */
function openFolder(prefix: string): string {
  const dir = mkdtempSync(join(inject("servers").dir, prefix));
  chmodSync(dir, 0o711);
  return dir;
}

/** Every object of a repository: its name, and how many bytes it has. */
async function objectsOf(url: string, credentials: string | undefined): Promise<Map<string, number>> {
  await using repository = await openRepository(url, credentials === undefined ? {} : { credentials });
  const found = new Map<string, number>();
  for await (const container of repository.containers()) {
    for await (const { name, sizeBytes } of repository.list(container, ""))
      found.set(`${container}/${name}`, sizeBytes);
  }
  return found;
}

interface Place {
  name: string;
  url: string;
  credentials?: string;
  [setting: string]: unknown;
}

/** An initialised repository in a real store, whose clock nobody sets. */
async function startBucket(stack: AsyncDisposableStack): Promise<{ url: string; credentials: string }> {
  const store = stack.use(await startSwift());
  const credentials = join(openFolder("keys-"), "credentials.json");
  writeFileSync(credentials, JSON.stringify({ access_key: store.user, secret_key: store.key }));
  const url = `s3://b-${randomUUID()}?endpoint=${store.url}`;
  await initialiseRepository(`${url}&credentials=${encodeURIComponent(credentials)}`);
  return { url, credentials };
}

it(
  `${days} nights of policies, their retention and squashes: what is kept is exact, no more than simulated, and all there is (seed ${seed})`,
  async () => {
    const random = new Random(seed);
    await using clock = await startSteppedPostgres(openFolder("nights-"), { pauses: true });
    migrate(clock.server.url);
    const adminUrl = inDatabase(clock.server.url, "postgres");
    await withClient(adminUrl, (client) => client.query("ALTER DATABASE tephra RENAME TO tephra_template"));
    await using stack = new AsyncDisposableStack();
    const common = { object_bytes: MiB / 4, block_bytes: blockBytes, compression: "none" };
    const posix = join(openFolder("posix-"), "repository");
    await initialiseRepository(`posix:${posix}`);
    const near: Place = { name: "near", url: `posix:${posix}`, default: true, ...common };
    const repositories = isLong ? [near, { name: "far", ...(await startBucket(stack)), ...common }] : [near];
    await using instance = await startInstance({
      servers: { adminUrl, template: "tephra_template" },
      env: clock.env,
      config: {
        repositories,
        quotas: { volumes: -1, backups: -1, gigabytes: -1, backup_gigabytes: -1 },
        // After a step of the clock nothing is due for as long as a lease lasts. Short ones also run out because the machine is busy.
        worker: { slots: 4, lease_ms: 2_000, heartbeat_ms: 300 },
        tasks: { reconcile_ms: 200, dispatch_timeout_ms: 3_000, backoff_ms: 100, attempts_max: 20 },
        reaper: { interval_hours: null, grace_minutes: 60 },
      },
    });
    const user = journeyOn(instance, { patienceMs: 120_000 });
    let offset = 0;
    const forward = (seconds: number): void => {
      offset += Math.ceil(seconds);
      clock.set(offset);
    };

    const policies = await Promise.all(
      repositories.map(async ({ name }) => {
        const schedule = { cron: "0 2 * * *", timezone: "Europe/Berlin" };
        const squash = { when_chain_longer_than: longest };
        const rules = { schedule, kind: { full_every: 1000 }, retention, squash, repository: name };
        const reply = await instance.request("POST", "/ops/policies", {
          policy: { name, project_id: project, ...rules },
        });
        expect(reply.status, reply.text).toBe(201);
        return reply.body.policy as { id: string; next_at: string; repository: string };
      }),
    );
    const source = join(instance.dataDir, "source.img");
    const volumes: string[] = [];
    for (const policy of policies) {
      for (let n = 0; n < countOf(policy.repository); n++) {
        writeFileSync(source, randomBytes(volumeBytes));
        const volume = await user.importVolume(source, `of ${policy.repository} ${n}`);
        const assigned = await instance.request("POST", `/ops/policies/${policy.id}/assignments`, {
          assignment: { volume_id: volume },
        });
        expect(assigned.status, assigned.text).toBe(201);
        volumes.push(volume);
      }
    }

    const simulated = await Promise.all(
      policies.map(async ({ id }) => {
        const size = { days, full_bytes: volumeBytes, change_rate: changedBlocks / blocks };
        const reply = await instance.request("POST", "/ops/policies/simulate", { policy_id: id, ...size });
        expect(reply.status, reply.text).toBe(200);
        return reply.body.simulation as { made: number; stored_bytes: number; squashed: number; backups: unknown[] };
      }),
    );

    const written = new Map<string, string>();
    const began = performance.now();
    const minutes = (): string => `${((performance.now() - began) / 60_000).toFixed(1)} min`;
    for (let night = 0; night < days; night++) {
      const shas = new Map<string, string>();
      for (const volume of volumes) {
        const places = new Set<number>();
        while (night > 0 && places.size < changedBlocks) places.add(random.below(blocks));
        const islands = [...places].map((place) => ({ offset: place * blockBytes, data: randomBytes(blockBytes) }));
        await writeIslands(user.volumeFile(volume), null, islands);
        shas.set(volume, await sha256Of(user.volumeFile(volume)));
      }
      const [due] = await instance.sql(
        "SELECT max(next_at)::text AS at, extract(epoch FROM max(next_at) - clock_timestamp())::float8 AS s FROM policies",
      );
      forward(due.s + 1);
      await instance.waitFor(
        async () => {
          const open =
            "SELECT 1 FROM policies WHERE next_at <= $1::timestamptz UNION ALL SELECT 1 FROM policy_runs WHERE finished_at IS NULL";
          return (await instance.sql(open, [due.at])).length === 0;
        },
        { what: `the runs of night ${night} have ended`, timeoutMs: 120_000 },
      );
      const failed = await instance.sql(
        `SELECT i.state, i.reason, o.fail_reason FROM policy_run_items i LEFT JOIN operations o ON o.id = i.operation_id
       WHERE i.state <> 'succeeded'`,
      );
      expect(failed, `night ${night}`).toEqual([]);
      const newest = await instance.sql(
        `SELECT DISTINCT ON (volume_id) volume_id, id FROM backups WHERE status = 'available' AND deleted_at IS NULL
       ORDER BY volume_id, created_at DESC`,
      );
      for (const { volume_id, id } of newest) {
        expect(written.has(id), `volume ${volume_id} was backed up in night ${night}`).toBe(false);
        written.set(id, shas.get(volume_id) ?? "");
      }
      expect(newest).toHaveLength(volumes.length);
      await retentionIsDone(instance, policies, () => forward(stepMs / 1000));
      if (night % 30 === 29) say(`${night + 1} nights in ${minutes()}`);
    }

    const kept = await instance.sql(
      `SELECT id, volume_id, repository, container, service_metadata AS prefix FROM backups
     WHERE deleted_at IS NULL AND status = 'available' ORDER BY created_at`,
    );
    expect(kept.length).toBe(
      simulated.reduce((sum, { backups }, n) => sum + backups.length * countOf(repositories[n]?.name ?? ""), 0),
    );
    expect(Math.min(...simulated.map(({ squashed }) => squashed)), "chains were squashed").toBeGreaterThan(0);
    const exactly = async (): Promise<void> => {
      for (let one = left.pop(); one !== undefined; one = left.pop())
        await user.expectExact(one.id, written.get(one.id) ?? "not written");
    };
    const left = [...kept];
    await Promise.all(Array.from({ length: 4 }, exactly));
    say(`${kept.length} kept backups are exact, after ${minutes()}`);

    // What is due in the nights that are skipped now would be made up for.
    for (const { id } of policies) {
      const off = await instance.request("PUT", `/ops/policies/${id}`, { policy: { enabled: false } });
      expect(off.status, off.text).toBe(200);
    }
    forward(2 * 24 * 3_600);
    await user.expectQuiet();
    for (const [n, { name, url, credentials }] of repositories.entries()) {
      const objects = await objectsOf(url, credentials);
      const prefixes = kept
        .filter(({ repository }) => repository === name)
        .map((one) => `${one.container}/${one.prefix}`);
      const foreign = [...objects.keys()].filter((object) => !prefixes.some((prefix) => object.startsWith(prefix)));
      expect(foreign, `${name}: objects of no backup`).toEqual([]);
      const stored = [...objects.values()].reduce((sum, bytes) => sum + bytes, 0);
      const told = (simulated[n]?.stored_bytes ?? 0) * countOf(name);
      say(`${name}: ${stored} bytes in ${objects.size} objects, ${told} simulated (${(stored / told).toFixed(3)})`);
      expect(Math.abs(stored / told - 1), `${name}: ${stored} bytes are stored, ${told} were simulated`).toBeLessThan(
        0.1,
      );
    }
  },
  3 * 3_600_000,
);

/** Goes on, an hour at a time, until the policies have nothing to delete or to squash and nothing runs. */
async function retentionIsDone(instance: Instance, policies: readonly { id: string }[], goOn: () => void) {
  const until = (what: string, isSo: () => Promise<boolean>) =>
    instance.waitFor(isSo, { what, timeoutMs: 120_000, everyMs: 30 });
  const isEmpty = async (sql: string, params: unknown[] = []) => (await instance.sql(sql, params)).length === 0;
  const nothingRuns = () =>
    until("nothing runs", () =>
      isEmpty(
        "SELECT 1 FROM operations WHERE state IN ('queued', 'running') UNION ALL SELECT 1 FROM tasks WHERE state = 'ready'",
      ),
    );
  const isDone = async (): Promise<boolean> => {
    let wanted = 0;
    for (const { id } of policies) {
      const { body, text } = await instance.request("POST", `/ops/policies/${id}/preview`, {});
      expect(body, text).toHaveProperty("preview");
      wanted += body.preview.go.length + body.preview.squash.length;
    }
    return wanted === 0;
  };
  await nothingRuns();
  for (let passes = 0; passes < 30; passes += 1) {
    if (await isDone()) return;
    const [before] = await instance.sql("SELECT clock_timestamp()::text AS at");
    goOn();
    // The last piece of hourly work: by then retention has ended, in which a step of the clock would end its transaction.
    const passed =
      "SELECT 1 FROM schedules WHERE name = 'forget-operations' AND ran_at > $1::timestamptz + interval '30 seconds'";
    await until("retention has looked", async () => !(await isEmpty(passed, [before.at])));
    await nothingRuns();
  }
  throw new Error("retention does not come to an end");
}
