import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
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
