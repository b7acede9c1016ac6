import type { Query } from "@tanstack/react-query";
import type { Change, Operation } from "@tephra/wire";
import { EventSourceParserStream } from "eventsource-parser/stream";
import { call, Fault, request, signedOut } from "./api.ts";
import { getLiveness, setLiveness } from "./liveness.ts";
import { client, type Told } from "./queries.ts";

/** Milliseconds. */
const times = {
  /** Without a first event for so long, something on the way holds the stream up. */
  ready: 5_000,
  /** A pulse comes every 5 s: without any event for so long, the service does not know either what happens. */
  silent: 20_000,
  /** Browsers allow six connections to a service over HTTP/1.1: a page that nobody sees gives up its own. */
  hidden: 30_000,
  poll: 5_000,
  /** The stream is tried again after so long of polling. */
  again: 60_000,
  collect: 250,
  /** A list is asked for again at most once in this. */
  list: 2_000,
  retryMin: 1_000,
  retryMax: 30_000,
};
const failuresMax = 3;

/** The place in the log of changes up to which everything is known. */
let cursor: string | null = null;
/** Queries that have to be asked again, by their hashes. */
const due = new Set<string>();
const askedAt = new WeakMap<Query, number>();
let willFlush = false;

function mark(is: (query: Query) => boolean): void {
  for (const query of client.getQueryCache().findAll({ predicate: is })) due.add(query.queryHash);
  flushLater();
}

function flushLater(): void {
  if (due.size === 0 || willFlush) return;
  willFlush = true;
  setTimeout(flush, times.collect);
}

/** Asks again what is shown; what is not is asked when it is shown again. */
function flush(): void {
  willFlush = false;
  if (!running) return;
  for (const hash of due) {
    const query = client.getQueryCache().get(hash);
    const asked = (query && askedAt.get(query)) ?? Number.NEGATIVE_INFINITY;
    const isEarly = query?.isActive() && performance.now() - asked < times.list;
    // One that is under way may have been answered before the change.
    if (query?.state.fetchStatus === "fetching" || isEarly) continue;
    due.delete(hash);
    if (!query) continue;
    askedAt.set(query, performance.now());
    void client.invalidateQueries({ queryKey: query.queryKey, exact: true });
  }
  flushLater();
}

const isData = ({ queryKey }: Query): boolean => queryKey[0] !== "session";
const markAll = (): void => mark(isData);
const markTold = (what: Told): void => mark(({ meta }) => meta?.on?.includes(what) ?? false);

/** What names one of the two ids, and the lists of such things. */
function note({ resource, id, operation_id }: Change): void {
  mark(({ queryHash, meta }) => {
    const isNamed = [id, operation_id].some((one) => one !== null && queryHash.includes(one));
    return isNamed || (meta?.on?.some((what) => what === resource || what === "any change") ?? false);
  });
}

/** Rows of what runs, where they are shown. */
function progress(operations: readonly Operation[]): void {
  const rows = new Map(operations.map((row) => [row.id, row]));
  const renew = (shown: readonly Operation[]): Operation[] => shown.map((row) => rows.get(row.id) ?? row);
  client.setQueriesData<{ operations: Operation[] }>(
    { queryKey: ["GET /ops/operations"] },
    (data) => data && { ...data, operations: renew(data.operations) },
  );
  client.setQueriesData<{ overview: { operations: { running: Operation[] } } }>(
    { queryKey: ["GET /ops/overview"] },
    (data) => {
      if (!data) return data;
      const { overview } = data;
      const running = renew(overview.operations.running);
      return { ...data, overview: { ...overview, operations: { ...overview.operations, running } } };
    },
  );
}

/** Resolves after so long, or when the signal is aborted, and leaves nothing at it: a page is open for days. */
const delay = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, signal.aborted ? 0 : ms);
    signal.addEventListener("abort", end);
  });

/** How a stream has ended. `held`: something on the way holds it up, or too many read. `bye`: the process stops, and told so. */
interface End {
  how: "broken" | "held" | "bye" | "signed out";
  wasLive: boolean;
  retryMs: number;
}

/** Those who are away: nobody answers, or the service without its database. */
const isAway = (error: unknown): error is Fault =>
  error instanceof Fault && (error.status === 0 || error.status >= 500);

function tellAway({ message }: Fault): void {
  if (getLiveness().kind !== "offline") markAll();
  setLiveness("offline", message);
}

/** Reads events until there are no more. */
async function follow(signal: AbortSignal): Promise<End> {
  const giveUp = new AbortController();
  let timer = setTimeout(() => giveUp.abort(), times.ready);
  const end: End = { how: "broken", wasLive: false, retryMs: times.retryMin };
  try {
    const response = await request("GET", "/ops/events?topics=changes,progress,pulse", {
      signal: AbortSignal.any([signal, giveUp.signal]),
      headers: cursor === null ? {} : { "last-event-id": cursor },
    });
    const isResumed = cursor !== null;
    const events = response.body?.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
    const reader = events?.getReader();
    for (;;) {
      const { value } = (await reader?.read()) ?? {};
      if (!value) return end;
      clearTimeout(timer);
      timer = setTimeout(() => giveUp.abort(), times.silent);
      const data = JSON.parse(value.data);
      if (value.event === "ready") {
        end.wasLive = true;
        // What was asked for before, or not answered, may be out of date.
        mark((query) => isData(query) && (!isResumed || query.state.status === "error"));
        setLiveness("live");
        // The process that answers now may be of another release.
        if (isResumed) void client.invalidateQueries({ queryKey: ["session"] });
      } else if (value.event === "change") note(data);
      else if (value.event === "resync") markAll();
      else if (value.event === "progress") progress(data.operations);
      else if (value.event === "pulse") markTold("pulse");
      else if (value.event === "bye") return { ...end, how: "bye", retryMs: data.retry_ms };
      else if (value.event === "signed_out") return { ...end, how: "signed out" };
      if (value.id !== undefined) cursor = value.id;
    }
  } catch (error) {
    if (giveUp.signal.aborted) return { ...end, how: "held" };
    if (!(error instanceof Fault)) return end;
    if (error.status === 401) return { ...end, how: "signed out" };
    if (error.status === 0) tellAway(error);
    return error.status === 0 ? end : { ...end, how: "held", retryMs: (error.retryAfter ?? 0) * 1_000 };
  } finally {
    clearTimeout(timer);
    giveUp.abort();
  }
}

/** Asks for changes, for `ms`, or until the service is back that was away. */
async function poll(ms: number, signal: AbortSignal): Promise<void> {
  const until = performance.now() + ms;
  while (!signal.aborted && performance.now() < until) {
    try {
      const told = await call("GET /ops/changes", { query: { after: cursor, limit: 500 }, signal });
      const { kind } = getLiveness();
      if (kind !== "polling" || cursor === null || told.resync) markAll();
      for (const change of told.changes) note(change);
      cursor = told.next;
      setLiveness("polling");
      if (kind === "offline") return;
    } catch (error) {
      if (isAway(error)) tellAway(error);
      else if (!signal.aborted) setLiveness("polling");
    }
    await delay(times.poll, signal);
  }
}

async function keepLive(signal: AbortSignal): Promise<void> {
  for (let failures = 0; !signal.aborted; ) {
    const { how, wasLive, retryMs } = await follow(signal);
    if (signal.aborted) return;
    if (how === "signed out") return signedOut();
    failures = wasLive ? 1 : failures + 1;
    if (wasLive) setLiveness("connecting");
    if (how === "held" || failures >= failuresMax) {
      await poll(Math.max(times.again, retryMs), signal);
      failures = 0;
    } else {
      const wait = how === "bye" ? retryMs : Math.min(times.retryMax, times.retryMin * 2 ** (failures - 1));
      await delay(wait * (0.5 + Math.random() / 2), signal);
    }
  }
}

let isStarted = false;
let isPaused = false;
let running: AbortController | null = null;

function begin(): void {
  if (!isStarted || isPaused || running) return;
  running = new AbortController();
  setLiveness("connecting");
  flushLater();
  void keepLive(running.signal);
}

function stop(): void {
  running?.abort();
  running = null;
}

/** Nothing moves until it is called again. */
export function togglePause(): void {
  isPaused = !isPaused;
  if (isPaused) {
    stop();
    setLiveness("paused");
    // Each looks its interval up again when its state is set.
    for (const query of client.getQueryCache().getAll()) query.setState({ ...query.state });
  } else {
    // Nothing was asked for in the meantime.
    markAll();
    begin();
  }
}

/** Keeps what is shown true, as long as somebody sees it. Returns what ends it. */
export function startLive(): () => void {
  let hiding: ReturnType<typeof setTimeout> | undefined;
  const onVisibility = () => {
    clearTimeout(hiding);
    if (document.visibilityState === "visible") begin();
    else hiding = setTimeout(stop, times.hidden);
  };
  cursor = null;
  isStarted = true;
  document.addEventListener("visibilitychange", onVisibility);
  onVisibility();
  if (document.visibilityState !== "visible") setLiveness("connecting");
  return () => {
    isStarted = false;
    clearTimeout(hiding);
    document.removeEventListener("visibilitychange", onVisibility);
    stop();
  };
}
