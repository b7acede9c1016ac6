import { join } from "node:path";
import { expect, inject, it } from "vitest";
import { opsRoutes, v3Routes } from "../../../apps/api/src/app.ts";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { withClient } from "../../../scripts/postgres.ts";
import { startRedis } from "../../../scripts/redis.ts";
import { freePort, type Program, spawnProgram } from "../../../scripts/spawn-program.ts";
import type { Instance } from "../../kit/instance.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { fingerprint, finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { type Golden, goldenRequests, openGolden } from "../golden.ts";

const base = "/v3/00000000000000000000000000000001";
const unknown = "11111111-2222-3333-4444-555555555555";

/** The reconciler notes what no worker reaches at a time of its own: it does not while answers are compared. */
const unhurried = { tasks: { reconcile_ms: 3_600_000 } };

it("answers our own routes, and takes paths beneath the configured folders only", async () => {
  await using instance = await startApiOnly({ config: unhurried });
  const golden = openGolden(instance, "ops");
  await golden.ask("alive", "GET", "/healthz");
  await golden.ask("ready", "GET", "/readyz");
  await golden.ask("nobody by a token that is none", "GET", "/ops/session", {
    headers: { "x-auth-token": "nonsense" },
  });
  await golden.ask("nobody signs in where nobody has to", "POST", "/ops/session", { body: { token: "nonsense" } });
  await golden.ask("who is not signed in signs out", "DELETE", "/ops/session");
  await golden.ask("overview", "GET", "/ops/overview");
  await golden.ask("changes, where to begin", "GET", "/ops/changes");
  await golden.ask("changes after what is no cursor", "GET", "/ops/changes?after=yesterday&limit=501");
  await golden.ask(
    "changes after what this database has not reached",
    "GET",
    "/ops/changes?after=8999999999999999999-1",
  );
  await golden.ask("events of no topic that there is", "GET", "/ops/events?topics=changes,weather&after=41");
  await golden.ask("workers", "GET", "/ops/workers");
  await golden.ask("queue", "GET", "/ops/queue");
  const long = "from=2001-01-01T00:00:00Z&to=2001-01-03T00:00:00Z";
  await golden.ask("samples of a time without", "GET", `/ops/samples?series=bytes_in,stored&${long}`);
  await golden.ask("samples of what nobody measures", "GET", "/ops/samples?series=weather");
  await golden.ask("repositories", "GET", "/ops/repositories");
  await golden.ask("repository", "GET", "/ops/repositories/main");
  await golden.ask("unknown repository", "GET", "/ops/repositories/nowhere");
  const before = await fingerprint(instance);
  const wrong: Record<string, unknown> = {
    "outside every folder": { path: "/etc/passwd" },
    "a folder itself": { path: instance.dataDir },
    "back out of a folder": { path: `${instance.dataDir}/../x` },
    "beside a folder": { path: `${instance.dataDir}-x/image` },
    "ends in a slash": { path: `${instance.dataDir}/x/` },
    relative: { path: "image.raw" },
    empty: { path: "" },
    NUL: { path: `${instance.dataDir}/a\0b` },
    "too long": { path: `/${"x".repeat(5000)}` },
    "neither path nor id": {},
    "an id that is none": { id: "x" },
    "a backend without an id": { path: `${instance.dataDir}/x`, backend: "files" },
    "an unknown backend": { id: unknown, backend: "nowhere" },
    "an id, and a path outside": { id: unknown, path: "/etc/passwd" },
    "name too long": { path: `${instance.dataDir}/x`, name: "n".repeat(256) },
    "name with NUL": { path: `${instance.dataDir}/x`, name: "\0" },
    "unknown key": { path: `${instance.dataDir}/x`, colour: "red" },
    "a list": [],
    null: "null",
    "no JSON": "{",
  };
  for (const [name, body] of Object.entries(wrong)) {
    const reply = await instance.request("POST", "/ops/volumes/import", body);
    expect([name, reply.status, Object.keys(reply.body)]).toEqual([name, 400, ["badRequest"]]);
  }
  await golden.ask("import from outside", "POST", "/ops/volumes/import", { body: { path: "/etc/passwd" } });
  await golden.ask("import with a bad body", "POST", "/ops/volumes/import", { body: { path: 5, colour: "red" } });
  await golden.ask("export of an unknown volume", "POST", `/ops/volumes/${unknown}/export`, {
    body: { path: `${instance.dataDir}/x` },
  });
  expect(await fingerprint(instance)).toEqual(before);

  const body = { path: `${instance.dataDir}/a/../image.raw`, name: "image" };
  const imported = await golden.ask("import", "POST", "/ops/volumes/import", { body });
  const [row] = await instance.sql("SELECT input FROM operations");
  expect(row.input).toEqual({ path: `${instance.dataDir}/image.raw` });
  const id = imported.body.volume.id as string;
  await golden.ask("volume while importing", "GET", `/ops/volumes/${id}`);
  await golden.ask("export while importing", "POST", `/ops/volumes/${id}/export`, {
    body: { path: `${instance.dataDir}/out.raw` },
  });
  await setStatus(instance, "volumes", id, "available");
  await instance.sql("UPDATE volumes SET size_gib = 1, size_bytes = 123456789");
  await golden.ask("volume", "GET", `/ops/volumes/${id}`);
  await golden.ask("export", "POST", `/ops/volumes/${id}/export`, { body: { path: `${instance.dataDir}/out.raw` } });
  await golden.ask("export to outside", "POST", `/ops/volumes/${id}/export`, { body: { path: "/tmp/out.raw" } });
  await golden.ask("operation", "GET", `/ops/operations/${imported.body.operation.id}`);
  await golden.ask("operations of a volume", "GET", `/ops/operations?volume_id=${id}&state=queued`);
  await golden.ask("operations, one", "GET", "/ops/operations?limit=1");
  await golden.ask("operations of no backup", "GET", `/ops/operations?backup_id=${unknown}`);
  await golden.ask("operations in a state nobody knows", "GET", "/ops/operations?state=bored");
  await golden.ask("operations of what is no id", "GET", "/ops/operations?backup_id=x");
  await golden.ask("operations by an unknown key", "GET", "/ops/operations?colour=red");
  await golden.ask("operations, too many", "GET", "/ops/operations?limit=100000");
  const { id: exporting } = (await instance.sql("SELECT id FROM operations WHERE kind = 'volume-export'"))[0];
  for (const priority of ["low", "urgent"])
    await golden.ask(`priority ${priority}`, "PUT", `/ops/operations/${exporting}/priority`, { body: { priority } });
  await golden.ask("cancellation of an export", "POST", `/ops/operations/${exporting}/cancel`, { body: {} });
  await golden.ask("cancellation of what was cancelled", "POST", `/ops/operations/${exporting}/cancel`, { body: {} });
  await golden.ask("cancellation of an unknown operation", "POST", `/ops/operations/${unknown}/cancel`, { body: {} });
  const priority = "high";
  await golden.ask("priority of what was cancelled", "PUT", `/ops/operations/${exporting}/priority`, {
    body: { priority },
  });
  await golden.ask("priority of an unknown operation", "PUT", `/ops/operations/${unknown}/priority`, {
    body: { priority },
  });
  await golden.ask("retry of what was cancelled", "POST", `/ops/operations/${exporting}/retry`, { body: {} });
  await golden.ask("retry of an unknown operation", "POST", `/ops/operations/${unknown}/retry`, { body: {} });
  await instance.sql("UPDATE operations SET state = 'failed' WHERE id = $1", [exporting]);
  await golden.ask("retry of an export", "POST", `/ops/operations/${exporting}/retry`, { body: {} });
  await golden.ask("operation that was retried", "GET", `/ops/operations/${exporting}`);
  await golden.ask("retry of what was retried", "POST", `/ops/operations/${exporting}/retry`, { body: {} });
  await golden.ask("ranges of an operation without", "GET", `/ops/operations/${exporting}/ranges`);
  await golden.ask("ranges of an unknown operation", "GET", `/ops/operations/${unknown}/ranges`);
  await golden.ask("search by name", "GET", "/ops/search?q=imag");
  await golden.ask("search for too little", "GET", "/ops/search?q=im");
  await golden.ask("search for nothing", "GET", "/ops/search?q=nothing");
  await golden.ask("unknown operation", "GET", `/ops/operations/${unknown}`);
  await golden.ask("operation that is no id", "GET", "/ops/operations/nope");
  await golden.ask("volume that is no id", "GET", "/ops/volumes/nope");
  await askHealth(instance, golden, id);
  golden.check();
});

/** Verifications and passes of the reaper, as they are accepted and refused. */
async function askHealth(instance: Instance, golden: Golden, volume: string): Promise<void> {
  await setStatus(instance, "volumes", volume, "available");
  const made = await instance.request("POST", `${base}/backups`, { backup: { volume_id: volume } });
  const backup = made.body.backup.id as string;
  await golden.ask("verification of a backup that is being created", "POST", `/ops/backups/${backup}/verify`, {
    body: {},
  });
  await finishBackup(instance, backup);
  await golden.ask("backup", "GET", `/ops/backups/${backup}`);
  await golden.ask("backups, counted", "GET", "/ops/backups?facets=1&limit=1");
  await golden.ask("backups in an order that nobody knows", "GET", "/ops/backups?sort=weight");
  await golden.ask("backup, unknown", "GET", `/ops/backups/${unknown}`);
  await golden.ask("partitions of a backup, without a server of images", "GET", `/ops/backups/${backup}/partitions`);
  await golden.ask("files of an unknown backup", "GET", `/ops/backups/${unknown}/files?path=/etc`);
  await golden.ask("files, of a partition that is no number", "GET", `/ops/backups/${backup}/files?partition=two`);
  await golden.ask("content of a file without a path", "GET", `/ops/backups/${backup}/files/content`);
  await golden.ask("partitions of an unknown snapshot", "GET", `/ops/snapshots/${unknown}/partitions`);
  await golden.ask("files of an unknown snapshot", "GET", `/ops/snapshots/${unknown}/files`);
  await golden.ask(
    "content of an unknown snapshot's",
    "GET",
    `/ops/snapshots/${unknown}/files/content?path=/etc/fstab`,
  );
  await golden.ask("chain of a backup", "GET", `/ops/backups/${backup}/chain`);
  await golden.ask("chain of an unknown backup", "GET", `/ops/backups/${unknown}/chain`);
  const check = `/ops/backups/${backup}/restore-check`;
  await golden.ask("check of a restore", "GET", check);
  await golden.ask("check of a restore over a volume", "GET", `${check}?volume_id=${volume}`);
  await golden.ask("check of a restore to a longer volume", "GET", `${check}?bytes=${3 * 2 ** 30}`);
  await instance.sql("UPDATE backups SET size_gib = 2 WHERE id = $1", [backup]);
  await golden.ask("check of a restore to a volume that is too short", "GET", `${check}?bytes=1`);
  await instance.sql("UPDATE backups SET size_gib = 1 WHERE id = $1", [backup]);
  await golden.ask("check of a restore, both", "GET", `${check}?bytes=1&volume_id=${volume}`);
  await golden.ask("check of a restore, wrong", "GET", `${check}?bytes=many&volume_id=x&colour=red`);
  await golden.ask("check of a restore over an unknown volume", "GET", `${check}?volume_id=${unknown}`);
  await golden.ask("check of a restore of an unknown backup", "GET", `/ops/backups/${unknown}/restore-check`);
  const asked = await golden.ask("verification", "POST", `/ops/backups/${backup}/verify`, { body: { mode: "deep" } });
  await golden.ask("verification, its operation", "GET", `/ops/operations/${asked.body.operation.id}`);
  await golden.ask("verification in a mode nobody knows", "POST", `/ops/backups/${backup}/verify`, {
    body: { mode: "shallow" },
  });
  await golden.ask("verification of an unknown backup", "POST", `/ops/backups/${unknown}/verify`, { body: {} });
  await askSquash(instance, golden, { volume, full: backup });
  await golden.ask("pass of the reaper", "POST", "/ops/repositories/main/reap", { body: { dry_run: true } });
  await golden.ask("pass of the reaper beside another", "POST", "/ops/repositories/main/reap", { body: {} });
  await golden.ask("pass of the reaper, wrong", "POST", "/ops/repositories/main/reap", { body: { dry_run: "yes" } });
  await golden.ask("pass of the reaper over nothing", "POST", "/ops/repositories/nowhere/reap", { body: {} });
  await golden.ask("rescan beside the reaper", "POST", "/ops/repositories/main/rescan", { body: {} });
  await golden.ask("audit of a backup", "GET", `/ops/audit?resource=backup&resource_id=${backup}`);
  await golden.ask("audit, by what is no filter", "GET", "/ops/audit?since=yesterday&marker=x&colour=red");
}

async function askSquash(instance: Instance, golden: Golden, of: { volume: string; full: string }): Promise<void> {
  const squash = (what: string, id: string, body: object = {}) =>
    golden.ask(what, "POST", `/ops/backups/${id}/squash`, { body });
  await setStatus(instance, "volumes", of.volume, "available");
  const made = await instance.request("POST", `${base}/backups`, {
    backup: { volume_id: of.volume, incremental: true },
  });
  const incremental = made.body.backup.id as string;
  await squash("squash of a backup that is being created", incremental);
  await finishBackup(instance, incremental);
  await squash("squash of a full backup", of.full);
  await squash("squash of an unknown backup", unknown);
  await squash("squash, with what is no key", incremental, { into: of.full });
  const asked = await squash("squash", incremental);
  await golden.ask("squash, its operation", "GET", `/ops/operations/${asked.body.operation.id}`);
  await squash("squash beside another", incremental);
}

it("answers what protects volumes: policies and their runs, holds, deletions that are undone, limits", async () => {
  await using instance = await startApiOnly({ config: unhurried, repository: { deletion_delay_hours: 24 } });
  const golden = openGolden(instance, "policies");
  const { ask } = golden;
  const volume = await instance.request("POST", `${base}/volumes`, { volume: { size: 1, name: "db" } });
  expect(volume.status, volume.text).toBe(202);
  const id = volume.body.volume.id as string;
  await setStatus(instance, "volumes", id, "available");
  const made = await instance.request("POST", `${base}/backups`, { backup: { volume_id: id } });
  expect(made.status, made.text).toBe(202);
  const backup = made.body.backup.id as string;
  await finishBackup(instance, backup);
  const hold = { until: "2126-01-01T00:00:00Z", reason: "an audit" };
  await ask("hold", "PUT", `/ops/backups/${backup}/hold`, { body: { hold } });
  await ask("hold, without a reason", "PUT", `/ops/backups/${backup}/hold`, { body: { hold: { until: hold.until } } });
  await ask("deletion of what is held", "DELETE", `${base}/backups/${backup}`);
  await ask("release", "DELETE", `/ops/backups/${backup}/hold`);
  await ask("undelete of what is not deleted", "POST", `/ops/backups/${backup}/undelete`);
  await ask("deletion", "DELETE", `${base}/backups/${backup}`);
  await ask("deleted backups", "GET", "/ops/deleted-backups");
  await ask("undelete", "POST", `/ops/backups/${backup}/undelete`);
  await ask("purge of what is not deleted", "DELETE", `/ops/deleted-backups/${backup}`);

  const limit = "/ops/limits/repositories/repository/main";
  await ask("limit", "PUT", limit, { body: { bytes_per_second: 1_000_000 } });
  await ask("limit, of nothing", "PUT", limit, { body: {} });
  await ask("limits", "GET", "/ops/limits");
  await ask("projects", "GET", "/ops/projects");
  await ask("projects, after none that there is", "GET", "/ops/projects?marker=nobody");
  await ask("limit, removed", "DELETE", limit);
  await ask("limit, removed again", "DELETE", limit);
  await instance.sql(`UPDATE workers SET free_bytes = '{"backend:files": 1073741824}' WHERE id = 'silent'`);
  const snooze = "/ops/alerts/disk_low/files%20on%20here/snooze";
  const body = { until: new Date(Date.now() + 86_400_000).toISOString(), reason: "known" };
  await ask("snooze", "PUT", snooze, { body });
  await ask("snooze, for too long", "PUT", snooze, { body: { ...body, until: "2999-01-01T00:00:00Z" } });
  await ask("snooze, of no alert", "PUT", "/ops/alerts/nonsense/-/snooze", { body });
  await ask("snooze, ended", "DELETE", snooze);
  await instance.sql("UPDATE workers SET free_bytes = '{}' WHERE id = 'silent'");
  await askPolicies(golden, id);
  golden.check();
});

async function askPolicies({ ask }: Golden, volume: string): Promise<void> {
  await ask("volumes", "GET", "/ops/volumes");
  const days = "/ops/protection/days?from=2020-01-30&to=2020-02-01&tz=Europe/Berlin";
  await ask("days of a volume", "GET", `${days}&volume_id=${volume}`);
  await ask("days of no volume", "GET", days);
  const exclusion = { reason: "scratch", until: "2126-01-01T00:00:00Z" };
  await ask("exclusion", "PUT", `/ops/volumes/${volume}/exclusion`, { body: exclusion });
  await ask("inclusion", "DELETE", `/ops/volumes/${volume}/exclusion`);
  const schedule = { cron: "0 2 1 1 *", timezone: "Europe/Berlin" };
  const retention = { keep_last: 3, keep_daily: 7 };
  const nightly = { name: "nightly", schedule, retention, kind: { full_every: 7 } };
  const policy = (await ask("policy", "POST", "/ops/policies", { body: { policy: nightly } })).body.policy
    ?.id as string;
  await ask("policy, with a time zone that there is not", "POST", "/ops/policies", {
    body: { policy: { ...nightly, name: "other", schedule: { ...schedule, timezone: "Nowhere" } } },
  });
  await ask("policies", "GET", "/ops/policies");
  await ask("policy, shown", "GET", `/ops/policies/${policy}`);
  await ask("policy, changed", "PUT", `/ops/policies/${policy}`, { body: { policy: { description: "changed" } } });
  const assigned = await ask("assignment", "POST", `/ops/policies/${policy}/assignments`, {
    body: { assignment: { volume_id: volume } },
  });
  await ask("assignments", "GET", `/ops/policies/${policy}/assignments`);
  await ask("policy of a volume", "GET", `/ops/volumes/${volume}/policy`);
  await ask("preview", "POST", `/ops/policies/${policy}/preview`, { body: {} });
  const simulated = { schedule: { ...schedule, cron: "0 2 * * *" }, retention, from: "2026-03-01T00:00:00Z", days: 10 };
  await ask("simulation", "POST", "/ops/policies/simulate", { body: simulated });
  await ask("runs", "GET", `/ops/policies/${policy}/runs`);
  await ask("run, unknown", "GET", `/ops/policies/${policy}/runs/${unknown}`);
  await ask("policy in use, removed", "DELETE", `/ops/policies/${policy}`);
  await ask("assignment, removed", "DELETE", `/ops/policies/${policy}/assignments/${assigned.body.assignment.id}`);
  await ask("policy, removed", "DELETE", `/ops/policies/${policy}`);
  // Nothing is asked after it: what it begins goes on by itself.
  const other = await ask("policy of all", "POST", "/ops/policies", {
    body: { policy: { ...nightly, project_id: null } },
  });
  await ask("run", "POST", `/ops/policies/${other.body.policy.id}/run`);
}

it("shows its figures to a scraper", async () => {
  await using instance = await startApiOnly();
  await instance.request("POST", `${base}/volumes`, { volume: { size: 1 } });
  const { status, headers, text } = await instance.request("GET", "/metrics");
  expect([status, headers.get("content-type")]).toEqual([200, "text/plain; version=0.0.4; charset=utf-8"]);
  expect(text).toMatch(/^tephra_tasks_ready 1$/m);
  expect(text).toMatch(/^tephra_workers 1$/m);
  expect(text).toMatch(/^tephra_http_requests_total\{status="2xx"\} \d+$/m);
});

it("is ready when the database answers and has its migrations", async () => {
  await using instance = await startApiOnly();
  const ask = async () => {
    const { status, body } = await instance.request("GET", "/readyz");
    return [status, body];
  };
  const lacking = [503, { status: "unavailable", reasons: ["the database lacks migrations"] }];
  const tables = await instance.sql(
    "SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema() AND tablename !~ '^_'",
  );
  expect(tables.length).toBeGreaterThan(15);
  for (const { name } of tables) {
    expect(await ask()).toEqual([200, { status: "ready" }]);
    await instance.sql(`ALTER TABLE ${name} RENAME TO gone`);
    expect(await ask(), name).toEqual(lacking);
    await instance.sql(`ALTER TABLE gone RENAME TO ${name}`);
  }
  await instance.sql("ALTER TABLE backups RENAME COLUMN damage TO gone");
  expect(await ask()).toEqual(lacking);
  expect((await instance.request("GET", "/healthz")).status).toBe(200);
});

it("shows the queues of live workers, read-only, with nothing from elsewhere", async () => {
  await using instance = await startApiOnly();
  const page = await instance.request("GET", "/ops/queues");
  expect([page.status, page.text.includes("<title>Tephra</title>")]).toEqual([200, true]);
  const policy = page.headers.get("content-security-policy") ?? "";
  expect(policy).toContain("default-src 'none'");
  expect(policy).toContain("script-src 'self'");
  expect((await instance.request("GET", "/ops/queues/static/js/missing.js")).status).toBe(404);
  const names = async () => {
    const { body } = await instance.request("GET", "/ops/queues/api/queues");
    return body.queues.map((q: { name: string; readOnlyMode: boolean }) => [q.name, q.readOnlyMode]);
  };
  expect(await names()).toEqual([["tephra-silent", true]]);
  await instance.sql("UPDATE workers SET queue = 'tephra-other'");
  expect(await names()).toEqual([["tephra-other", true]]);
  const changed = await instance.request("PUT", "/ops/queues/api/queues/tephra-other/pause");
  expect(changed.status).toBe(405);
});

async function spawnApi(instance: Instance, env: Record<string, string>): Promise<Program & { url: string }> {
  const port = await freePort();
  const program = await spawnProgram({
    name: "api",
    command: projectNode(),
    args: [join(root, "apps/api/dist/main.js")],
    env: {
      PATH: process.env["PATH"] ?? "",
      DATABASE_URL: instance.databaseUrl,
      REDIS_URL: instance.redisUrl,
      TEPHRA_PORT: String(port),
      TEPHRA_DATA_DIR: instance.dataDir,
      TEPHRA_CONFIG: join(instance.dataDir, "tephra.yml"),
      ...env,
    },
  });
  const url = `http://127.0.0.1:${port}`;
  const alive = async () => !program.running() || (await fetch(`${url}/healthz`)).ok;
  await waitFor(alive, { what: "the API answers", context: () => program.tail() });
  return { ...program, url };
}

it("serves every route but the queue board while Redis is away", async () => {
  await using instance = await startApiOnly();
  const api = await spawnApi(instance, { REDIS_URL: "redis://127.0.0.1:1" });
  try {
    const board = await fetch(`${api.url}/ops/queues/api/queues`);
    expect([board.status, await board.json()]).toEqual([
      503,
      { serviceUnavailable: { code: 503, message: "The queues cannot be shown now." } },
    ]);
    const body = JSON.stringify({ volume: { size: 1 } });
    const headers = { "content-type": "application/json" };
    const created = await fetch(`${api.url}${base}/volumes`, { method: "POST", headers, body });
    expect(created.status).toBe(202);
    expect((await fetch(`${api.url}/readyz`)).status).toBe(200);
    expect(api.running()).toBe(true);
  } finally {
    await api.stop();
  }
});

it("outlives a Redis that dies under its queue board, and shows the board again when it is back", async () => {
  await using instance = await startApiOnly({ ownRedis: true });
  const board = async () => (await instance.request("GET", "/ops/queues/api/queues")).status;
  expect(await board()).toBe(200);
  const server = instance.redisServer;
  server?.kill("SIGKILL");
  await server?.exited;
  await instance.waitFor(async () => (await board()) === 503, { what: "the board says that Redis is away" });
  expect((await instance.request("POST", `${base}/volumes`, { volume: { size: 1 } })).status).toBe(202);
  const { port, password } = new URL(instance.redisUrl);
  const again = await startRedis({
    dir: join(instance.dataDir, "redis-again"),
    log: join(instance.dataDir, "redis-again.log"),
    port: Number(port),
    password,
  });
  try {
    await instance.waitFor(async () => (await board()) === 200, { what: "the board is back" });
  } finally {
    await again.stop();
  }
});

const outage = {
  serviceUnavailable: {
    code: 503,
    message: "The service is temporarily unable to reach its database. Try again later.",
    retryAfter: "2",
  },
};

it.each([
  ["nobody listens", "postgresql://nobody@127.0.0.1:1/nothing"],
  ["the database does not exist", null],
])("says 503 while %s", async (_why, url) => {
  await using instance = await startApiOnly();
  const missing = new URL(instance.databaseUrl);
  missing.pathname = "/not_there";
  const api = await spawnApi(instance, { DATABASE_URL: url ?? missing.href });
  try {
    for (const path of [`${base}/backups`, `${base}/backups/${unknown}`, "/ops/operations", "/metrics"]) {
      const reply = await fetch(`${api.url}${path}`);
      expect([path, reply.status, await reply.json()]).toEqual([path, 503, outage]);
    }
    const body = JSON.stringify({ backup: { volume_id: unknown } });
    const headers = { "content-type": "application/json" };
    const created = await fetch(`${api.url}${base}/backups`, { method: "POST", headers, body });
    expect([created.status, await created.json()]).toEqual([503, outage]);
    const ready = await fetch(`${api.url}/readyz`);
    expect([ready.status, await ready.json()]).toEqual([
      503,
      { status: "unavailable", reasons: ["the database does not answer"] },
    ]);
    expect((await fetch(`${api.url}/healthz`)).status).toBe(200);
  } finally {
    await api.stop();
  }
});

it("answers 503 or the truth, and goes on, when Postgres cuts its connections", async () => {
  await using instance = await startApiOnly();
  const cut = () =>
    withClient(inject("servers").adminUrl, (client) =>
      client.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", [
        new URL(instance.databaseUrl).pathname.slice(1),
      ]),
    );
  const statuses: number[] = [];
  for (let round = 0; round < 5; round += 1) {
    const asked = Array.from({ length: 20 }, (_, i) =>
      i % 2 === 0
        ? instance.request("GET", `${base}/backups`)
        : instance.request("POST", `${base}/volumes`, { volume: { size: 1 } }),
    );
    const [replies] = await Promise.all([Promise.all(asked), cut()]);
    statuses.push(...replies.map((r) => r.status));
  }
  expect(statuses.filter((s) => ![200, 202, 413, 503].includes(s))).toEqual([]);
  await instance.waitFor(async () => (await instance.request("GET", `${base}/backups`)).status === 200, {
    what: "the API goes on",
  });
  const [row] = await instance.sql("SELECT count(*)::int AS n, (SELECT volumes_used FROM quotas) AS used FROM volumes");
  expect(row.used ?? 0).toBe(row.n);
});

it("lists every problem of its configuration and exits with 2", async () => {
  await using instance = await startApiOnly();
  const program = await spawnProgram({
    name: "api",
    command: projectNode(),
    args: [join(root, "apps/api/dist/main.js")],
    env: {
      PATH: process.env["PATH"] ?? "",
      TEPHRA_PORT: "99999",
      DATABASE_URL: "mysql://x",
      REDIS_URL: instance.redisUrl,
    },
  });
  expect(await program.exited).toMatchObject({ code: 2 });
  expect(program.tail()).toMatch(/^port: /m);
  expect(program.tail()).toMatch(/^database_url: /m);
});

it("finishes what it is doing when it is told to stop", async () => {
  await using instance = await startApiOnly();
  const api = await spawnApi(instance, {});
  const started = Array.from({ length: 10 }, () =>
    fetch(`${api.url}${base}/volumes`, {
      method: "POST",
      headers: { "content-type": "application/json", connection: "close" },
      body: JSON.stringify({ volume: { size: 1 } }),
    }),
  );
  const replies = Promise.allSettled(started);
  await waitFor(async () => (await instance.sql("SELECT 1 FROM volumes LIMIT 1")).length > 0, {
    what: "the first volume",
    everyMs: 1,
  });
  api.kill("SIGTERM");
  expect(await api.exited).toEqual({ code: 0, signal: null });
  const statuses = (await replies).map((r) => (r.status === "fulfilled" ? r.value.status : "refused"));
  const [{ n }] = await instance.sql("SELECT count(*)::int AS n FROM volumes");
  expect(statuses.filter((s) => s === 202)).toHaveLength(n);
  expect(statuses.every((s) => s === 202 || s === "refused")).toBe(true);
});

it("has a golden answer for every route", () => {
  const asked = goldenRequests();
  const routes = [...v3Routes, ...opsRoutes].map(
    ([method, path]) => [method === "ACTION" ? "POST" : method, path] as const,
  );
  for (const [method, path] of routes) {
    // Figures and settings differ from run to run, and the description grows with every route: they have tests of their own.
    if (["/metrics", "/ops/about", "/openapi.json"].includes(path) || path.startsWith("/docs/")) continue;
    const pattern = new RegExp(`^${method} (/v3(/[0-9a-f]{32})?)?${path.replace(/:\w+/g, "[^/ ?]+")}(\\?| |$)`);
    expect(
      asked.some((request) => pattern.test(request)),
      `${method} ${path}`,
    ).toBe(true);
  }
});
