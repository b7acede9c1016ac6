import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, askAs, auth, projectB as b, startApiOnly, type Who } from "../api-only.ts";

const config = {
  auth,
  // What is written here stays as it is.
  tasks: { unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 3_600_000, reconcile_ms: 3_600_000 },
  log_level: "warn",
};

it("filters operations, page by page, and tells the parts of one, its tries and its tasks", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const list = async (who: Who, query: string) => {
    const { status, body, text } = await ask(who, "GET", `/ops/operations?${query}`);
    expect(status, text).toBe(200);
    return body as { operations: { id: string; request_id: string }[]; next: string | null };
  };
  const found = async (who: Who, query: string): Promise<string[]> =>
    (await list(who, query)).operations.map(({ request_id }) => request_id);
  const volume = randomUUID();
  const backup = randomUUID();
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES ($1, $2, 'u', 'db-7', 'available', 1, 4096, 'files', 'nova')`,
    [volume, a],
  );
  await instance.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, status, size_gib, repository, data_timestamp)
     VALUES ($1, $2, 'u', $3, 'creating', 1, 'main', now())`,
    [backup, a, volume],
  );
  /** Each a minute after the one before; named by its request. */
  const add = async (name: string, of: Record<string, unknown>): Promise<string> => {
    const id = randomUUID();
    const row = { id, request_id: name, user_id: "u", project_id: a, kind: "backup-create", state: "queued", ...of };
    const keys = Object.keys(row);
    const [{ count }] = await instance.sql("SELECT count(*)::int AS count FROM operations");
    await instance.sql(
      `INSERT INTO operations (created_at, ${keys.join(", ")})
       VALUES ('2026-11-20T00:00:00Z'::timestamptz + ${count} * interval '1 minute', ${keys.map((_, at) => `$${at + 1}`).join(", ")})`,
      Object.values(row),
    );
    return id;
  };
  const addTask = (operation: string, of: Record<string, unknown>): Promise<unknown> => {
    const row = { id: randomUUID(), operation_id: operation, kind: "copy", ordinal: 0, state: "ready", rank: 3, ...of };
    const keys = Object.keys(row);
    return instance.sql(
      `INSERT INTO tasks (project_id, queued_at, needs, ${keys.join(", ")})
       VALUES ('${a}', now(), '{repository:main}', ${keys.map((_, at) => `$${at + 1}`).join(", ")})`,
      Object.values(row),
    );
  };
  const times = { started_at: "2026-11-20T00:01:00Z", finished_at: "2026-11-20T00:01:02Z" };
  const moved = await add("moves", {
    state: "running",
    volume_id: volume,
    backup_id: backup,
    started_at: "2026-11-20T00:01:00Z",
  });
  await addTask(moved, { kind: "plan-backup", rank: 4, state: "succeeded", claim: 1, worker_id: "w-1", ...times });
  await addTask(moved, {
    state: "running",
    claim: 2,
    worker_id: "w-2",
    range_length: 1_000,
    progressed_at: new Date(),
    started_at: times.started_at,
  });
  await addTask(moved, { ordinal: 1, range_offset: 1_000, range_length: 500 });
  await addTask(moved, { kind: "tidy", rank: 0, state: "blocked" });
  const unplaced = await add("unplaced", { kind: "backup-restore" });
  await addTask(unplaced, { kind: "plan-restore", unplaced_at: new Date() });
  const quiet = await add("quiet", { state: "running" });
  await addTask(quiet, { state: "running", claim: 1, worker_id: "w-1", progressed_at: "2026-11-20T00:00:00Z" });
  await add("reap", {
    kind: "repository-reap",
    state: "failed",
    input: JSON.stringify({ repository: "main" }),
    fail_reason: "no",
  });
  await add("part", { parent_id: moved, state: "succeeded" });
  await add("foreign", { project_id: b, state: "succeeded" });

  expect(await found("observer", "")).toEqual(["foreign", "part", "reap", "quiet", "unplaced", "moves"]);
  expect(await found("reader", "")).toEqual(["part", "reap", "quiet", "unplaced", "moves"]);
  expect(await found("stranger", "")).toEqual(["foreign"]);
  expect(await found("reader", "kind=backup-restore,repository-reap")).toEqual(["reap", "unplaced"]);
  expect(await found("reader", "state=running,failed")).toEqual(["reap", "quiet", "moves"]);
  expect(await found("observer", `project_id=${b}`)).toEqual(["foreign"]);
  expect(await found("reader", `project_id=${b}`)).toEqual([]);
  expect(await found("reader", "repository=main")).toEqual(["reap", "moves"]);
  expect(await found("reader", "repository=other")).toEqual([]);
  expect(await found("reader", `parent_id=${moved}`)).toEqual(["part"]);
  expect(await found("reader", "request_id=quiet")).toEqual(["quiet"]);
  expect(await found("reader", "stuck=1")).toEqual(["quiet", "unplaced"]);
  expect(await found("observer", "worker_id=w-2")).toEqual(["moves"]);
  expect(await found("observer", "worker_id=w-1")).toEqual(["quiet"]);
  // Workers are not named to them, so that they cannot be asked for either.
  expect(await found("reader", "worker_id=w-2")).toEqual([]);
  expect(await found("reader", "from=2026-11-20T00:01:00Z&to=2026-11-20T00:03:00Z")).toEqual(["quiet", "unplaced"]);

  const pages: string[] = [];
  for (let marker = ""; ; ) {
    const { operations, next } = await list("reader", `limit=2${marker}`);
    pages.push(operations.map(({ request_id }) => request_id).join(" "));
    if (next === null) break;
    expect(next).toBe(operations.at(-1)?.id);
    marker = `&marker=${next}`;
  }
  expect(pages).toEqual(["part reap", "quiet unplaced", "moves"]);
  for (const marker of [randomUUID(), moved]) {
    const who = marker === moved ? "stranger" : "reader";
    expect((await ask(who, "GET", `/ops/operations?marker=${marker}`)).status).toBe(404);
  }
  for (const bad of ["state=running,bored", "kind=Backup", "stuck=yes", "from=yesterday", "limit=0", "parent_id=x"]) {
    const { status, body } = await ask("reader", "GET", `/ops/operations?${bad}`);
    expect([bad, status]).toEqual([bad, 400]);
    expect(body.badRequest.message).toContain(bad.split("=")[0]);
  }

  const show = async (who: Who, query = "") => {
    const { status, body, text } = await ask(who, "GET", `/ops/operations/${moved}${query}`);
    expect(status, text).toBe(200);
    return body.operation;
  };
  const plain = await show("observer");
  expect(plain).toMatchObject({
    volume_name: "db-7",
    user_id: "u",
    phase: "copy",
    workers: ["w-2"],
    finished_at: null,
  });
  expect(plain.tasks).toBeUndefined();
  expect(plain.phases).toEqual([
    { name: "plan", started_at: "2026-11-20T00:01:00.000Z", finished_at: "2026-11-20T00:01:02.000Z" },
    { name: "copy", started_at: "2026-11-20T00:01:00.000Z", finished_at: null },
    { name: "tidy", started_at: null, finished_at: null },
  ]);
  expect(plain.tries).toMatchObject([{ kind: "copy", ordinal: 0, state: "running", try: 2, worker_id: "w-2" }]);
  const { tasks } = await show("observer", "?tasks=1");
  expect(
    tasks.map(({ kind, ordinal, state }: { kind: string; ordinal: number; state: string }) => [kind, ordinal, state]),
  ).toEqual([
    ["plan-backup", 0, "succeeded"],
    ["copy", 0, "running"],
    ["copy", 1, "ready"],
    ["tidy", 0, "blocked"],
  ]);
  expect(tasks[2]).toMatchObject({ range_offset: 1_000, range_length: 500, worker_id: null, try: 0 });
  const own = await show("reader", "?tasks=1");
  expect([own.workers, own.tries[0].worker_id, own.tasks[0].worker_id]).toEqual([[], null, null]);
  expect((await ask("reader", "GET", `/ops/operations/${moved}?tasks=all`)).status).toBe(400);

  const run = (...args: string[]) =>
    startTephra(["operation", ...args, "--url", instance.url, "--token", "observer"]).finished;
  const listed = await run("list", "--kind", "backup-restore", "backup-create", "--stuck", "--json");
  expect(listed.status, listed.stderr).toBe(0);
  expect(listed.json.operations.map(({ request_id }: { request_id: string }) => request_id)).toEqual([
    "quiet",
    "unplaced",
  ]);
  const shown = await run("show", moved, "--tasks");
  expect(shown.status, shown.stderr).toBe(0);
  for (const words of [/^plan +2026/m, /^copy +0 +running +0 B \+ 1000 B +w-2 +2 /m])
    expect(shown.stdout).toMatch(words);
  // What no route is answers in the form of the others.
  const nowhere = await ask("reader", "GET", "/ops/nowhere");
  expect([nowhere.status, nowhere.body]).toEqual([
    404,
    { itemNotFound: { code: 404, message: "The resource could not be found." } },
  ]);
  expect((await ask("reader", "POST", "/ops/operations", {})).body.itemNotFound.code).toBe(404);
});
