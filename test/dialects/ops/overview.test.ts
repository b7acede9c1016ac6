import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, auth, projectB as b, startApiOnly, type Who } from "../api-only.ts";

const config = {
  auth,
  // What the test has made stays as it is.
  tasks: { unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 60_000, reconcile_ms: 3_600_000 },
  log_level: "warn",
};

interface Alert {
  code: string;
  severity: string;
  subject: string | null;
  text: string;
  since: string | null;
  count: number;
}

it("tells what asks for somebody, to each what is theirs, until it is gone", async () => {
  await using instance = await startApiOnly({ config });
  const ask = (who: Who, path: string) => instance.request("GET", path, undefined, { "x-auth-token": who });
  const alertsOf = async (who: Who): Promise<Alert[]> => (await ask(who, "/ops/overview")).body.overview.alerts;
  /** The answer may be of two seconds ago. */
  const see = (who: Who, codes: readonly string[]) =>
    instance.waitFor(
      async () => JSON.stringify((await alertsOf(who)).map(({ code }) => code)) === JSON.stringify(codes),
      {
        what: `alerts of ${who}: ${codes.join(", ")}`,
      },
    );
  await see("admin", []);

  const sql = instance.sql;
  const operation = async (state: string, ended: string): Promise<string> => {
    const id = randomUUID();
    await sql(
      `INSERT INTO operations (id, kind, state, project_id, user_id, request_id, created_at, finished_at)
       VALUES ($1, 'backup-create', $2, $3, 'u', 'req-1', now() - interval '2 hours', ${ended})`,
      [id, state, a],
    );
    return id;
  };
  const volume = async (name: string): Promise<string> => {
    const id = randomUUID();
    await sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
       VALUES ($1, $2, 'u', $3, 'available', 1, 4096, 'files', 'nova')`,
      [id, a, name],
    );
    return id;
  };
  const backup = (of: string, hours: number, damage: string | null) =>
    sql(
      `INSERT INTO backups (id, project_id, user_id, volume_id, status, damage, verified_at, size_gib, volume_bytes, stored_bytes, repository,
         data_timestamp, created_at)
       VALUES (gen_random_uuid(), $2, 'u', $1, 'available', $4, CASE WHEN $4::text IS NULL THEN now() - interval '9 days' END, 1, 4096, 1024,
         'main', now() - $3::int * interval '1 hour', now() - $3::int * interval '1 hour')`,
      [of, a, hours, damage],
    );
  await operation("failed", "now() - interval '1 hour'");
  await operation("failed", "now() - interval '25 hours'");
  const [again, whole] = [await operation("succeeded", "now()"), await operation("succeeded", "now()")];
  await sql("UPDATE operations SET retried_as = $1 WHERE id = $2", [again, await operation("failed", "now()")]);
  await sql("UPDATE operations SET parent_id = $1 WHERE id = $2", [whole, await operation("failed", "now()")]);
  const queued = await operation("queued", "NULL");
  const task = (kind: string, columns: string, values: string) =>
    sql(
      `INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs, ${columns})
       VALUES (gen_random_uuid(), $1, $2, 0, 3, $3, now() - interval '1 hour', '{repository:main}', ${values})`,
      [queued, kind, a],
    );
  await task("plan-backup", "state, unplaced_at", "'ready', now() - interval '50 minutes'");
  await task("copy", "state, dispatched_at, queue", "'dispatched', now() - interval '40 minutes', 'tephra-silent'");
  await task("seal", "state, worker_id, claim, bytes_done", "'running', 'silent', 1, 77");
  await volume("never");
  await backup(await volume("late"), 100, null);
  await backup(await volume("damaged"), 1, "an object is gone");
  await sql(
    `INSERT INTO policies (id, project_id, user_id, name, enabled, schedule, kind) VALUES ($1, $2, 'u', 'nightly', false, '{}', '{}')`,
    [queued, a],
  );
  await sql(
    `INSERT INTO policy_runs (id, policy_id, due_at, scheduled, state) VALUES ($1, $1, now() - interval '3 hours', true, 'missed')`,
    [queued],
  );
  await sql(
    `INSERT INTO quotas (project_id, volumes, volumes_used, gigabytes, gigabytes_used) VALUES ($1, 10, 9, 100, 89), ($2, 10, 8, -1, 900)`,
    [a, b],
  );
  await sql(
    `WITH told AS (INSERT INTO notifications (id, event_type, host, payload, spread) VALUES ($1, 'backup.create.end', 'here', '{}', true) RETURNING id)
     INSERT INTO deliveries (id, notification_id, target, state) SELECT id, id, 'webhook:x', 'dead' FROM told`,
    [queued],
  );
  await sql(`UPDATE workers SET reaches = '{backend:files}', unreachable = '{"repository:main": "marker not found, is it mounted?"}',
    free_bytes = '{"backend:files": 1073741824}', rss_bytes = 5000 WHERE id = 'silent'`);
  await sql(`INSERT INTO workers (id, host, pid, queue, reaches, slots, version, heartbeat_at, started_at) VALUES
    ('gone', 'there', 2, 'q', '{repository:main}', 1, '0.0.9', now() - interval '2 minutes', now() - interval '1 day'),
    ('new', 'here', 3, 'q', '{backend:files}', 1, '9.9.9', now() + interval '10 minutes', now())`);
  const found = (free: number, ...keys: string[]) =>
    JSON.stringify({ "repository:main": { ms: 7, free_bytes: free, keys } });
  const GiB = 1024 ** 3;
  await sql("UPDATE workers SET places = $1 WHERE id = 'silent'", [found(50 * GiB, "2026", "2025")]);
  await sql("UPDATE workers SET places = $1 WHERE id = 'new'", [found(40 * GiB, "2025")]);
  // It has grown by 4 GiB a day.
  await sql(
    `INSERT INTO samples (at, bytes_read, bytes_stored, succeeded, failed, cancelled, waiting, running, oldest_seconds, workers, slots, stored)
     SELECT now() - n * interval '1 day', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, jsonb_build_object('main', (20 - n) * 4294967296) FROM generate_series(1, 10) n`,
  );

  const all = [
    ...[
      "repository_down",
      "operation_stuck",
      "damage_found",
      "key_missing",
      "volumes_never",
      "volumes_late",
      "worker_silent",
    ],
    ...["operation_failed", "schedule_missed", "queue_old", "queue_drift", "disk_low", "disk_low", "quota_near"],
    ...["notifications_dead", "versions_mixed"],
  ];
  await see("admin", all);
  const told = Object.fromEntries((await alertsOf("admin")).map((alert) => [alert.code, alert]));
  const texts = Object.fromEntries(Object.values(told).map(({ code, text }) => [code, text]));
  const low = (await alertsOf("admin")).filter(({ code }) => code === "disk_low").map(({ text }) => text);
  expect(low[0]).toBe("The volume backend files on here has 1.0 GiB free.");
  expect({ ...texts, disk_low: "" }).toEqual({
    repository_down:
      "No worker can write to the repository main; 1 operation waits (here: marker not found, is it mounted?).",
    operation_stuck: "No worker reaches what 1 operation needs.",
    damage_found: "1 backup is damaged.",
    volumes_never: "2 volumes have no backup that can be restored.",
    volumes_late: "The newest good backup of 1 volume is older than the target.",
    worker_silent: "The worker gone on there has fallen silent.",
    operation_failed: "1 operation has failed within 24 hours.",
    schedule_missed: "1 run of policies was missed within 24 hours.",
    queue_old: "2 tasks have waited for more than 30 minutes.",
    queue_drift: "1 task was handed to the queue and has not arrived at a worker.",
    key_missing: "Not every worker has all master keys of the repository main: new on here lacks 2026.",
    disk_low: "",
    quota_near: `Project ${a} uses 9 of 10 volumes.`,
    notifications_dead: "1 notification was never accepted.",
    versions_mixed: "Workers of several releases are alive: 9.9.9, an older release.",
  });
  expect(told["repository_down"]).toMatchObject({ severity: "critical", subject: "main", count: 1 });
  expect(low[1]).toMatch(
    /^The repository main has 40.0 GiB free and is full in (9|10) days if it goes on growing so\.$/,
  );
  expect(told["repository_down"]?.since).not.toBeNull();
  expect(told["worker_silent"]).toMatchObject({ severity: "warning", subject: "gone", count: 1 });

  const { overview } = (await ask("admin", "/ops/overview")).body;
  expect(overview).toMatchObject({
    protection: { protected: 0, late: 1, at_risk: 0, never: 2, excluded: 0 },
    proof: { week: 0, month: 1, older: 0, never: 0, damaged: 1 },
    queue: { ready: 1, dispatched: 1, running: 1 },
    workers: { live: 2, silent: 1, disabled: 0, slots: 2, busy: 1 },
    operations: { running: [], failed_24h: 1 },
    repositories: [{ name: "main", state: "down", backups: 2, bytes: 8192, stored_bytes: 2048 }],
  });
  expect(overview.queue.oldest_seconds).toBeGreaterThan(3_500);

  // What is of the installation, and other projects', is not told.
  const wide = [
    "repository_down",
    "key_missing",
    "worker_silent",
    "queue_drift",
    "disk_low",
    "notifications_dead",
    "versions_mixed",
  ];
  await see(
    "reader",
    all.filter((code) => !wide.includes(code)),
  );
  expect((await ask("reader", "/ops/overview")).body.overview.repositories).toEqual([]);
  await see("stranger", []);
  const theirs = (await ask("stranger", "/ops/overview")).body.overview;
  expect(theirs).toMatchObject({ queue: { ready: 0 }, operations: { failed_24h: 0 }, protection: { never: 0 } });

  const { text: metrics } = await instance.request("GET", "/metrics");
  for (const code of all)
    expect(metrics).toContain(`tephra_alerts{code="${code}"} ${all.filter((one) => one === code).length}\n`);
  expect(metrics).toContain(`tephra_alerts{code="no_workers"} 0\n`);

  const { workers } = (await ask("admin", "/ops/workers")).body;
  expect(workers.map(({ id, state, version }: Record<string, unknown>) => [id, state, version])).toEqual([
    ["silent", "live", null],
    ["new", "live", "9.9.9"],
    ["gone", "silent", "0.0.9"],
  ]);
  expect(workers[0]).toMatchObject({
    rss_bytes: 5000,
    unreachable: { "repository:main": "marker not found, is it mounted?" },
    tasks: [{ operation_id: queued, operation_kind: "backup-create", kind: "seal", bytes_done: 77, project_id: a }],
  });
  const { repository } = (await ask("admin", "/ops/repositories/main")).body;
  expect(repository).toMatchObject({
    driver: "posix",
    state: "down",
    reached_by: [],
    unreachable_from: [{ worker: "silent", why: "marker not found, is it mounted?" }],
    projects: [{ project_id: a, backups: 2, stored_bytes: 2048 }],
    free_bytes: 40 * GiB,
    probe_ms: 7,
    max_running_tasks: null,
    key_versions: ["2026", "2025"],
  });
  expect(repository.stored_per_day).toBeCloseTo(4 * GiB, -8);
  const days = (Date.parse(repository.full_at) - Date.now()) / 86_400_000;
  expect(days).toBeGreaterThan(9);
  expect(days).toBeLessThan(11);
  expect((await ask("admin", "/ops/repositories/nowhere")).status).toBe(404);
  for (const path of ["/ops/workers", "/ops/repositories", "/ops/repositories/main"]) {
    expect((await ask("reader", path)).status, path).toBe(403);
  }

  const run = async (...args: string[]) => {
    const { status, stdout, stderr } = await startTephra([...args, "--url", instance.url, "--token", "admin"]).finished;
    expect(status, stderr).toBe(0);
    return stdout;
  };
  expect(await run("status")).toMatch(/critical +repository_down +main +No worker can write to the repository main/);
  expect(await run("worker", "list")).toMatch(/gone +there +0\.0\.9 +silent/);
  expect(await run("repository", "list")).toMatch(/main +posix +down +0 +2 /);

  await sql("DELETE FROM operations");
  for (const table of ["backups", "volumes", "policies", "quotas", "notifications"]) await sql(`DELETE FROM ${table}`);
  await sql(`DELETE FROM workers WHERE id <> 'silent'`);
  await sql(
    `UPDATE workers SET reaches = '{repository:main,backend:files}', unreachable = '{}', free_bytes = '{}', places = $1`,
    [found(400 * GiB, "2026")],
  );
  await see("admin", []);
  // What a missing key has had fail, until it is done again; and a worker that has lost its keys.
  await operation("failed", "now()");
  await sql(
    "UPDATE operations SET fail_reason = 'Backup b is encrypted with master key 2024, which is not among those given (2026).'",
  );
  await see("admin", ["key_missing", "operation_failed"]);
  await sql("DELETE FROM operations");
  await sql("UPDATE workers SET places = $1", [found(400 * GiB)]);
  await see("admin", ["key_missing"]);
  await sql("UPDATE workers SET places = $1", [found(5 * GiB, "2026")]);
  await see("admin", ["disk_low"]);
  await sql("UPDATE workers SET places = $1", [found(400 * GiB, "2026")]);
  await see("admin", []);
  expect(await run("status")).toMatch(/alerts +none/);
  await sql("DELETE FROM workers");
  await see("admin", ["no_workers"]);
});
