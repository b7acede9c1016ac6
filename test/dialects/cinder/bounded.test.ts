import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { setStatus, startApiOnly } from "../api-only.ts";

const project = "00000000000000000000000000000001";
const newest = { "openstack-api-version": "volume 3.71" };

const ask = (instance: Instance, method: string, path: string, body?: unknown) =>
  instance.request(method, `/v3/${project}${path}`, body, newest);

const pairs = (count: number, length: number, prefix = "k"): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, at) => [`${prefix}${at}`, "v".repeat(length)]));

const tooMany = "MetadataLimitExceeded: Maximum number of metadata items exceeds 128";

it("gives no resource more metadata than the limits, at whichever door it comes in", { timeout: 120_000 }, async () => {
  await using instance = await startApiOnly();
  const made = async (path: string, body: object): Promise<string> => {
    const reply = await ask(instance, "POST", path, body);
    expect(reply.status, reply.text).toBe(202);
    return (Object.values(reply.body)[0] as { id: string }).id;
  };
  const refusal = (text: string) => ({ overLimit: { code: 413, message: text, retryAfter: "0" } });
  const volume = await made("/volumes", { volume: { size: 1, metadata: pairs(128, 1) } });
  await setStatus(instance, "volumes", volume, "available");
  const backup = await made("/backups", { backup: { volume_id: volume } });
  await setStatus(instance, "backups", backup, "available");
  await setStatus(instance, "volumes", volume, "available");
  const snapshot = await made("/snapshots", { snapshot: { volume_id: volume } });
  await setStatus(instance, "snapshots", snapshot, "available");

  const [many, long] = [pairs(129, 1), pairs(128, 255)];
  const doors: [string, string, (metadata: object) => object][] = [
    ["POST", "/volumes", (metadata) => ({ volume: { size: 1, metadata } })],
    ["PUT", `/volumes/${volume}`, (metadata) => ({ volume: { metadata } })],
    ["POST", `/volumes/${volume}/metadata`, (metadata) => ({ metadata })],
    ["PUT", `/volumes/${volume}/metadata`, (metadata) => ({ metadata })],
    ["POST", "/snapshots", (metadata) => ({ snapshot: { volume_id: volume, metadata } })],
    ["POST", `/snapshots/${snapshot}/metadata`, (metadata) => ({ metadata })],
    ["PUT", `/snapshots/${snapshot}/metadata`, (metadata) => ({ metadata })],
    ["POST", "/backups", (metadata) => ({ backup: { volume_id: volume, metadata } })],
    ["PUT", `/backups/${backup}`, (metadata) => ({ backup: { metadata } })],
  ];
  for (const [method, path, body] of doors) {
    const reply = await ask(instance, method, path, body(many));
    expect([reply.status, reply.body], `${method} ${path}`).toEqual([413, refusal(tooMany)]);
    expect((await ask(instance, method, path, body(long))).status, `${method} ${path}`).toBe(413);
  }
  // One by one it grows no further either; what is there can still be changed and taken away.
  expect((await ask(instance, "POST", `/volumes/${volume}/metadata`, { metadata: { one: "more" } })).body).toEqual(
    refusal(tooMany),
  );
  const another = await ask(instance, "PUT", `/volumes/${volume}/metadata/other`, { meta: { other: "x" } });
  expect(another.body).toEqual(refusal(tooMany));
  expect((await ask(instance, "PUT", `/volumes/${volume}/metadata/k0`, { meta: { k0: "x" } })).status).toBe(200);
  expect((await ask(instance, "DELETE", `/volumes/${volume}/metadata/k0`)).status).toBe(200);
  const rows = await instance.sql(
    "SELECT metadata FROM volumes UNION ALL SELECT metadata FROM snapshots UNION ALL SELECT metadata FROM backups",
  );
  for (const { metadata } of rows) expect(Object.keys(metadata).length).toBeLessThanOrEqual(128);
});

it("ends a page at 4 MiB of metadata and leads to the next, until all is read", { timeout: 120_000 }, async () => {
  await using instance = await startApiOnly();
  const wide = JSON.stringify(pairs(300, 255));
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, status, size_gib, size_bytes, backend, availability_zone, metadata, created_at)
     SELECT gen_random_uuid(), $1, 'u', 'available', 1, 1073741824, 'files', 'nova', $2::jsonb, now() + g * interval '1 s'
     FROM generate_series(1, 120) g`,
    [project, wide],
  );
  await instance.sql(
    `INSERT INTO snapshots (id, project_id, user_id, volume_id, status, size_gib, size_bytes, metadata)
     SELECT gen_random_uuid(), project_id, user_id, id, 'available', 1, size_bytes, metadata FROM volumes`,
  );
  await instance.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, status, size_gib, repository, metadata, data_timestamp)
     SELECT gen_random_uuid(), project_id, user_id, id, 'available', 1, 'main', metadata, now() FROM volumes`,
  );
  for (const name of ["volumes", "snapshots", "backups"]) {
    const seen = new Set<string>();
    let pages = 0;
    let next: string | undefined = `/v3/${project}/${name}/detail`;
    while (next !== undefined && pages < 10) {
      const reply = await instance.request("GET", next, undefined, newest);
      expect(reply.status).toBe(200);
      expect(reply.text.length).toBeLessThan(6 * 1024 * 1024);
      for (const row of reply.body[name]) seen.add(row.id);
      const [link] = reply.body[`${name}_links`] ?? [];
      next = link?.href.slice(instance.url.length);
      pages += 1;
    }
    expect([seen.size, pages >= 3], name).toEqual([120, true]);
  }
});

it("tells the positions of 20,000 queued operations in one pass", { timeout: 120_000 }, async () => {
  await using instance = await startApiOnly();
  await instance.sql(
    `INSERT INTO operations (id, kind, state, project_id, user_id, request_id, input, bytes_total, remaining, created_at)
     SELECT gen_random_uuid(), 'backup-verify', 'queued', lpad(to_hex(1000 + g % 5000), 32, '0'), 'u', 'req-' || g, '{}', 0, 1, now() + g * interval '1 ms'
     FROM generate_series(1, 20000) g`,
  );
  await instance.sql(
    `INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs)
     SELECT gen_random_uuid(), id, 'plan-verify', 0, 4, project_id, created_at, array['repository:nowhere'] FROM operations`,
  );
  await instance.sql("ANALYZE operations, tasks");
  const ask = async (limit: number) => {
    const startedMs = performance.now();
    const reply = await instance.request("GET", `/ops/operations?state=queued&limit=${limit}`);
    return { ...reply, tookMs: performance.now() - startedMs };
  };
  const ones = [await ask(1), await ask(1), await ask(1)];
  const reply = await ask(1000);
  expect(reply.status).toBe(200);
  const positions = reply.body.operations.map((operation: { queue_position: number }) => operation.queue_position);
  expect(new Set(positions)).toEqual(new Set([1_001]));
  // With a scan for each row it takes a thousand times as long as one row does. The machine may be busy with something else at any time.
  const all = [reply, await ask(1000), await ask(1000)];
  const [best, slowest] = [Math.min(...all.map(({ tookMs }) => tookMs)), Math.max(...ones.map(({ tookMs }) => tookMs))];
  expect(best / slowest).toBeLessThan(100);
  const places = [1, 2, 500, 1_000, 1_001, 20_000];
  const ids: { id: string }[] = await instance.sql("SELECT id FROM operations ORDER BY created_at, id");
  const shown = await Promise.all(
    places.map(
      async (place) => (await instance.request("GET", `/ops/operations/${ids[place - 1]?.id}`)).body.operation,
    ),
  );
  expect(shown.map((operation) => operation.queue_position)).toEqual([1, 2, 500, 1_000, 1_001, 1_001]);
  // The first place is taken: all move up.
  await instance.sql("UPDATE operations SET state = 'running', started_at = now() WHERE id = $1", [ids[0]?.id]);
  const next = await instance.request("GET", `/ops/operations/${ids[1_000]?.id}`);
  expect(next.body.operation.queue_position).toBe(1_000);
});
