import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, askAs, auth, projectB as b, startApiOnly } from "../api-only.ts";

const config = { auth, tasks: { unplaced_timeout_ms: 3_600_000, reconcile_ms: 3_600_000 }, log_level: "warn" };

it("tells who uses how much, and whose volumes are not protected, those that store most first", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const { sql } = instance;
  const volume = async (project: string): Promise<string> => {
    const id = randomUUID();
    await sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
       VALUES ($1, $2, 'u', 'disk', 'available', 1, 4096, 'files', 'nova')`,
      [id, project],
    );
    return id;
  };
  const backup = (of: string, project: string, hours: number, bytes: number, status = "available") =>
    sql(
      `INSERT INTO backups (id, project_id, user_id, volume_id, status, size_gib, volume_bytes, stored_bytes, repository, data_timestamp, created_at)
       VALUES (gen_random_uuid(), $2, 'u', $1, $5, 1, 4096, $4, 'main', now() - $3::int * interval '1 hour', now() - $3::int * interval '1 hour')`,
      [of, project, hours, bytes, status],
    );
  await backup(await volume(a), a, 1, 1_000);
  await backup(await volume(a), a, 100, 2_000);
  await backup(await volume(b), b, 1, 9_000);
  await backup(await volume(b), b, 1, 70_000, "error");
  await volume(b);
  await sql("INSERT INTO quotas (project_id, volumes, volumes_used, backups_used) VALUES ($1, 10, 3, 2)", [b]);
  const operation = randomUUID();
  await sql(
    `INSERT INTO operations (id, kind, state, project_id, user_id, request_id) VALUES ($1, 'backup-create', 'running', $2, 'u', 'req-1')`,
    [operation, a],
  );
  for (const [ordinal, state] of ["running", "ready", "ready", "blocked"].entries()) {
    await sql(
      `INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs, state)
       VALUES (gen_random_uuid(), $1, 'copy', $2, 3, $3, now(), '{}', $4)`,
      [operation, ordinal, a, state],
    );
  }

  const { status, text, body } = await ask("observer", "GET", "/ops/projects");
  expect(status, text).toBe(200);
  const none = { running: 0, waiting: 0 };
  expect(body.projects).toMatchObject([
    { project_id: b, ...none, late: 0, never: 2, stored_bytes: 9_000, quota: { volumes: { limit: 10, in_use: 3 } } },
    { project_id: a, running: 1, waiting: 2, late: 1, never: 0, stored_bytes: 3_000 },
  ]);
  expect(body.projects[0].quota.backups).toMatchObject({ in_use: 2 });
  expect(body.projects[1].quota.backups).toEqual({ ...body.projects[0].quota.backups, in_use: 0 });
  expect(body.next).toBeNull();

  const first = (await ask("observer", "GET", "/ops/projects?limit=1")).body;
  expect([first.projects.length, first.next]).toEqual([1, b]);
  const second = (await ask("observer", "GET", `/ops/projects?limit=1&marker=${first.next}`)).body;
  expect([second.projects[0].project_id, second.next]).toEqual([a, null]);
  const found = (await ask("admin", "GET", "/ops/projects?q=aaa")).body.projects;
  expect(found.map(({ project_id }: { project_id: string }) => project_id)).toEqual([a]);

  for (const who of ["reader", "member", "stranger"] as const) {
    expect((await ask(who, "GET", "/ops/projects")).status, who).toBe(403);
  }
  for (const [query, words] of [
    ["marker=nobody", "marker: "],
    ["limit=0", "limit: "],
    ["limit=1001", "limit: "],
    ["q=", "q: "],
    ["colour=red", "colour"],
  ]) {
    const refused = await ask("observer", "GET", `/ops/projects?${query}`);
    expect([query, refused.status]).toEqual([query, 400]);
    expect(refused.text).toContain(words);
  }
  const listed = await startTephra(["project", "list", "--url", instance.url, "--token", "observer"]).finished;
  expect(listed.status, listed.stderr).toBe(0);
  expect(listed.stdout).toMatch(new RegExp(`${b} +3/10 .*\\n${a} +0`));
});
