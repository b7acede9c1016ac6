import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, askAs, auth, projectB as b, startApiOnly, type Who } from "../api-only.ts";

const config = {
  auth,
  // What is written here stays as it is.
  tasks: { unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 60_000, reconcile_ms: 3_600_000 },
  log_level: "warn",
};

interface Hit {
  type: string;
  id: string;
  name: string | null;
  project_id: string | null;
  status: string;
}

it("finds what begins so, of the caller's project, and what a request has asked for", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const find = async (who: Who, q: string): Promise<Hit[]> => {
    const { status, body, text } = await ask(who, "GET", `/ops/search?q=${encodeURIComponent(q)}`);
    expect(status, text).toBe(200);
    return body.hits;
  };
  const addVolume = async (name: string | null, project: string, id: string = randomUUID()): Promise<string> => {
    await instance.sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
       VALUES ($3, $2, 'u', $1, 'available', 1, 4096, 'files', 'nova')`,
      [name, project, id],
    );
    return id;
  };
  const shared = "abc1234";
  const mine = await addVolume("Data_50% base", a, `${shared}0-0000-4000-8000-000000000001`);
  const foreign = await addVolume("data_50% of B", b, `${shared}f-ffff-4fff-bfff-ffffffffffff`);
  const bare = await addVolume(null, a);
  await addVolume("dataX50Y", a);
  const hit = (id: string, name: string | null, project_id: string) => ({
    ...{ type: "volume", id, name, project_id, status: "available" },
  });

  expect(await find("reader", "DATA_50%")).toEqual([hit(mine, "Data_50% base", a)]);
  expect(await find("stranger", "data_50%")).toEqual([hit(foreign, "data_50% of B", b)]);
  expect((await find("observer", "data_50%")).map(({ id }) => id).sort()).toEqual([mine, foreign].sort());
  expect(await find("reader", shared)).toEqual([hit(mine, "Data_50% base", a)]);
  expect((await find("admin", shared.toUpperCase())).map(({ id }) => id)).toEqual([mine, foreign]);
  expect(await find("reader", mine)).toEqual([hit(mine, "Data_50% base", a)]);
  expect(await find("stranger", mine)).toEqual([]);
  expect(await find("reader", bare.slice(0, 13))).toEqual([hit(bare, null, a)]);
  expect(await find("reader", "no such thing")).toEqual([]);
  expect(await find("reader", "<img onerror>")).toEqual([]);

  // Backups but not deleted ones, snapshots, machines, policies of the project and published ones, operations of a request.
  const made = await ask("member", "POST", `/v3/${a}/backups`, { backup: { volume_id: mine, name: "data nightly" } });
  expect(made.status, made.text).toBe(202);
  const backup = made.body.backup.id;
  await instance.sql("UPDATE volumes SET status = 'available'");
  const machine = await ask("member", "POST", "/ops/instances", { instance: { name: "data host" } });
  const schedule = { cron: "0 2 * * *", timezone: "UTC" };
  for (const [name, project_id] of [
    ["data of A", a],
    ["data of B", b],
    ["data of all", null],
  ]) {
    const added = await ask("admin", "POST", "/ops/policies", { policy: { name, schedule, project_id } });
    expect(added.status, added.text).toBe(201);
  }
  const all = (await find("reader", "data")).map(({ type, name, status }) => [type, name, status]);
  expect(all).toEqual([
    ["volume", "Data_50% base", "available"],
    ["machine", "data host", "ACTIVE"],
    ["backup", "data nightly", "creating"],
    ["policy", "data of A", "enabled"],
    ["volume", "dataX50Y", "available"],
    ["policy", "data of all", "enabled"],
  ]);
  expect((await find("reader", "data nightly"))[0]).toMatchObject({ type: "backup", id: backup });
  expect((await find("reader", machine.body.instance.id))[0]).toMatchObject({ type: "machine" });
  const request = made.headers.get("x-openstack-request-id") ?? "";
  const asked = await find("reader", request);
  expect(asked).toEqual([
    { type: "operation", id: expect.any(String), name: "backup-create", project_id: a, status: "queued" },
  ]);
  expect(await find("stranger", request)).toEqual([]);
  expect((await find("reader", String(asked[0]?.id)))[0]).toMatchObject({ type: "operation", name: "backup-create" });
  await instance.sql("UPDATE backups SET status = 'deleted', deleted_at = now() WHERE id = $1", [backup]);
  expect(await find("reader", "data nightly")).toEqual([]);

  // Of very many, twenty; of each kind some.
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     SELECT gen_random_uuid(), $1, 'u', 'data ' || n, 'available', 1, 4096, 'files', 'nova' FROM generate_series(1, 100) n`,
    [a],
  );
  const many = await find("reader", "data");
  expect(many).toHaveLength(20);
  expect(new Set(many.map(({ type }) => type))).toEqual(new Set(["volume", "machine", "policy"]));

  for (const [query, words] of [
    ["", "q: Invalid input"],
    ["q=ab", "q: Too small"],
    ["q=%20ab%20", "q: Too small"],
    [`q=${"x".repeat(256)}`, "q: Too big"],
    ["q=abc%00", "q: has characters that cannot be stored"],
    ["q=abc&colour=red", "colour"],
  ] as const) {
    const { status, text } = await ask("reader", "GET", `/ops/search?${query}`);
    expect([query, status]).toEqual([query, 400]);
    expect(text).toContain(words.replaceAll('"', ""));
  }

  const command = ["search", "data_50%", "--url", instance.url, "--token", "reader", "--json"];
  const { status, json } = await startTephra(command).finished;
  expect([status, json]).toEqual([0, { hits: [hit(mine, "Data_50% base", a)] }]);
});

it("tells what hangs together with a backup, and what a restore of it reads", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const volume = randomUUID();
  const addBackup = async (day: number, parent: string | null, damage: string | null = null): Promise<string> => {
    const id = randomUUID();
    const at = `2026-11-${String(day).padStart(2, "0")}T00:00:00Z`;
    await instance.sql(
      `INSERT INTO backups (id, project_id, user_id, volume_id, name, status, damage, parent_id, size_gib, repository, data_timestamp, created_at,
         stored_bytes, volume_bytes, object_count)
       VALUES ($1, $2, 'u', $3, $4, 'available', $5, $6, 1, 'main', $7, $7, $8, 1073741824, $9)`,
      [id, a, volume, `of ${day}`, damage, parent, at, day * 100, day],
    );
    return id;
  };
  const full = await addBackup(1, null);
  const second = await addBackup(2, full);
  const third = await addBackup(3, second, "An object is gone.");
  const fourth = await addBackup(4, third);
  const branch = await addBackup(5, second);
  await addBackup(6, null);
  const chainOf = async (id: string, who: Who = "reader") => (await ask(who, "GET", `/ops/backups/${id}/chain`)).body;

  const told = await chainOf(branch);
  expect(
    told.members.map((row: { name: string; depth: number; kind: string; sound: boolean; read: boolean }) => [
      ...[row.name, row.depth, row.kind, row.sound, row.read],
    ]),
  ).toEqual([
    ["of 5", 2, "incremental", true, true],
    ["of 4", 3, "incremental", false, false],
    ["of 3", 2, "incremental", false, false],
    ["of 2", 1, "incremental", true, true],
    ["of 1", 0, "full", true, true],
  ]);
  expect(told.restore).toEqual({ members: 3, objects: 8, stored_bytes: 800 });
  expect(told.members[0]).toMatchObject({
    id: branch,
    parent_id: second,
    stored_bytes: 500,
    bytes: 2 ** 30,
    proof: null,
  });
  expect((await chainOf(fourth)).restore).toEqual({ members: 4, objects: 10, stored_bytes: 1_000 });
  expect((await chainOf(full)).members).toHaveLength(5);
  expect((await ask("stranger", "GET", `/ops/backups/${full}/chain`)).status).toBe(404);
  expect((await ask("reader", "GET", `/ops/backups/${randomUUID()}/chain`)).status).toBe(404);
  expect((await ask("reader", "GET", "/ops/backups/nope/chain")).status).toBe(404);

  const command = ["backup", "chain", branch, "--url", instance.url, "--token", "reader"];
  const { status, stdout, stderr } = await startTephra(command).finished;
  expect(status, stderr).toBe(0);
  expect(stdout).toContain("A restore reads 3 of them: 8 objects, 800 B.");

  // What others have made to build on it is theirs; a ring, which an import can forge, ends.
  await instance.sql("UPDATE backups SET project_id = $1 WHERE id = $2", [b, fourth]);
  expect((await chainOf(branch)).members).toHaveLength(4);
  expect((await chainOf(branch, "observer")).members).toHaveLength(5);
  await instance.sql("UPDATE backups SET deleted_at = now() WHERE id = $1", [full]);
  expect((await chainOf(branch)).restore).toBeNull();
  await instance.sql("UPDATE backups SET parent_id = $1 WHERE id = $2", [branch, second]);
  expect((await chainOf(branch)).restore).toBeNull();
});

it("lists backups by every filter and order, page by page, counts them, and says what may be done with one", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const [alive, gone] = [randomUUID(), randomUUID()];
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES ($1, $2, 'u', 'db-7', 'available', 1, 4096, 'files', 'nova')`,
    [alive, a],
  );
  const machine = await ask("member", "POST", "/ops/instances", { instance: { name: "pg-1", boot_volume_id: alive } });
  expect(machine.status, machine.text).toBe(201);
  const add = async (name: string | null, of: Record<string, unknown> = {}): Promise<string> => {
    const row = {
      ...{
        id: randomUUID(),
        project_id: a,
        user_id: "u",
        volume_id: alive,
        status: "available",
        size_gib: 1,
        repository: "main",
      },
      ...{
        data_timestamp: "2026-11-01T00:00:00Z",
        created_at: "2026-11-01T00:00:00Z",
        volume_bytes: 1_000,
        stored_bytes: 100,
      },
      ...of,
      name,
    };
    const columns = Object.keys(row);
    const places = columns.map((_, at) => `$${at + 1}`);
    await instance.sql(`INSERT INTO backups (${columns}) VALUES (${places})`, Object.values(row));
    return row.id;
  };
  const daysAgo = (days: number): Date => new Date(Date.now() - days * 86_400_000);
  const full = await add("full", {
    created_at: "2026-11-01T01:00:00Z",
    verified_at: daysAgo(3),
    verified_mode: "deep",
  });
  const policy = randomUUID();
  const second = await add("second", {
    ...{
      created_at: "2026-11-02T01:00:00Z",
      data_timestamp: "2026-11-02T00:00:00Z",
      parent_id: full,
      stored_bytes: 50,
    },
    ...{ damage: "An object is gone.", verified_at: daysAgo(20), verified_mode: "quick", policy_id: policy },
  });
  const third = await add("third 50%", {
    created_at: "2026-11-03T01:00:00Z",
    parent_id: second,
    verified_at: daysAgo(40),
  });
  const failed = await add(null, {
    ...{
      created_at: "2026-11-04T01:00:00Z",
      status: "error",
      fail_reason: "The disk is gone.",
      volume_bytes: null,
      stored_bytes: null,
    },
    ...{ repository: "other" },
  });
  const orphan = await add("Orphan", {
    volume_id: gone,
    created_at: "2026-11-05T01:00:00Z",
    hold_until: "2126-01-01T00:00:00Z",
  });
  const foreign = await add("foreign", { project_id: b, volume_id: randomUUID(), created_at: "2026-11-06T01:00:00Z" });
  await add("deleted", { deleted_at: new Date(), status: "deleted" });

  const list = async (query: string, who: Who = "reader") => {
    const { status, body, text } = await ask(who, "GET", `/ops/backups?${query}`);
    expect(status, text).toBe(200);
    return body;
  };
  const ids = async (query: string, who?: Who): Promise<string[]> =>
    (await list(query, who)).backups.map(({ id }: { id: string }) => id);
  const newest = [orphan, failed, third, second, full];
  expect(await ids("")).toEqual(newest);
  expect(await ids("sort=oldest")).toEqual(newest.toReversed());
  expect(await ids("", "stranger")).toEqual([foreign]);
  expect(await ids("", "observer")).toEqual([foreign, ...newest]);
  expect((await ids("sort=as_of"))[0]).toBe(second);
  expect(await ids("sort=name")).toEqual([failed, full, orphan, second, third]);
  expect((await ids("sort=stored")).slice(-2)).toEqual([second, failed]);
  for (const sort of ["newest", "oldest", "as_of", "name", "size", "stored"]) {
    const whole = await ids(`sort=${sort}`);
    const pages: string[] = [];
    let marker = "";
    do {
      const page = await list(`sort=${sort}&limit=2${marker}`);
      pages.push(...page.backups.map(({ id }: { id: string }) => id));
      marker = page.next === null ? "" : `&marker=${page.next}`;
    } while (marker !== "");
    expect([sort, pages]).toEqual([sort, whole]);
  }
  for (const [query, expected] of [
    ["status=error", [failed]],
    ["status=error,available", newest],
    ["repository=other", [failed]],
    ["proof=never", [orphan, failed]],
    ["proof=week,older", [third, full]],
    ["damage=1", [second]],
    ["orphan=1", [orphan]],
    [`policy_id=${policy}`, [second]],
    [`volume_id=${gone}`, [orphan]],
    ["q=50%25", [third]],
    ["q=ORPH", [orphan]],
    [`q=${failed.slice(0, 13).toUpperCase()}`, [failed]],
    ["from=2026-11-02T00:00:00Z&to=2026-11-02T00:00:01Z", [second]],
    ["status=error&proof=week", []],
  ] as const) {
    expect([query, await ids(query)]).toEqual([query, expected]);
  }
  const counted = await list("facets=1&status=error");
  expect([counted.total, counted.backups.length]).toEqual([1, 1]);
  expect(counted.facets).toEqual({
    status: { available: 4, error: 1 },
    repository: { main: 4, other: 1 },
    proof: { week: 1, month: 1, older: 1, never: 2 },
  });
  expect((await list("facets=1&q=third")).facets.status).toEqual({ available: 1 });
  const rows = (await list("")).backups;
  expect(rows[2]).toMatchObject({
    ...{ id: third, kind: "incremental", chain_depth: 2, sound: false, damage: null, objects: 0, encrypted: false },
    ...{
      volume: { id: alive, name: "db-7", gone: false },
      machine: { name: "pg-1" },
      keep_until: null,
      operation_id: null,
    },
  });
  expect(rows[0]).toMatchObject({ volume: { id: gone, name: null, gone: true }, machine: null, proof: null });

  const one = async (id: string, who: Who) => (await ask(who, "GET", `/ops/backups/${id}`)).body.backup;
  const whys = async (id: string, who: Who = "admin"): Promise<(string | null)[]> =>
    (await one(id, who)).actions.map(({ why }: { why: string | null }) => why);
  expect(await whys(third)).toEqual([null, null, null]);
  expect(await whys(failed)).toEqual([
    expect.stringContaining("available"),
    expect.stringContaining("available"),
    null,
  ]);
  expect((await whys(full))[2]).toContain("Incremental backups exist");
  expect((await whys(orphan))[2]).toContain("held until 2126");
  expect(await whys(third, "member")).toEqual([null, "Your role may not verify backups.", null]);
  expect((await whys(third, "reader"))[0]).toBe("Your role may not restore backups.");
  expect(await one(second, "reader")).toMatchObject({
    name: "second",
    damage: "An object is gone.",
    proof: { mode: "quick" },
  });

  for (const [query, words] of [
    ["status=", "status"],
    ["status=A%00", "status"],
    ["proof=often", "proof"],
    ["sort=weight", "sort"],
    ["limit=501", "limit"],
    ["marker=nope", "marker"],
    ["q=", "q:"],
    ["damage=yes", "damage"],
    ["from=monday", "from"],
    ["colour=red", "colour"],
  ] as const) {
    const { status, text } = await ask("reader", "GET", `/ops/backups?${query}`);
    expect([query, status]).toEqual([query, 400]);
    expect(text).toContain(words);
  }
  for (const marker of [randomUUID(), foreign]) {
    expect((await ask("reader", "GET", `/ops/backups?marker=${marker}`)).status).toBe(404);
  }
});

it("tells what waits, of whom, why the oldest does, and whether Redis agrees", async () => {
  await using instance = await startApiOnly({ config, ownRedis: true });
  const ask = askAs(instance);
  const queue = async () => {
    const { status, body, text } = await ask("observer", "GET", "/ops/queue");
    expect(status, text).toBe(200);
    return body.queue;
  };
  expect(await queue()).toMatchObject({
    postgres: {
      by_state: { ready: 0, dispatched: 0, running: 0, blocked: 0 },
      by_kind: [],
      by_project: [],
      oldest: null,
    },
    redis: { reachable: true, queues: [{ name: "tephra-silent", waiting: 0, active: 0, delayed: 0 }] },
    drift: { dispatched: 0, jobs: 0, overdue: 0, agrees: true },
  });
  const ids: string[] = [];
  for (const who of ["member", "member", "stranger"] as const) {
    const project = who === "member" ? a : b;
    const [{ id }] = await instance.sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
       VALUES (gen_random_uuid(), $1, 'u', 'v', 'available', 1, 4096, 'files', 'nova') RETURNING id`,
      [project],
    );
    const made = await ask(who, "POST", `/v3/${project}/backups`, { backup: { volume_id: id } });
    expect(made.status, made.text).toBe(202);
    ids.push((await instance.sql("SELECT id FROM operations WHERE backup_id = $1", [made.body.backup.id]))[0].id);
  }
  const waits = await queue();
  const ready = (count: number) => ({ ready: count, dispatched: 0, running: 0, blocked: 0 });
  expect(waits.postgres).toMatchObject({
    by_state: ready(3),
    by_kind: [{ kind: "plan-backup", ...ready(3) }],
    by_project: [
      { project_id: a, ...ready(2) },
      { project_id: b, ...ready(1) },
    ],
    oldest: { operation: { id: ids[0], queue_position: 1 }, why: { code: "queue" } },
  });
  // Handed out, and Redis has no job for it; a while later it is overdue.
  const hand =
    "UPDATE tasks SET state = 'dispatched', queue = 'tephra-gone', dispatched_at = $2 WHERE operation_id = $1";
  await instance.sql(hand, [ids[1], new Date()]);
  expect((await queue()).drift).toEqual({ dispatched: 1, jobs: 0, overdue: 0, agrees: false });
  await instance.sql(hand, [ids[1], new Date(Date.now() - 3_600_000)]);
  expect((await queue()).drift).toEqual({ dispatched: 1, jobs: 0, overdue: 1, agrees: false });

  for (const who of ["reader", "member", "stranger"] as const) {
    expect((await ask(who, "GET", "/ops/queue")).status).toBe(403);
  }
  const command = ["queue", "--url", instance.url, "--token", "observer"];
  const { status, stdout, stderr } = await startTephra(command).finished;
  expect(status, stderr).toBe(0);
  expect(stdout).toContain("It is the next in the queue");

  const server = instance.redisServer;
  server?.kill("SIGKILL");
  await server?.exited;
  const away = await queue();
  expect([away.redis, away.drift]).toEqual([
    { reachable: false, queues: [] },
    { dispatched: 1, jobs: null, overdue: 1, agrees: null },
  ]);
  expect(away.postgres.by_state.ready).toBe(2);
});

it("tells how far each range of an operation is", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const operation = randomUUID();
  await instance.sql(
    `INSERT INTO operations (id, kind, state, project_id, user_id, request_id) VALUES ($1, 'backup-create', 'running', $2, 'u', 'r')`,
    [operation, a],
  );
  const MiB = 1024 * 1024;
  const ranges: [state: string, claim: number, stored: number][] = [
    ["succeeded", 1, 8 * MiB],
    ["succeeded", 2, 4 * MiB],
    ["running", 1, 0],
    ["running", 2, 0],
    ["dispatched", 0, 0],
    ["ready", 0, 0],
    ["failed", 3, 9 * MiB],
  ];
  for (const [ordinal, [state, claim, stored]] of ranges.entries()) {
    const length = ordinal === 6 ? 3 * MiB : 8 * MiB;
    await instance.sql(
      `INSERT INTO tasks (id, operation_id, kind, ordinal, state, rank, project_id, queued_at, claim, worker_id, lease_until, range_offset,
         range_length, bytes_stored, bytes_done)
       VALUES (gen_random_uuid(), $1, 'copy', $2, $3, 3, $4, now(), $5, CASE WHEN $3 = 'running' THEN 'w-1' END,
         CASE WHEN $3 = 'running' THEN now() + interval '1 hour' END, $6, $7, $8, 5)`,
      [operation, ordinal, state, a, claim, ordinal * 8 * MiB, length, stored],
    );
  }
  const path = `/ops/operations/${operation}/ranges`;
  const told = (await ask("observer", "GET", path)).body;
  expect(told).toEqual({
    length_bytes: 51 * MiB,
    range_bytes: 8 * MiB,
    states: "ddrth.x",
    density: Buffer.from([255, 128, 0, 0, 0, 0, 255]).toString("base64"),
    running: [
      { ordinal: 2, worker_id: "w-1", bytes_done: 5, try: 1 },
      { ordinal: 3, worker_id: "w-1", bytes_done: 5, try: 2 },
    ],
  });
  expect((await ask("reader", "GET", path)).body.running[0].worker_id).toBeNull();
  expect((await ask("stranger", "GET", path)).status).toBe(404);
  const { status, stdout, stderr } = await startTephra([
    "operation",
    "ranges",
    operation,
    "--url",
    instance.url,
    "--token",
    "reader",
  ]).finished;
  expect(status, stderr).toBe(0);
  expect(stdout).toContain("\nddrth.x\n");
});
