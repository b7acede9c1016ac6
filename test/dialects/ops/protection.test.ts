import { randomBytes, randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { randomFrom } from "../../kit/random.ts";
import { projectA as a, auth, projectB as b, startApiOnly, type Who } from "../api-only.ts";

const config = {
  auth,
  protection: { target_hours: 30 },
  log_level: "warn",
};

it("says how protected each volume is, and why", async () => {
  await using instance = await startApiOnly({ config });
  const ask = (who: Who, method: string, path: string, body?: unknown) =>
    instance.request(method, path, body, { "x-auth-token": who });
  const addVolume = async (name: string, project = a): Promise<string> => {
    const [row] = await instance.sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
       VALUES (gen_random_uuid(), $2, 'u', $1, 'available', 1, 4096, 'files', 'nova') RETURNING id`,
      [name, project],
    );
    return row.id;
  };
  /** A backup of so many hours ago. */
  const addBackup = async (
    volume: string,
    hours: number,
    more: { status?: string; damage?: string; parent?: string } = {},
  ) => {
    const { status = "available", damage = null, parent = null } = more;
    const id = randomUUID();
    await instance.sql(
      `INSERT INTO backups (id, project_id, user_id, volume_id, status, damage, parent_id, size_gib, repository, fail_reason, data_timestamp, created_at)
       SELECT $1, project_id, 'u', id, $3, $4, $5, 1, 'main', CASE WHEN $3 = 'error' THEN 'The disk is gone.' END,
         now() - $6::int * interval '1 hour', now() - $6::int * interval '1 hour' FROM volumes WHERE id = $2`,
      [id, volume, status, damage, parent, hours],
    );
    return id;
  };
  const names = ["fresh", "old", "failed", "never", "hopeless", "spoilt", "child of spoilt", "wanted soon", "excluded"];
  const ids = Object.fromEntries(await Promise.all(names.map(async (name) => [name, await addVolume(name)])));
  const of = (name: string): string => ids[name] as string;
  await addVolume("theirs", b);
  const good = await addBackup(of("fresh"), 29);
  await addBackup(of("fresh"), 200, { status: "error" });
  await addBackup(of("old"), 31);
  await addBackup(of("failed"), 20);
  await addBackup(of("failed"), 2, { status: "error" });
  await addBackup(of("hopeless"), 1, { status: "error" });
  await addBackup(of("spoilt"), 25);
  await addBackup(of("spoilt"), 1, { damage: "an object is gone" });
  const root = await addBackup(of("child of spoilt"), 9, { damage: "an object is gone" });
  await addBackup(of("child of spoilt"), 1, { parent: root });
  await addBackup(of("wanted soon"), 3);
  await addBackup(of("excluded"), 300);
  const soon = { name: "soon", target_hours: 2, schedule: { cron: "0 * * * *" } };
  const { policy } = (await ask("member", "POST", "/ops/policies", { policy: soon })).body;
  const assignment = { volume_id: of("wanted soon") };
  expect((await ask("member", "POST", `/ops/policies/${policy.id}/assignments`, { assignment })).status).toBe(201);
  const excluded = await ask("member", "PUT", `/ops/volumes/${of("excluded")}/exclusion`, { reason: "scratch" });
  expect([excluded.status, excluded.body.protection.state, excluded.body.protection.excluded]).toEqual([
    200,
    "excluded",
    { reason: "scratch", until: null },
  ]);

  const { volumes, facets, next } = (await ask("reader", "GET", "/ops/volumes")).body;
  const told = Object.fromEntries(
    volumes.map((each: { name: string; protection: { state: string; reason: string | null } }) => [
      each.name,
      [each.protection.state, each.protection.reason],
    ]),
  );
  const damaged = "A backup that is newer than the newest good one is damaged, or builds on one that is.";
  expect(told).toEqual({
    fresh: ["protected", null],
    old: ["late", "The newest good backup is 31 h old; the target is 30 h."],
    failed: ["at risk", "The newest try has failed: The disk is gone."],
    never: ["never", "There is no backup that can be restored."],
    hopeless: ["never", "The newest try has failed: The disk is gone."],
    spoilt: ["at risk", damaged],
    "child of spoilt": ["never", damaged],
    "wanted soon": ["late", "The newest good backup is 3 h old; the target is 2 h."],
    excluded: ["excluded", "scratch"],
  });
  expect(facets).toEqual({ state: { protected: 1, late: 2, "at risk": 2, never: 3, excluded: 1 } });
  expect(next).toBeNull();
  const fresh = volumes.find((each: { name: string }) => each.name === "fresh");
  expect(fresh).toMatchObject({
    id: of("fresh"),
    project_id: a,
    bytes: 4096,
    protection: {
      last_good: { backup_id: good },
      target_seconds: 30 * 3600,
      policy: null,
      next_at: null,
      excluded: null,
    },
  });
  const wanted = volumes.find((each: { name: string }) => each.name === "wanted soon");
  expect(wanted.protection).toMatchObject({ policy: { id: policy.id, name: "soon" }, next_at: policy.next_at });

  // Pages, the worst first; filters; other projects.
  const order = volumes.map((each: { id: string }) => each.id);
  const paged: string[] = [];
  for (let marker: string | null = ""; marker !== null; ) {
    const path = `/ops/volumes?limit=2${marker && `&marker=${marker}`}`;
    const page: { volumes: { id: string }[]; facets: unknown; next: string | null } = (await ask("reader", "GET", path))
      .body;
    paged.push(...page.volumes.map(({ id }) => id));
    expect(page.facets).toEqual(facets);
    marker = page.next;
  }
  expect(paged).toEqual(order);
  expect(order.slice(0, 3).sort()).toEqual([of("never"), of("hopeless"), of("child of spoilt")].sort());
  const late = (await ask("reader", "GET", "/ops/volumes?state=late")).body;
  expect(late.volumes.map((each: { name: string }) => each.name)).toEqual(["old", "wanted soon"]);
  const none = (await ask("stranger", "GET", "/ops/volumes?state=late")).body;
  expect(none).toEqual({
    volumes: [],
    facets: { state: { protected: 0, late: 0, "at risk": 0, never: 1, excluded: 0 } },
    next: null,
  });
  expect((await ask("admin", "GET", "/ops/volumes")).body.volumes).toHaveLength(10);
  expect((await ask("reader", "GET", "/ops/volumes?state=lost")).status).toBe(400);
  const metrics = (await instance.request("GET", "/metrics")).text;
  expect(metrics).toContain('tephra_volumes{state="late"} 2');
  expect(metrics).toContain('tephra_volumes{state="never"} 4');

  // Exclusions.
  const path = `/ops/volumes/${of("excluded")}/exclusion`;
  const past = await ask("member", "PUT", path, { reason: "moved", until: "2020-01-01T00:00:00Z" });
  expect([past.status, past.text]).toEqual([400, expect.stringContaining("until: is in the past")]);
  expect((await ask("member", "PUT", path, { reason: "" })).status).toBe(400);
  expect((await ask("reader", "PUT", path, { reason: "x" })).status).toBe(403);
  expect((await ask("stranger", "PUT", path, { reason: "x" })).status).toBe(404);
  const until = "2199-01-01T00:00:00.000Z";
  expect((await ask("member", "PUT", path, { reason: "moved", until })).body.protection.excluded).toEqual({
    reason: "moved",
    until,
  });
  await instance.sql("UPDATE volume_exclusions SET until = now() - interval '1 second'");
  expect((await ask("reader", "GET", "/ops/volumes?state=excluded")).body.volumes).toEqual([]);
  expect((await ask("member", "DELETE", path)).status).toBe(204);
  expect((await ask("member", "DELETE", path)).status).toBe(204);
  const audit = (await ask("admin", "GET", `/ops/audit?resource=volume&resource_id=${of("excluded")}`)).body.audit;
  expect(
    audit.map((each: { to: string; reason: string | null; user_id: string }) => [each.to, each.reason, each.user_id]),
  ).toEqual([
    ["included", null, "user-of-member"],
    ["excluded", "moved", "user-of-member"],
    ["excluded", "scratch", "user-of-member"],
    ["available", null, null],
  ]);
});

it("judges all volumes together as each by itself, whatever their backups and policies are", async () => {
  const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
  process.stderr.write(`protection: seed ${seed}\n`);
  const random = randomFrom(seed);
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  await using instance = await startApiOnly({ config });
  const { sql } = instance;
  const ask = (who: Who, path: string) => instance.request("GET", path, undefined, { "x-auth-token": who });
  for (const [name, project, hours] of [
    ["own", a, 3],
    ["theirs", b, 50],
    ["all", null, null],
    ["both", a, 9],
    ["both", null, 70],
  ]) {
    await sql(
      `INSERT INTO policies (id, project_id, user_id, name, enabled, schedule, kind, target_hours)
       VALUES (gen_random_uuid(), $1, 'u', $2, false, '{}', '{}', $3)`,
      [project, name, hours],
    );
  }
  const assign = (scope: string, project: string, volume: string | null, machine: string | null) =>
    sql(
      `INSERT INTO policy_assignments (id, policy_id, scope, project_id, volume_id, instance_id, user_id)
       SELECT gen_random_uuid(), id, $1, $2, $3, $4, 'u' FROM policies ORDER BY md5(id::text || $5) LIMIT 1`,
      [scope, project, volume, machine, String(random(1000))],
    );
  const machine = randomUUID();
  await sql(
    `INSERT INTO instances (id, project_id, user_id, name, power_state, driver) VALUES ($1, $2, 'u', 'm', 'off', 'record')`,
    [machine, a],
  );
  const [group] = await sql(
    `INSERT INTO groups (id, project_id, user_id, status, group_type_id, availability_zone, instance_id)
     SELECT gen_random_uuid(), $1, 'u', 'available', id, 'nova', $2 FROM group_types LIMIT 1 RETURNING id`,
    [a, machine],
  );
  if (random(2) === 0) await assign("machine", a, null, machine);
  if (random(2) === 0) await assign("project", pick([a, b]), null, null);
  // No age is near a target: the answer does not depend on how long the test takes.
  const hours = [1, 2, 5, 12, 28, 40, 60, 100];
  for (let n = 0; n < 40; n += 1) {
    const [id, project] = [randomUUID(), pick([a, a, b])];
    const named = pick([null, null, null, "own", "all", "both", "unknown"]);
    await sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone, metadata, group_id)
       VALUES ($1, $2, 'u', 'v', 'available', 1, 4096, 'files', 'nova', jsonb_strip_nulls(jsonb_build_object('tephra:policy', $3::text)), $4)`,
      [id, project, named, project === a && random(4) === 0 ? group.id : null],
    );
    if (random(5) === 0) await assign("volume", pick([project, project, b]), id, null);
    if (random(8) === 0) {
      const until = pick([null, "1 day", "-1 day"]);
      await sql(
        "INSERT INTO volume_exclusions (volume_id, reason, user_id, until) VALUES ($1, 'r', 'u', now() + $2::interval)",
        [id, until],
      );
    }
    const made: string[] = [];
    for (let count = random(5); count > 0; count -= 1) {
      const backup = randomUUID();
      await sql(
        `INSERT INTO backups (id, project_id, user_id, volume_id, status, damage, parent_id, size_gib, repository, deleted_at, data_timestamp, created_at)
         VALUES ($1, $2, 'u', $3, $4, $5, $6, 1, 'main', $7, now() - $8::int * interval '1 hour', now() - $9::float8 * interval '1 hour')`,
        [
          ...[backup, pick([project, project, project, b]), id],
          ...[pick(["available", "available", "restoring", "error", "creating"]), pick([null, null, null, "gone"])],
          ...[made.length > 0 && random(2) === 0 ? pick(made) : null, pick([null, null, null, new Date()])],
          ...[pick(hours), pick(hours) + n / 100 + count / 1000],
        ],
      );
      made.push(backup);
    }
  }
  for (const who of ["admin", "reader", "stranger"] as const) {
    const { volumes, facets } = (await ask(who, "/ops/volumes?limit=500")).body;
    const states: string[] = volumes.map((each: { protection: { state: string } }) => each.protection.state);
    const counts = Object.keys(facets.state).map((state) => [state, states.filter((one) => one === state).length]);
    expect(facets.state, `seed ${seed}, ${who}`).toEqual(Object.fromEntries(counts));
    for (const state of Object.keys(facets.state)) {
      const found = (await ask(who, `/ops/volumes?limit=500&state=${encodeURIComponent(state)}`)).body.volumes;
      const ids = (all: { id: string; protection: { state: string } }[]) => all.map(({ id }) => id);
      const those = volumes.filter((each: { protection: { state: string } }) => each.protection.state === state);
      expect(ids(found), `seed ${seed}, ${who}, ${state}`).toEqual(ids(those));
    }
  }
});
