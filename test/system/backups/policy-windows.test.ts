import { randomBytes, randomUUID } from "node:crypto";
import { chmodSync, copyFileSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inDatabase } from "@tephra/control/process";
import { expect, inject, it } from "vitest";
import { withClient } from "../../../scripts/postgres.ts";
import { migrate } from "../../../scripts/services.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project } from "../../kit/journey.ts";
import { times } from "../../kit/long.ts";
import { startSteppedPostgres } from "../../kit/stepped-clock.ts";

/** Of one policy, due at 02:00 with a jitter of half an hour. */
const volumeCount = times({ usual: 24, long: 2_000 });
const jitterMinutes = 30;
/** The clock is moved by so much at a time. */
const stepMinutes = 5;

it(`the starts of ${volumeCount} backups are spread, none is missed; a night without workers is made up for once`, async () => {
  const dir = mkdtempSync(join(inject("servers").dir, "windows-"));
  chmodSync(dir, 0o711);
  await using clock = await startSteppedPostgres(dir);
  migrate(clock.server.url);
  const adminUrl = inDatabase(clock.server.url, "postgres");
  await withClient(adminUrl, (client) => client.query("ALTER DATABASE tephra RENAME TO tephra_template"));
  await using instance = await startInstance({
    servers: { adminUrl, template: "tephra_template" },
    env: clock.env,
    config: {
      quotas: { volumes: -1, backups: -1, gigabytes: -1, backup_gigabytes: -1 },
      worker: { slots: 4, lease_ms: 4_000, heartbeat_ms: 300 },
      tasks: { reconcile_ms: 200, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
      reaper: { interval_hours: null },
    },
  });
  const user = journeyOn(instance, { patienceMs: 120_000 });
  let offset = 0;
  const forward = (seconds: number): void => {
    offset += Math.ceil(seconds);
    clock.set(offset);
  };
  /** To so many minutes after the policy is due next. */
  const forwardTo = async (minutes: number): Promise<void> => {
    const [due] = await instance.sql(
      "SELECT extract(epoch FROM next_at - clock_timestamp())::float8 AS s FROM policies",
    );
    forward(due.s + minutes * 60);
  };
  const source = join(instance.dataDir, "source.img");
  writeFileSync(source, randomBytes(16 * 1024));
  const first = await user.importVolume(source);
  const others = Array.from({ length: volumeCount - 1 }, () => randomUUID());
  await instance.sql(
    `INSERT INTO volumes SELECT (jsonb_populate_record(v, jsonb_build_object('id', n))).* FROM volumes v, unnest($1::uuid[]) n`,
    [others],
  );
  for (const id of others) copyFileSync(user.volumeFile(first), user.volumeFile(id));
  const schedule = { cron: "0 2 * * *", window_minutes: 120, jitter_minutes: jitterMinutes };
  const made = await instance.request("POST", "/ops/policies", { policy: { name: "nightly", schedule } });
  expect(made.status, made.text).toBe(201);
  const assignment = { project_id: project };
  await instance.request("POST", `/ops/policies/${made.body.policy.id}/assignments`, { assignment });

  const states = async (): Promise<Record<string, number>> => {
    const rows = await instance.sql(
      "SELECT state || CASE WHEN starts_at > now() THEN ' later' ELSE '' END AS state, count(*)::int AS n FROM policy_run_items GROUP BY 1",
    );
    return Object.fromEntries(rows.map(({ state, n }) => [state, n]));
  };
  const latencies: number[] = [];
  /** All that is due by now is done; the API is asked all the while. */
  const settled = async (): Promise<number> => {
    await instance.waitFor(
      async () => {
        const began = performance.now();
        expect((await instance.request("GET", `/v3/${project}/backups/detail?limit=50`)).status).toBe(200);
        latencies.push(performance.now() - began);
        const { waiting = 0, running = 0, ...rest } = await states();
        return Object.keys(rest).length > 0 && waiting + running === 0;
      },
      { what: "what is due is done", timeoutMs: 600_000, everyMs: 20 },
    );
    return (await states())["succeeded"] ?? 0;
  };

  await forwardTo(0.1);
  await instance.waitFor(async () => (await instance.sql("SELECT FROM policy_run_items")).length === volumeCount, {
    what: "the run has begun",
  });
  const begun: number[] = [];
  for (let minute = 0; minute < jitterMinutes; minute += stepMinutes) {
    forward(stepMinutes * 60);
    begun.push((await settled()) - begun.reduce((sum, count) => sum + count, 0));
  }
  expect(await states()).toEqual({ succeeded: volumeCount });
  const late = await instance.sql(
    "SELECT max(extract(epoch FROM started_at - starts_at))::float8 AS s FROM policy_run_items",
  );
  // No item begins before its time, nor later than at the next step.
  expect(late[0].s).toBeLessThan(stepMinutes * 60 + 600);
  const p99 = latencies.toSorted((one, other) => one - other)[Math.floor(latencies.length * 0.99)];
  process.stdout.write(
    `${volumeCount} backups, begun in each ${stepMinutes} minutes: ${begun.join(" ")}; a list of backups meanwhile: p99 ${p99?.toFixed(0)} ms of ${latencies.length}\n`,
  );

  const runs = () =>
    instance.sql("SELECT state, reason, finished_at IS NOT NULL AS ended FROM policy_runs ORDER BY due_at");
  const ended = () =>
    instance.waitFor(async () => (await runs()).every((run) => run.ended), { what: "the runs have ended" });
  // A run ends at the reconciler's next round after its last item.
  await ended();
  // Nobody is there from ten to two until ten past three.
  await forwardTo(-10);
  await Promise.all(instance.workers.map((worker) => worker.stop()));
  await forwardTo(70);
  const ran = { state: "ran", reason: null, ended: true };
  // The API, which reconciles as well, sees that it is due, and leaves it.
  const [{ at }] = await instance.sql("SELECT now() AS at");
  await instance.waitFor(
    async () =>
      (await instance.sql("SELECT FROM leaders WHERE role = 'reconciler' AND held_until > $1::timestamptz", [at]))
        .length > 0,
    { what: "the API reconciles" },
  );
  expect(await runs()).toEqual([ran]);
  await instance.startWorker();
  await instance.waitFor(async () => (await runs()).length === 2, { what: "the night is made up for" });
  forward(jitterMinutes * 60 + 1);
  await settled();
  await ended();
  const madeUp = { state: "late", reason: expect.stringContaining("No worker was alive"), ended: true };
  expect(await runs()).toEqual([ran, madeUp]);
  expect(await states()).toEqual({ succeeded: 2 * volumeCount });
  expect(await instance.sql("SELECT count(*)::int AS n FROM backups WHERE status = 'available'")).toEqual([
    { n: 2 * volumeCount },
  ]);
}, 3_600_000);
