import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, askAs, auth, startApiOnly, type Who } from "../api-only.ts";

const config = { auth, tasks: { unplaced_timeout_ms: 3_600_000, reconcile_ms: 3_600_000 }, log_level: "warn" };

it("tells nobody of what admins know of, for a while, and projects theirs all the same", async () => {
  await using instance = await startApiOnly({ config });
  const asked = askAs(instance);
  const ask = (who: Who, path: string, method = "GET", body?: unknown) => asked(who, method, path, body);
  const run = async (...args: string[]) => {
    const { status, stdout, stderr } = await startTephra([...args, "--url", instance.url, "--token", "admin"]).finished;
    expect(status, stderr).toBe(0);
    return stdout;
  };
  const volume = randomUUID();
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES ($1, $2, 'u', 'db-7', 'available', 1, 4096, 'files', 'nova')`,
    [volume, a],
  );
  await instance.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, status, size_gib, volume_bytes, stored_bytes, repository, data_timestamp, created_at)
     VALUES (gen_random_uuid(), $2, 'u', $1, 'available', 1, 4096, 1024, 'main', now() - interval '9 days', now() - interval '9 days')`,
    [volume, a],
  );
  await instance.sql(`UPDATE workers SET free_bytes = '{"backend:files": 1073741824}' WHERE id = 'silent'`);

  const tomorrow = new Date(Date.now() + 86_400_000).toISOString();
  const path = (code: string, subject = "-") => `/ops/alerts/${code}/${encodeURIComponent(subject)}/snooze`;
  const put = (who: Who, of: string, body: unknown = { until: tomorrow, reason: "moved" }) => ask(who, of, "PUT", body);
  const state = async (who: Who) => {
    const { alerts } = (await ask(who, "/ops/overview")).body.overview;
    return Object.fromEntries(alerts.map((alert: Record<string, unknown>) => [alert["code"], alert["snoozed_until"]]));
  };
  const become = (who: Who, code: string, until: string | null) =>
    instance.waitFor(async () => (await state(who))[code] === until, { what: `${code} of ${who}: ${until}` });

  const late = path("volumes_late");
  for (const who of ["reader", "member", "observer", "stranger"] as const) {
    expect((await put(who, late)).status, who).toBe(403);
    expect((await ask(who, late, "DELETE")).status, who).toBe(403);
  }
  const refusals: [of: string, body: unknown, status: number, text: RegExp][] = [
    [late, { until: "2020-01-01T00:00:00Z", reason: "moved" }, 400, /until: is in the past/],
    [late, { until: "2999-01-01T00:00:00Z", reason: "moved" }, 400, /until: is more than 90 days ahead/],
    [late, { until: tomorrow, reason: "  " }, 400, /reason: /],
    [late, { until: tomorrow }, 400, /reason: /],
    [late, { reason: "moved" }, 400, /until: /],
    [path("volumes_late", "main"), { until: tomorrow, reason: "moved" }, 404, /Alert volumes_late of main/],
    [path("no_workers"), { until: tomorrow, reason: "moved" }, 404, /Alert no_workers/],
    [path("nonsense"), { until: tomorrow, reason: "moved" }, 404, /Alert nonsense/],
  ];
  for (const [of, body, status, text] of refusals) {
    const refused = await put("admin", of, body);
    expect([refused.status, refused.text]).toEqual([status, expect.stringMatching(text)]);
  }
  expect((await ask("admin", late, "DELETE")).status).toBe(404);
  expect(await instance.sql("SELECT code FROM alert_snoozes")).toEqual([]);

  const answered = await put("admin", late);
  expect(answered.status, answered.text).toBe(200);
  expect(answered.body.alert).toMatchObject({
    ...{ code: "volumes_late", subject: null, count: 1 },
    ...{ snoozed_until: tomorrow, snoozed_by: "user-of-admin", snoozed_reason: "moved" },
  });
  expect((await put("admin", path("disk_low", "files on here"))).status).toBe(200);
  await become("admin", "disk_low", tomorrow);
  await become("observer", "volumes_late", tomorrow);
  expect((await state("reader"))["volumes_late"]).toBe(null);
  expect(JSON.stringify((await ask("reader", "/ops/overview")).body)).not.toContain("moved");
  // The metric leaves it out.
  const metric = async (line: string) => (await instance.request("GET", "/metrics")).text.includes(`${line}\n`);
  await instance.waitFor(() => metric('tephra_alerts{code="volumes_late"} 0'), { what: "not told", timeoutMs: 60_000 });
  expect(await metric('tephra_alerts_snoozed{code="volumes_late"} 1')).toBe(true);
  expect(await metric('tephra_alerts_snoozed{code="queue_old"} 0')).toBe(true);
  expect(await run("status")).toMatch(/volumes_late .*until \S+ by user-of-admin: moved/);

  const entries = (await ask("admin", "/ops/audit?resource=alert")).body.audit;
  expect(entries.map(({ to, user_id, reason }: Record<string, string>) => [to, user_id, reason])).toEqual([
    ["snoozed", "user-of-admin", `disk_low of files on here, until ${tomorrow}: moved`],
    ["snoozed", "user-of-admin", `volumes_late, until ${tomorrow}: moved`],
  ]);
  // Who does not see all is not told of it as a change, either.
  for (const [who, told] of [
    ["observer", true],
    ["member", false],
  ] as const) {
    const { changes } = (await ask(who, "/ops/changes?after=0-0")).body;
    expect(
      changes.some(({ resource }: { resource: string }) => resource === "alert"),
      who,
    ).toBe(told);
  }

  // It ends by itself, or is ended; another one replaces it.
  await instance.sql("UPDATE alert_snoozes SET until = now() - interval '1 second' WHERE code = 'disk_low'");
  await become("admin", "disk_low", null);
  expect((await ask("admin", path("disk_low", "files on here"), "DELETE")).status).toBe(404);
  expect(await run("alert", "snooze", "volumes_late", "--for", "7d", "--reason", "a migration")).toMatch(
    /snoozed until/,
  );
  expect(await instance.sql("SELECT code, subject, reason FROM alert_snoozes")).toEqual([
    { code: "volumes_late", subject: "", reason: "a migration" },
  ]);
  await instance.waitFor(async () => (await state("admin"))["volumes_late"] !== tomorrow, { what: "the other one" });
  expect(await run("alert", "list")).toMatch(/volumes_late .*: a migration/);
  expect(await run("alert", "unsnooze", "volumes_late")).toMatch(/told again/);
  await become("admin", "volumes_late", null);
});
