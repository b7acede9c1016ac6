import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, askAs, auth, projectB as b, startApiOnly, type Who } from "../api-only.ts";

const config = { auth, tasks: { reconcile_ms: 3_600_000 }, log_level: "warn" };
const unknown = "11111111-2222-3333-4444-555555555555";

async function addVolume(
  instance: Instance,
  name: string,
  of: { bytes?: number; backend?: string; project?: string } = {},
) {
  const id = randomUUID();
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES ($1, $2, 'u', $3, 'available', 1, $4, $5, 'nova')`,
    [id, of.project ?? a, name, of.bytes ?? 4_096, of.backend ?? "files"],
  );
  return id;
}

async function addBackup(
  instance: Instance,
  volume: string,
  hours: number,
  of: { stored?: number; parent?: string } = {},
) {
  const id = randomUUID();
  await instance.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, status, size_gib, stored_bytes, parent_id, repository, data_timestamp, created_at)
     SELECT $1, project_id, 'u', id, 'available', 1, $3, $4, 'main', now() - $5::int * interval '1 hour', now() - $5::int * interval '1 hour'
     FROM volumes WHERE id = $2`,
    [id, volume, of.stored ?? 100, of.parent ?? null, hours],
  );
  return id;
}

it("filters and orders volumes, page by page, and tells what is stored of each", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const list = async (who: Who, query: string) => {
    const { status, body, text } = await ask(who, "GET", `/ops/volumes?${query}`);
    expect(status, text).toBe(200);
    return body;
  };
  const names = async (who: Who, query: string): Promise<string[]> =>
    (await list(who, query)).volumes.map(({ name }: { name: string }) => name);
  const db = await addVolume(instance, "db_1", { bytes: 9_000 });
  const web = await addVolume(instance, "Web", { backend: "fast", bytes: 5_000 });
  await addVolume(instance, "archive", { bytes: 7_000 });
  await addVolume(instance, "db_1", { project: b });
  const full = await addBackup(instance, db, 3, { stored: 500 });
  await addBackup(instance, db, 2, { stored: 20, parent: full });
  await addBackup(instance, web, 90, { stored: 700 });

  expect(await names("reader", "")).toEqual(["archive", "Web", "db_1"]);
  expect(await names("reader", "sort=name")).toEqual(["archive", "db_1", "Web"]);
  expect(await names("reader", "sort=size")).toEqual(["db_1", "archive", "Web"]);
  expect(await names("reader", "sort=stored")).toEqual(["Web", "db_1", "archive"]);
  expect(await names("reader", "q=B_1")).toEqual(["db_1"]);
  expect(await names("reader", `q=${web.slice(0, 9)}`)).toEqual(["Web"]);
  expect(await names("reader", "backend=fast")).toEqual(["Web"]);
  expect(await names("observer", `project_id=${b}`)).toEqual(["db_1"]);
  expect(await names("reader", `project_id=${b}`)).toEqual([]);
  const narrow = await list("reader", "q=b_1&state=late");
  // Of what is asked for, whichever state was.
  expect([narrow.volumes, narrow.facets.state]).toMatchObject([[], { protected: 1, late: 0, never: 0 }]);
  for (const sort of ["age", "name", "size", "stored"]) {
    const all = await names("reader", `sort=${sort}`);
    const paged: string[] = [];
    for (let marker = ""; ; ) {
      const { volumes, next } = await list("reader", `sort=${sort}&limit=2${marker}`);
      paged.push(...volumes.map(({ name }: { name: string }) => name));
      if (next === null) break;
      marker = `&marker=${next}`;
    }
    expect([sort, paged]).toEqual([sort, all]);
  }

  const machine = await ask("member", "POST", "/ops/instances", { instance: { name: "pg" } });
  const attached = await ask("member", "POST", `/ops/instances/${machine.body.instance.id}/attach`, { volume_id: db });
  expect(attached.status, attached.text).toBe(200);
  expect((await list("reader", "q=b_1")).volumes).toMatchObject([
    { id: db, machine: { name: "pg" }, points: 2, stored_bytes: 520, chain_depth: 1 },
  ]);
  expect((await list("reader", "q=archive")).volumes).toMatchObject([
    { machine: null, points: 0, stored_bytes: 0, chain_depth: null },
  ]);

  const schedule = { cron: "0 2 * * *", timezone: "UTC" };
  const add = async (name: string) =>
    (await ask("member", "POST", "/ops/policies", { policy: { name, schedule } })).body.policy.id as string;
  const [own, general] = [await add("own"), await add("general")];
  for (const [policy, assignment] of [
    [own, { volume_id: web }],
    [general, { project_id: a }],
  ] as const) {
    const given = await ask("member", "POST", `/ops/policies/${policy}/assignments`, { assignment });
    expect(given.status, given.text).toBe(201);
  }
  expect(await names("reader", `policy_id=${own}`)).toEqual(["Web"]);
  expect(await names("reader", `policy_id=${general}&sort=name`)).toEqual(["archive", "db_1"]);
  for (const bad of ["sort=colour", "policy_id=x", "q=", "state=fine"]) {
    const { status, body } = await ask("reader", "GET", `/ops/volumes?${bad}`);
    expect([bad, status]).toEqual([bad, 400]);
    expect(body.badRequest.message).toContain(bad.split("=")[0]);
  }

  const run = await startTephra([
    ...["volume", "protection", "--like", "db", "--sort", "stored", "--backend", "files", "--json"],
    ...["--url", instance.url, "--token", "reader"],
  ]).finished;
  expect(run.status, run.stderr).toBe(0);
  expect(run.json.volumes.map(({ id }: { id: string }) => id)).toEqual([db]);
});

it("filters machines, page by page, with the protection of their worst disk and their last backup as a whole", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const add = async (name: string, power_state: string): Promise<string> => {
    const { status, body, text } = await ask("member", "POST", "/ops/instances", { instance: { name, power_state } });
    expect(status, text).toBe(201);
    return body.instance.id;
  };
  const [pg, web, bare] = [await add("pg-1", "ACTIVE"), await add("web", "SHUTOFF"), await add("bare", "ACTIVE")];
  const disks = [await addVolume(instance, "root"), await addVolume(instance, "data")];
  for (const volume_id of disks) {
    const { status, text } = await ask("member", "POST", `/ops/instances/${pg}/attach`, { volume_id });
    expect(status, text).toBe(200);
  }
  // With a disk that it boots from, it is a group that is backed up as one.
  const boots = await ask("member", "PUT", `/ops/instances/${pg}`, { instance: { boot_volume_id: disks[0] } });
  expect(boots.status, boots.text).toBe(200);
  await addBackup(instance, disks[0] ?? "", 1);
  const list = async (who: Who, query: string) => {
    const { status, body, text } = await ask(who, "GET", `/ops/instances?${query}`);
    expect(status, text).toBe(200);
    return body;
  };
  const ids = async (query: string) => (await list("reader", query)).instances.map(({ id }: { id: string }) => id);
  expect(await ids("")).toEqual([bare, web, pg]);
  expect(await ids("q=PG-")).toEqual([pg]);
  expect(await ids(`q=${web.slice(0, 8)}`)).toEqual([web]);
  expect(await ids("state=SHUTOFF")).toEqual([web]);
  const first = await list("reader", "limit=2");
  expect(first.next).toBe(`${a}:${web}`);
  const second = await list("reader", `limit=2&marker=${first.next}`);
  expect([second.instances[0].id, second.next]).toEqual([pg, null]);
  expect((await ask("stranger", "GET", `/ops/instances?marker=${first.next}`)).status).toBe(404);
  expect((await ask("reader", "GET", `/ops/instances?marker=${a}:${unknown}`)).status).toBe(404);
  for (const bad of ["marker=x", "state=ASLEEP", "q="]) {
    expect([bad, (await ask("reader", "GET", `/ops/instances?${bad}`)).status]).toEqual([bad, 400]);
  }

  const show = async () => (await ask("reader", "GET", `/ops/instances/${pg}`)).body.instance;
  expect(await show()).toMatchObject({
    protection: { state: "never", volume_id: disks[1], last_good_at: null },
    last_group_snapshot: null,
  });
  await addBackup(instance, disks[1] ?? "", 100);
  expect((await show()).protection).toMatchObject({ state: "late", volume_id: disks[1] });
  const whole = randomUUID();
  await instance.sql(
    `INSERT INTO group_snapshots (id, project_id, user_id, group_id, group_type_id, name, status, taken_at, consistency)
     SELECT $1, project_id, 'u', id, group_type_id, 'whole', 'available', '2026-11-20T00:00:00Z', 'crash' FROM groups WHERE instance_id = $2`,
    [whole, pg],
  );
  expect((await show()).last_group_snapshot).toBeNull();
  await instance.sql("UPDATE backups SET group_snapshot_id = $1 WHERE volume_id = $2", [whole, disks[0]]);
  const last = { id: whole, at: "2026-11-20T00:00:00.000Z", consistency: "crash", status: "available" };
  expect((await show()).last_group_snapshot).toEqual(last);
  expect((await list("observer", "q=pg")).instances).toMatchObject([
    { protection: { state: "late" }, last_group_snapshot: last },
  ]);
  expect((await list("reader", "q=bare")).instances).toMatchObject([{ protection: null, last_group_snapshot: null }]);
});

it("hands the audit out as lines: all that match, and the same as page by page", async () => {
  await using instance = await startApiOnly({ config });
  await instance.sql(
    `INSERT INTO audit (resource, resource_id, project_id, to_status, actor, reason)
     SELECT CASE WHEN n % 2 = 0 THEN 'volume' ELSE 'backup' END, gen_random_uuid(), $1, 'error', 'user', E'line\\n' || n FROM generate_series(1, 2600) n`,
    [a],
  );
  const ask = (who: Who, accept: string) =>
    fetch(`${instance.url}/ops/audit?resource=volume&limit=7`, { headers: { "x-auth-token": who, accept } });
  const answer = await ask("observer", "application/x-ndjson");
  expect([answer.status, answer.headers.get("content-type")]).toEqual([200, "application/x-ndjson"]);
  const lines = (await answer.text()).trimEnd().split("\n");
  const entries = lines.map((line) => JSON.parse(line));
  expect(entries).toHaveLength(1_300);
  const pages: unknown[] = [];
  for (let marker = ""; ; ) {
    const { body } = await instance.request("GET", `/ops/audit?resource=volume&limit=1000${marker}`, undefined, {
      "x-auth-token": "observer",
    });
    pages.push(...body.audit);
    if (body.audit.length < 1_000) break;
    marker = `&marker=${body.audit.at(-1).id}`;
  }
  expect(entries).toEqual(pages);
  expect((await ask("reader", "application/x-ndjson")).status).toBe(403);
  const plain = await ask("observer", "application/json");
  expect(((await plain.json()) as { audit: unknown[] }).audit).toHaveLength(7);

  const args = ["audit", "--all", "--resource", "volume", "--url", instance.url, "--token", "observer"];
  const { status, stdout, stderr } = await startTephra(args).finished;
  expect(status, stderr).toBe(0);
  expect(stdout).toBe(`${lines.join("\n")}\n`);
});
