import { beginTerm, loadConfig, openDatabase, openLog, reconcile } from "@tephra/control/process";
import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { projectA as a, askAs, auth, startApiOnly } from "../api-only.ts";

const minuteMs = 60_000;
const dayMs = 1_440 * minuteMs;

/** The whole minute so many minutes ago. */
const ago = (minutes: number): Date => new Date(Math.floor(Date.now() / minuteMs - minutes) * minuteMs);

const config = { auth, log_level: "warn", tasks: { reconcile_ms: 3_600_000 } };

/** One pass of a reconciler, in which this work is due. */
async function passOf(instance: Instance, schedule: string): Promise<void> {
  const settings = loadConfig({
    DATABASE_URL: instance.databaseUrl,
    REDIS_URL: instance.redisUrl,
    TEPHRA_DATA_DIR: instance.dataDir,
  });
  const database = openDatabase(instance.databaseUrl);
  try {
    await instance.setDue(schedule);
    await reconcile({
      database,
      config: settings,
      log: openLog(settings, "test"),
      afterOutage: false,
      term: beginTerm(),
    });
  } finally {
    await database.$disconnect();
  }
}

it("takes one sample a minute, counts volumes and bytes rarely, and answers them by steps", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const read = async (query: string) => {
    const { status, body, text } = await ask("observer", "GET", `/ops/samples?${query}`);
    expect(status, text).toBe(200);
    return body;
  };
  const rows = () => instance.sql("SELECT * FROM samples ORDER BY at");
  const take = async () => {
    await passOf(instance, "sample");
    return (await rows()).at(-1);
  };
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES (gen_random_uuid(), $1, 'u', 'v', 'available', 1, 4096, 'files', 'nova')`,
    [a],
  );
  const first = await take();
  expect(first).toMatchObject({
    ...{ succeeded: "0", failed: "0", waiting: 0, running: 0, oldest_seconds: 0, workers: 1, slots: 1 },
    ...{ stored: { main: 0 }, volumes: { protected: 0, late: 0, "at risk": 0, never: 1, excluded: 0 } },
  });
  // A row of earlier; since then two operations have ended, and bytes were moved.
  await instance.sql("UPDATE samples SET at = $1, bytes_read = 0, bytes_stored = 0, failed = 40", [ago(10)]);
  await instance.sql(
    "INSERT INTO counters (name, label, value) VALUES ('bytes_read', '999', 6000), ('bytes_stored', '999', 600)",
  );
  for (const [state, minutes] of [
    ["succeeded", 9],
    ["failed", 2],
    ["failed", 30],
  ] as const) {
    await instance.sql(
      `INSERT INTO operations (id, kind, state, project_id, user_id, request_id, finished_at)
       VALUES (gen_random_uuid(), 'backup-create', $1, $2, 'u', 'r', $3)`,
      [state, a, ago(minutes)],
    );
  }
  const second = await take();
  expect(second).toMatchObject({ succeeded: "1", failed: "41", bytes_read: "6000", volumes: null, stored: null });

  await take();
  expect((await rows()).length).toBeLessThanOrEqual(3);
  const from = ago(12);
  const all = await read(`from=${from.toISOString()}`);
  expect(all.step_seconds).toBe(60);
  const valuesOf = (name: string): (number | null)[] => all.series[name];
  const known = (name: string): (number | null)[] => valuesOf(name).filter((value) => value !== null);
  expect(new Set(Object.values<unknown[]>(all.series).map(({ length }) => length))).toEqual(new Set([all.t.length]));
  // Nothing is known of the time before the first; the second has what came to pass since, and its gap stays one.
  expect([known("ends_failed")[0], known("ends_succeeded")[0]]).toEqual([1, 1]);
  expect(known("volumes_never")).toEqual([1]);
  expect(known("stored:main")).toEqual([0]);
  expect(new Set(known("queue_waiting"))).toEqual(new Set([0]));
  const [rate] = known("bytes_in");
  const seconds = (second.at.getTime() - ago(10).getTime()) / 1_000;
  expect(Math.abs((rate ?? 0) - 6_000 / seconds)).toBeLessThan(6_000 / seconds / 2);
  const index = valuesOf("volumes_never").findIndex((value) => value !== null);
  expect(Date.parse(all.t[index]) + 60_000).toBeLessThanOrEqual(ago(9).getTime());

  const few = await read("series=bytes_in,queue_oldest&points=30");
  expect(Object.keys(few.series)).toEqual(["bytes_in", "queue_oldest"]);
  expect([few.step_seconds, few.t.length <= 30]).toEqual([3_600, true]);
  expect((await read(`from=${new Date(Date.now() - 3 * dayMs).toISOString()}&points=1000`)).step_seconds).toBe(900);
  expect((await read(`from=${new Date(Date.now() - 365 * dayMs).toISOString()}`)).step_seconds).toBe(2 * 86_400);
  expect((await read("from=1970-01-01T00:00:00Z")).t.length).toBeLessThanOrEqual(300);

  for (const who of ["reader", "member", "stranger"] as const) {
    expect((await ask(who, "GET", "/ops/samples")).status).toBe(403);
  }
  for (const [query, words] of [
    ["series=weather", "series"],
    ["series=", "series"],
    ["points=1", "points"],
    ["points=1001", "points"],
    ["from=yesterday", "from"],
    ["from=2026-01-02T00:00:00Z&to=2026-01-02T00:00:00Z", "from: is not before to"],
    ["colour=red", "colour"],
  ] as const) {
    const { status, text } = await ask("observer", "GET", `/ops/samples?${query}`);
    expect([query, status]).toEqual([query, 400]);
    expect(text).toContain(words);
  }
});

it("leaves samples out as they grow old, none of their sums, and tells how fast a repository grows", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  expect((await ask("observer", "GET", "/ops/repositories/main")).body.repository.stored_per_day).toBeNull();
  const [{ today }] = await instance.sql("SELECT date_trunc('day', now(), 'UTC') AS today");
  const add = (days: number, count: number) =>
    instance.sql(
      `INSERT INTO samples (at, bytes_read, bytes_stored, succeeded, failed, cancelled, waiting, running, oldest_seconds, workers, slots, stored)
       SELECT $1::timestamptz + n * interval '1 minute', n, 0, 0, 0, 0, 0, 0, 0, 0, 0,
         CASE WHEN n % 15 = 3 THEN jsonb_build_object('main', 1000 * (100 - $2::int)) END
       FROM generate_series(1, $3::int) n`,
      [new Date(today.getTime() - days * dayMs), days, count],
    );
  await add(1, 60);
  await add(10, 120);
  await add(100, 2_880);
  await add(-2, 1);
  await passOf(instance, "thin-samples");
  expect(await instance.sql("SELECT count(*)::int AS rows FROM samples")).toEqual([{ rows: 60 + 8 + 2 }]);
  const [{ counted }] = await instance.sql(
    "SELECT count(*)::int AS counted FROM samples WHERE at < now() - interval '2 days' AND stored IS NOT NULL",
  );
  expect(counted).toBe(10);
  const { repository } = (await ask("observer", "GET", "/ops/repositories/main")).body;
  expect(repository.stored_per_day).toBeCloseTo(1_000, -1);
});
