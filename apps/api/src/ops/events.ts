import { createHash } from "node:crypto";
import type { ServerResponse } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import {
  type Cursor,
  type Database,
  isAfter,
  type Logger,
  listOperations,
  mayLook,
  type Principal,
  parseCursor,
  readChanges,
  seesAll,
} from "@tephra/control";
import { mayPass } from "@tephra/control/process";
import type { Pulse } from "@tephra/wire";
import type { Authenticate } from "../http/auth.ts";
import { may } from "../http/policy.ts";
import { Refusal, UnauthenticatedError } from "../http/refusals.ts";
import { type Asked, EventStream, eventText } from "./event-stream.ts";
import type { Overviews } from "./overviews.ts";
import { mayBeTold, viewChange, viewOperation, viewOverview } from "./views.ts";

/** How often, and after how long. Milliseconds. */
export interface EventTimes {
  changes: number;
  progress: number;
  pulse: number;
  ping: number;
  /** Of a token that is asked again whose it is. */
  token: number;
  /** A reader that reads nothing for so long is ended. */
  stalled: number;
  /** The log of changes is read for so long after the last reader has gone. */
  idle: number;
  /** Between two rounds of `resync` to all. */
  resync: number;
}

const usualTimes: EventTimes = {
  changes: 1_000,
  progress: 2_000,
  pulse: 5_000,
  ping: 15_000,
  token: 60_000,
  stalled: 30_000,
  idle: 30_000,
  resync: 5_000,
};

const streamsMax = 512;
const streamsOfOneMax = 8;
/** When a reader comes back whose process stops. */
const byeRetryMs = 1_000;

export interface Events {
  /**
   * Takes a place for one more reader; what it returns answers it, and the place is free again when the connection ends.
   *
   * @throws Refusal 503 when too many read, or the process stops
   */
  admit(asked: Asked): (res: ServerResponse) => void;
  /** Ends all streams with `bye`; there will be no others. */
  end(): void;
  /** Whether the database is being asked for changes. */
  readonly isReading: boolean;
}

export interface EventSources {
  database: Database;
  log: Logger;
  authenticate: Authenticate;
  overviews: Overviews;
}

/** For what runs in any project: readers are told of their own. */
const everybody: Principal = { userId: "", projectId: "", roles: [], isAdmin: true, requestId: "" };

const scopeOf = (principal: Principal): string | null => (seesAll(principal) ? null : principal.projectId);

const digestOf = (value: unknown): string =>
  createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 16);

/**
 * Tells any number of readers of changes by reading the audit log once a second, and only while there are readers: PostgreSQL's NOTIFY would
 * take a lock of the whole server at each commit. Each process reads for itself, so the cursors are good at all of them.
 */
export function openEvents(sources: EventSources, times: EventTimes = usualTimes): Events {
  const { database, log, authenticate, overviews } = sources;
  const streams = new Set<EventStream>();
  /** Readers by principal, those included whose answer has not begun. */
  const places = new Map<string, number>();
  let total = 0;
  let isEnding = false;
  let reading: AbortController | null = null;
  let idle: NodeJS.Timeout | undefined;
  /** Every reader that has joined has been told of what is settled up to here; null: not known yet. */
  let cursor: Cursor | null = null;
  /** Ids of entries that were told of before they were settled. */
  const hinted = new Set<bigint>();
  let owesResync = false;
  let resyncedAt = Number.NEGATIVE_INFINITY;

  /** One at a time: a reader joins between two readings, so it misses nothing and the cursor moves under nobody. */
  let turn: Promise<void> = Promise.resolve();
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    turn = turn.then(work).catch(tell);
    return turn;
  };

  function tell(error: unknown): void {
    // The pool has logged that the database is away; the next round tries again.
    if (!mayPass(error)) log.error({ event: "events.failed", err: error }, "events could not be read");
  }

  async function begin(): Promise<Cursor> {
    cursor ??= (await readChanges(database, null)).horizon;
    return cursor;
  }

  async function follow(): Promise<void> {
    const read = await readChanges(database, await begin());
    if (read.isLost) {
      cursor = read.horizon;
      hinted.clear();
      owesResync = true;
    }
    for (const change of read.isLost ? [] : read.changes) {
      const wasTold = hinted.has(change.cursor.id);
      if (change.settled) {
        cursor = change.cursor;
        hinted.delete(change.cursor.id);
      } else if (wasTold) continue;
      else hinted.add(change.cursor.id);
      const text = eventText("change", viewChange(change), change.settled ? change.cursor : null);
      for (const stream of streams) {
        if (stream.wants("changes") && mayBeTold(stream.principal, change)) stream.change(text);
      }
    }
    if (!owesResync || cursor === null || performance.now() - resyncedAt < times.resync) return;
    owesResync = false;
    resyncedAt = performance.now();
    for (const stream of streams) if (stream.wants("changes")) stream.resync(cursor);
  }

  async function join(stream: EventStream): Promise<void> {
    const at = await begin();
    const { after } = stream.asked;
    const from = after === null ? null : parseCursor(after);
    const read = from && (await readChanges(database, from));
    stream.isJoined = true;
    if ((after !== null && !from) || read?.isLost) stream.resync(at);
    for (const change of read?.isLost ? [] : (read?.changes ?? [])) {
      // The next reading tells of what is settled after it.
      if (change.settled && isAfter(change.cursor, at)) continue;
      if (!stream.wants("changes") || !mayBeTold(stream.principal, change)) continue;
      stream.change(eventText("change", viewChange(change), change.settled ? change.cursor : null));
    }
    stream.change(eventText("ready", {}, at));
  }

  async function tellProgress(): Promise<void> {
    const readers = [...streams].filter((stream) => stream.wants("progress"));
    if (readers.length === 0) return;
    const rows = await listOperations(database, everybody, { states: ["running"], limit: 500 });
    for (const stream of readers) {
      const own = rows.filter((row) => mayLook(stream.principal, row));
      const operations = own.map((row) => viewOperation(row, stream.principal));
      if (own.length > 0) stream.passing(eventText("progress", { operations }));
    }
  }

  async function tellPulse(): Promise<void> {
    const scopes = Map.groupBy(
      [...streams].filter((stream) => stream.wants("pulse")),
      ({ principal }) => scopeOf(principal),
    );
    for (const [, readers] of scopes) {
      const [first] = readers;
      if (!first) continue;
      const { as_of, queue, workers, alerts } = viewOverview(await overviews(first.principal), first.principal);
      const pulse: Pulse = { as_of, queue, workers, alerts_digest: digestOf(alerts) };
      const text = eventText("pulse", pulse);
      for (const stream of readers) stream.passing(text);
    }
  }

  /** Ends those who read nothing, or whose token is not good any more. */
  async function tend(): Promise<void> {
    for (const stream of [...streams]) {
      if (stream.stalledMs > times.stalled) stream.cut();
      else if (!stream.isJoined) await inTurn(() => (stream.isJoined ? Promise.resolve() : join(stream)));
      if (performance.now() - stream.checkedAt < times.token) continue;
      stream.checkedAt = performance.now();
      const { token, principal } = stream.asked;
      try {
        stream.principal = await authenticate(token, principal.requestId);
        if (!may(stream.principal, "ops:changes")) stream.end(eventText("signed_out", {}));
      } catch (error) {
        // Whoever cannot be asked has refused nothing.
        if (error instanceof UnauthenticatedError) stream.end(eventText("signed_out", {}));
      }
    }
  }

  function startReading(): void {
    clearTimeout(idle);
    if (reading) return;
    const ending = new AbortController();
    reading = ending;
    const { signal } = ending;
    const repeat = async (everyMs: number, work: () => Promise<void>): Promise<void> => {
      while (!signal.aborted) {
        await delay(everyMs, undefined, { signal, ref: false }).catch(() => {});
        if (!signal.aborted) await work().catch(tell);
      }
    };
    void repeat(times.changes, () => inTurn(follow));
    void repeat(times.changes, tend);
    void repeat(times.progress, tellProgress);
    void repeat(times.pulse, tellPulse);
    void repeat(times.ping, async () => {
      for (const stream of streams) stream.passing(": ping\n\n");
    });
  }

  function stopReading(): void {
    clearTimeout(idle);
    reading?.abort();
    reading = null;
    void inTurn(async () => {
      if (reading) return;
      cursor = null;
      hinted.clear();
      owesResync = false;
    });
  }

  function take(key: string): () => void {
    const own = places.get(key) ?? 0;
    if (isEnding) throw new Refusal(503, "The process stops. Try again.", { retryAfter: 1 });
    if (total >= streamsMax) throw new Refusal(503, "Too many read events here. Try again later.", { retryAfter: 30 });
    if (own >= streamsOfOneMax)
      throw new Refusal(503, `You read events ${own} times already: end one of them.`, { retryAfter: 30 });
    total += 1;
    places.set(key, own + 1);
    return () => {
      total -= 1;
      const left = (places.get(key) ?? 1) - 1;
      if (left > 0) places.set(key, left);
      else places.delete(key);
    };
  }

  function attach(res: ServerResponse, asked: Asked, release: () => void): void {
    const stream = new EventStream(res, asked, () => cursor);
    streams.add(stream);
    startReading();
    res.once("close", () => {
      release();
      streams.delete(stream);
      if (streams.size > 0 || isEnding) return;
      clearTimeout(idle);
      idle = setTimeout(stopReading, times.idle).unref();
    });
    void inTurn(() => join(stream));
  }

  return {
    admit(asked) {
      const release = take(`${asked.principal.userId}\n${asked.principal.projectId}`);
      return (res) => {
        if (res.req.method !== "HEAD" && !res.destroyed) return attach(res, asked, release);
        release();
        res.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store, no-transform" }).end();
      };
    },
    end() {
      isEnding = true;
      for (const stream of streams) stream.end(eventText("bye", { retry_ms: byeRetryMs }));
      stopReading();
    },
    get isReading() {
      return reading !== null;
    },
  };
}
