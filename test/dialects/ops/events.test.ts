import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { type Principal, parseCursor, readChanges } from "@tephra/control";
import { openLog } from "@tephra/control/process";
import type pg from "pg";
import { expect, it } from "vitest";
import { UnauthenticatedError } from "../../../apps/api/src/http/refusals.ts";
import { type EventSources, type EventTimes, openEvents } from "../../../apps/api/src/ops/events.ts";
import { openOverviews } from "../../../apps/api/src/ops/overviews.ts";
import { root } from "../../../scripts/bootstrap.mjs";
import { withClient } from "../../../scripts/postgres.ts";
import { openControl } from "../../kit/control-database.ts";
import { openEventReader, type ServerEvent } from "../../kit/events.ts";
import type { Instance } from "../../kit/instance.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { startApiOnly } from "../api-only.ts";

const [a, b] = ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"];

const isReady = ({ event }: ServerEvent): boolean => event === "ready";
/** What tells one transition from another. */
const keyOf = ({ id, from, to, at }: { id: string; from: string | null; to: string; at: string }): string =>
  [id, from, to, at].join(" ");

async function auditKeys(instance: Instance): Promise<string[]> {
  const rows = await instance.sql("SELECT resource_id AS id, from_status AS from, to_status AS to, at FROM audit");
  return rows.map((row) => keyOf({ ...row, at: row.at.toISOString() })).sort();
}

/** Two transactions that commit in the order opposite to the one in which they began. */
async function crossed(first: pg.Client, second: pg.Client, ids: readonly [string, string], to: string): Promise<void> {
  const move = (client: pg.Client, id: string) =>
    client.query("UPDATE volumes SET status = $1 WHERE id = $2", [to, id]);
  await first.query("BEGIN");
  await move(first, ids[0]);
  await second.query("BEGIN");
  await move(second, ids[1]);
  await second.query("COMMIT");
  await first.query("COMMIT");
}

it("a reader misses none of 200 transitions while its API is restarted, and goes on at another one", async () => {
  await using instance = await startApiOnly();
  const beside = await instance.startBeside(root);
  const ids: string[] = [];
  for (let n = 0; n < 2; n += 1) {
    const made = await instance.request("POST", "/v3/00000000000000000000000000000001/volumes", {
      volume: { size: 1 },
    });
    ids.push(made.body.volume.id);
  }
  const pair = [String(ids[0]), String(ids[1])] as const;
  // What was asked for is not to be given up meanwhile.
  await instance.sql("UPDATE operations SET state = 'succeeded', finished_at = now()");
  await instance.sql("DELETE FROM tasks");
  await instance.sql("DELETE FROM audit");

  const told: ServerEvent[] = [];
  let reader = await openEventReader(`${instance.url}/ops/events?topics=changes`);
  await reader.wait(isReady, "the reader is told of what comes");
  /** Goes on where the reader was, at the same process or at another one. */
  const resume = async (url: string): Promise<void> => {
    const lastId = String(reader.lastId());
    await reader[Symbol.asyncDispose]();
    told.push(...reader.seen);
    reader = await openEventReader(`${url}/ops/events?topics=changes`, { headers: { "last-event-id": lastId } });
  };
  await withClient(instance.databaseUrl, (first) =>
    withClient(instance.databaseUrl, async (second) => {
      const rounds = async (from: number, to: number): Promise<void> => {
        for (let n = from; n < to; n += 1) await crossed(first, second, pair, n % 2 === 0 ? "in-use" : "available");
      };
      await rounds(0, 30);
      await reader.wait(({ event, id }) => event === "change" && id !== null, "it is told of changes");
      const stopping = instance.killApi("SIGTERM");
      await rounds(30, 60);
      expect(await reader.ended).toBe("ended");
      expect(reader.seen.at(-1)).toEqual({ id: null, event: "bye", data: { retry_ms: 1000 } });
      await stopping;
      await instance.startApi();
      await resume(instance.url);
      await rounds(60, 80);
      await reader.wait(isReady, "it has come back");
      await resume(beside.url);
      await rounds(80, 100);
    }),
  );
  const expected = await auditKeys(instance);
  expect(expected).toHaveLength(200);
  const changes = (): string[] =>
    [...told, ...reader.seen].flatMap(({ event, data }) => (event === "change" ? keyOf(data) : []));
  await waitFor(() => new Set(changes()).size >= 200, {
    what: "all are told",
    context: () => String(changes().length),
  });
  expect([...new Set(changes())].sort()).toEqual(expected);
  await reader[Symbol.asyncDispose]();
  expect([...told, ...reader.seen].filter(({ event }) => event === "resync")).toEqual([]);
});

const tokens = [
  { name: "of-a", project_id: a, roles: ["member"] },
  { name: "of-b", project_id: b, roles: ["member"] },
  { name: "of-all", project_id: b, roles: ["observer"] },
];
const auth = {
  mode: "static",
  tokens: tokens.map(({ name, ...token }) => ({
    ...token,
    user_id: name,
    sha256: createHash("sha256").update(name).digest("hex"),
  })),
};

it("tells changes, progress and a pulse to those who may see them, by stream and by question; the ninth stream waits", async () => {
  await using instance = await startApiOnly({ config: { auth } });
  const as = (name: string) => ({ headers: { "x-auth-token": name } });
  const [own, other, all] = await Promise.all(
    ["of-a", "of-b", "of-all"].map((name) => openEventReader(`${instance.url}/ops/events`, as(name))),
  );
  if (!own || !other || !all) throw new Error("three readers were opened");
  await using stack = new AsyncDisposableStack();
  for (const reader of [own, other, all]) stack.use(reader);
  for (const reader of [own, other, all]) await reader.wait(isReady, "the reader is told");
  expect(own.headers.get("cache-control")).toBe("no-store, no-transform");
  const begin = (await instance.request("GET", "/ops/changes", undefined, as("of-a").headers)).body.next as string;

  const make = async (name: string, project: string): Promise<string> =>
    (await instance.request("POST", `/v3/${project}/volumes`, { volume: { size: 1 } }, as(name).headers)).body.volume
      .id;
  const volume = await make("of-a", a);
  await instance.sql("UPDATE operations SET state = 'running', started_at = now() WHERE volume_id = $1", [volume]);
  const mark = await make("of-b", b);
  const isOf =
    (id: string) =>
    ({ event, data }: ServerEvent): boolean =>
      event === "change" && data.resource === "volume" && data.id === id;
  const change = await own.wait(isOf(volume), "the owner is told");
  expect(change.data).toMatchObject({ project_id: a, from: null, to: "creating" });
  for (const reader of [other, all]) await reader.wait(isOf(mark), "both are told of the other volume");
  await all.wait(isOf(volume), "an observer is told of all");
  const runs = await own.wait(({ event }) => event === "progress", "the owner is told how far it is");
  expect(runs.data.operations).toMatchObject([{ volume_id: volume, state: "running", bytes_done: 0 }]);
  await all.wait(({ event }) => event === "progress", "an observer is, too");
  for (const reader of [own, other, all]) {
    const { data } = await reader.wait(({ event }) => event === "pulse", "a pulse");
    expect(data).toMatchObject({ queue: { running: 0 }, workers: { live: 1 } });
  }

  const since = async (name: string) => {
    const { body } = await instance.request("GET", `/ops/changes?after=${begin}`, undefined, as(name).headers);
    expect(body.resync).toBe(false);
    return body.changes.map(({ id }: { id: string }) => id);
  };
  await waitFor(async () => (await since("of-all")).includes(mark), { what: "all is told by question" });
  expect(await since("of-a")).toContain(volume);
  expect(await since("of-a")).not.toContain(mark);
  const ofB = JSON.stringify([other.seen, await since("of-b")]);
  expect(ofB).toContain(mark);
  expect([ofB.includes(a), ofB.includes(volume)]).toEqual([false, false]);

  for (let n = 1; n < 8; n += 1) {
    stack.use(await openEventReader(`${instance.url}/ops/events?topics=pulse`, as("of-a")));
  }
  await using ninth = await openEventReader(`${instance.url}/ops/events`, as("of-a"));
  expect([ninth.status, ninth.headers.get("retry-after")]).toEqual([503, "30"]);
  expect(ninth.text).toContain("end one of them");
  await own[Symbol.asyncDispose]();
  await waitFor(
    async () => {
      await using again = await openEventReader(`${instance.url}/ops/events`, as("of-a"));
      return again.status === 200;
    },
    { what: "a place is free again" },
  );
});

const quick: EventTimes = {
  ...{ changes: 20, progress: 60_000, pulse: 60_000, ping: 60_000, token: 60_000, stalled: 60_000, idle: 60_000 },
  resync: 20,
};

const principalOf = (userId: string, projectId = a): Principal => ({
  ...{ userId, projectId, roles: ["member"], isAdmin: false, requestId: "req" },
});

/** The events of a database of their own, and an HTTP server that admits whoever asks, by the path as user. */
async function openServed(
  stack: AsyncDisposableStack,
  { times = {}, sources = {} }: { times?: Partial<EventTimes>; sources?: Partial<EventSources> } = {},
) {
  const { database, databaseUrl, config } = await openControl(stack);
  const log = openLog({ ...config, log_level: "silent" }, "api");
  const overviews = openOverviews(database, config);
  const authenticate = async () => principalOf("anybody");
  const events = openEvents({ database, log, overviews, authenticate, ...sources }, { ...quick, ...times });
  const unread: (() => number)[] = [];
  const server = createServer((req, res) => {
    const after = req.headers["last-event-id"];
    const asked = { token: "token", topics: ["changes"] as const, after: typeof after === "string" ? after : null };
    unread.push(() => res.writableLength);
    events.admit({ ...asked, principal: principalOf(String(req.url)) })(res);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  stack.defer(() => {
    events.end();
    server.closeAllConnections();
    return new Promise<void>((resolve) => server.close(() => resolve()));
  });
  const { port } = server.address() as AddressInfo;
  return { database, databaseUrl, events, port, url: `http://127.0.0.1:${port}/`, unread };
}

const enter = `INSERT INTO audit (resource, resource_id, project_id, to_status, actor)
  SELECT 'volume', gen_random_uuid(), '${a}', $1, 'database' FROM generate_series(1, $2::int)`;

it("what commits late is told before anything passes it, and what waits for it is told at once", async () => {
  await using stack = new AsyncDisposableStack();
  const { database, databaseUrl, url } = await openServed(stack);
  await using reader = await openEventReader(url);
  await reader.wait(isReady, "the reader is told");
  const to = (status: string) => (event: ServerEvent) => event.data?.to === status;
  const settled = (status: string) => (event: ServerEvent) => event.data?.to === status && event.id !== null;
  await withClient(databaseUrl, (first) =>
    withClient(databaseUrl, async (second) => {
      await first.query("BEGIN");
      await first.query(enter, ["late", 1]);
      await second.query(enter, ["early", 1]);
      expect((await reader.wait(to("early"), "it is told at once")).id).toBe(null);
      const resumed = await openEventReader(url, { headers: { "last-event-id": String(reader.lastId()) } });
      stack.use(resumed);
      expect((await resumed.wait(to("early"), "so is who comes back")).id).toBe(null);
      await first.query("COMMIT");
      for (const each of [reader, resumed]) {
        for (const status of ["late", "early"]) await each.wait(settled(status), `${status} is told for good`);
        const last = each.seen.filter(({ id, event }) => event === "change" && id !== null);
        expect(last.map(({ data }) => data.to)).toEqual(["late", "early"]);
      }
    }),
  );
  const cursor = parseCursor(String(reader.lastId()));
  expect((await readChanges(database, cursor)).changes).toEqual([]);
});

it("a reader that was away for too long, or comes from another database, is told to ask for everything again", async () => {
  await using stack = new AsyncDisposableStack();
  const { database, databaseUrl, url } = await openServed(stack);
  const isResync = ({ event }: ServerEvent): boolean => event === "resync";
  const comeBack = async (lastId: string): Promise<void> => {
    await using reader = await openEventReader(url, { headers: { "last-event-id": lastId } });
    await reader.wait(isReady, "it is there again");
    // Those who read already may be told of the same burst a moment later, and so is this one then.
    expect(reader.seen.slice(0, 2).map(({ event }) => event)).toEqual(["resync", "ready"]);
    expect(reader.seen.every(({ id }) => parseCursor(String(id)) !== null)).toBe(true);
  };
  const { horizon } = await readChanges(database, null);
  const begin = `${horizon.xid}-0`;
  await comeBack("nonsense");
  await comeBack("8999999999999999999-1");
  await withClient(databaseUrl, async (client) => {
    await client.query(enter, ["many", 1001]);
    await comeBack(begin);
    await client.query("DELETE FROM audit WHERE id > (SELECT min(id) FROM audit)");
    await client.query("UPDATE audit SET at = now() - interval '11 minutes'");
  });
  const isSettled = async () => (await readChanges(database, horizon)).changes.every(({ settled }) => settled);
  await waitFor(isSettled, { what: "no transaction of the server is older" });
  await comeBack(begin);
  await using reader = await openEventReader(url);
  await reader.wait(isReady, "the reader is told");
  await withClient(databaseUrl, (client) => client.query(enter, ["burst", 1500]));
  await reader.wait(isResync, "more at once than is told one by one");
});

/** Enters changes until it is so; each batch is told to a reader that reads before the next. */
async function flood(
  databaseUrl: string,
  reader: { seen: readonly ServerEvent[] },
  until: () => boolean,
): Promise<void> {
  await withClient(databaseUrl, async (client) => {
    for (let batch = 0; !until(); batch += 1) {
      const resyncs = reader.seen.filter(({ event }) => event === "resync").length;
      await client.query(enter, [`${batch} ${"x".repeat(4_000)}`, 30]);
      const isTold = (): boolean =>
        reader.seen.filter(({ event }) => event === "resync").length > resyncs ||
        reader.seen.some(({ data, id }) => id !== null && data?.to?.startsWith(`${batch} `));
      await waitFor(isTold, { what: "the batch is told", everyMs: 5 });
    }
  });
}

/** One that sends a request and reads nothing. */
function openDeafReader(port: number, path: string) {
  const socket = connect(port, "127.0.0.1", () => socket.write(`GET ${path} HTTP/1.1\r\nHost: here\r\n\r\n`));
  socket.pause();
  socket.on("error", () => {});
  return socket;
}

const unreadMax = 262_144 + 1_001 * 4_300;

it("a reader that does not read costs a bounded amount of memory, and is ended", async () => {
  await using stack = new AsyncDisposableStack();
  const { databaseUrl, url, port, unread } = await openServed(stack, { times: { stalled: 500 } });
  await using reader = await openEventReader(url);
  await reader.wait(isReady, "the reader is told");
  const deaf = openDeafReader(port, "/deaf");
  stack.defer(() => void deaf.destroy());
  await waitFor(() => unread.length === 2, { what: "it is admitted" });
  let most = 0;
  let isFull = false;
  await flood(databaseUrl, reader, () => {
    most = Math.max(most, unread[1]?.() ?? 0);
    // Nothing waits any more once it was ended.
    isFull ||= most > 262_144;
    return isFull && unread[1]?.() === 0;
  });
  expect(most).toBeLessThan(unreadMax);
});

it("a reader that has fallen behind is told to ask for everything again once it reads", async () => {
  await using stack = new AsyncDisposableStack();
  const { databaseUrl, url, port, unread } = await openServed(stack);
  await using reader = await openEventReader(url);
  await reader.wait(isReady, "the reader is told");
  const deaf = openDeafReader(port, "/deaf");
  stack.defer(() => void deaf.destroy());
  await waitFor(() => unread.length === 2, { what: "it is admitted" });
  let dropped = 0;
  await flood(databaseUrl, reader, () => {
    if ((unread[1]?.() ?? 0) > 262_144) dropped += 1;
    return dropped > 3;
  });
  let text = "";
  deaf.setEncoding("latin1").on("data", (part: string) => {
    text = (text + part).slice(-10_000);
  });
  deaf.resume();
  await waitFor(() => text.includes("event: resync"), { what: "it is told to ask again" });
});

it("admits 512 readers, 8 of one principal", async () => {
  await using stack = new AsyncDisposableStack();
  const { events } = await openServed(stack);
  const admit = (user: string) =>
    events.admit({ principal: principalOf(user), token: undefined, topics: ["changes"], after: null });
  for (let n = 0; n < 512; n += 1) admit(`user ${n % 64}`);
  expect(() => admit("one more")).toThrow(expect.objectContaining({ status: 503, retryAfter: 30 }));
});

it("asks the database only while somebody reads, and ends those whose token is not good any more", async () => {
  await using stack = new AsyncDisposableStack();
  let isGood = true;
  const authenticate = async (): Promise<Principal> => {
    if (!isGood) throw new UnauthenticatedError();
    return principalOf("anybody");
  };
  const { events, url } = await openServed(stack, { times: { token: 20, idle: 20 }, sources: { authenticate } });
  expect(events.isReading).toBe(false);
  const reader = await openEventReader(url);
  await reader.wait(isReady, "the reader is told");
  expect(events.isReading).toBe(true);
  isGood = false;
  expect(await reader.ended).toBe("ended");
  expect(reader.seen.at(-1)?.event).toBe("signed_out");
  await waitFor(() => !events.isReading, { what: "nothing is read any more" });
  events.end();
  expect(() =>
    events.admit({ principal: principalOf("late"), token: undefined, topics: ["changes"], after: null }),
  ).toThrow(expect.objectContaining({ status: 503 }));
});
