import { setTimeout as sleep } from "node:timers/promises";
import type { Database, Logger } from "@tephra/control";
import { type ClaimedTask, type Lane, quietMsOf, renewLeases } from "@tephra/control/work";
import type { RunContext } from "@tephra/engine";
import type { CallWatch } from "./watched-sites.ts";

/** Somebody else may hold the lease by now, or will before this worker could renew it: not one more byte is written. */
export class LeaseLostError extends Error {
  readonly code = "lease-lost";
  constructor(taskId: string, why: string) {
    super(`Task ${taskId} is no longer safe to work on: ${why}`);
    this.name = "LeaseLostError";
  }
}

/** The operation has ended or is to be cancelled. */
export class CancelledError extends Error {
  readonly code = "cancelled";
  constructor(taskId: string) {
    super(`Task ${taskId} was cancelled`);
    this.name = "CancelledError";
  }
}

/** The worker is stopping: the task is handed back as it is. */
export class DrainedError extends Error {
  readonly code = "drained";
  constructor() {
    super("The worker is stopping");
    this.name = "DrainedError";
  }
}

/** The task has shown no progress for longer than its kind may: it is abandoned here, whatever becomes of its call. */
export class HungError extends Error {
  readonly code = "hung";
  readonly retryable = true;
  /** The places that it waits for: `repository:NAME`, `backend:NAME`. Empty when it waits for nothing but this process itself. */
  readonly places: readonly string[];
  constructor(places: readonly string[], what: string) {
    super(what);
    this.name = "HungError";
    this.places = places;
  }
}

/**
 * A task without a call at any place may be computing, or waiting for its share of threads and memory: it gets this many times as long as a
 * call.
 */
const computingFactor = 3;

/** After this fraction of a lease without a renewal a worker stops by itself, by its own monotonic clock. */
const selfStopFraction = 0.6;

interface Held {
  task: ClaimedTask;
  controller: AbortController;
  /** When to stop, also readable by threads: see RunContext. */
  writableUntil: BigInt64Array<SharedArrayBuffer>;
  bytesDone: number;
  bytesStored: number;
  /** Time without progress, in ms of this process's running time: time during which the process is stopped does not count. */
  quietMs: number;
  /** Whether there was progress since that was last counted. */
  moved: boolean;
  /** Calls that have not returned, with how long each has taken so far. */
  calls: Set<{ place: string; call: string; needsMs: number; lastsMs: number }>;
  /** Number of things it holds open, by place. */
  open: Map<string, number>;
  hung: PromiseWithResolvers<never>;
  /** Whether it was abandoned. */
  given: boolean;
}

export interface HeldLease extends AsyncDisposable {
  run: RunContext;
  /** To be notified of every call that the task makes at a place. */
  watch: CallWatch;
  /** Rejects with HungError when there was no progress for too long. The handler may still be stuck, but can write nothing any more. */
  hung: Promise<never>;
  /** The engine's latest report. */
  progress(): { bytesDone: number; bytesStored: number };
}

export interface Leases {
  /** Starts renewing a claim. `claimedAt` is `process.hrtime` in ns just before the claim was requested. Dispose to stop. */
  hold(task: ClaimedTask, claimedAt: bigint): HeldLease;
  /** Aborts every task that is held. */
  abortAll(reason: Error): void;
  /** How many are held: of a lane, or of both. */
  count(lane?: Lane): number;
  stop(): Promise<void>;
}

/**
 * Renews all leases of this worker in one statement per heartbeat. A task whose lease was lost or whose operation ended is aborted; when no
 * renewal succeeds for 60 % of a lease, all are, before anybody else can claim them. A task without progress for longer than its kind may
 * be is abandoned.
 */
export function openLeases(options: {
  database: Database;
  log: Logger;
  workerId: string;
  leaseMs: number;
  heartbeatMs: number;
  /** How long a task may go without progress, see quietMsOf(). */
  quietMs: number;
  /** As reported by the engine. */
  fileCallMs?: () => number;
  /** Whether this worker's registration was renewed lately: leases renew it, too, but need not where there are none. */
  isRegistered?: () => boolean;
  /** Whether a place responds to other calls. */
  answers?: (place: string) => boolean;
}): Leases {
  const { database, log, workerId, leaseMs } = options;
  const fileCallMs = options.fileCallMs ?? (() => 0);
  const answers = options.answers ?? (() => true);
  const held = new Map<string, Held>();
  const limitMs = leaseMs * selfStopFraction;
  const stopsAt = (renewedAt: bigint): bigint => renewedAt + BigInt(Math.floor(limitMs * 1e6));
  const stale = (h: Held): boolean => process.hrtime.bigint() > Atomics.load(h.writableUntil, 0);
  const lose = (h: Held, why: string): void => {
    Atomics.store(h.writableUntil, 0, 0n);
    if (!h.controller.signal.aborted) h.controller.abort(new LeaseLostError(h.task.id, why));
  };

  const giveUp = (h: Held, error: HungError): void => {
    h.given = true;
    Atomics.store(h.writableUntil, 0, 0n);
    h.controller.abort(error);
    h.hung.reject(error);
  };
  /** The reason to abandon a task for lack of progress; null while it has time left. */
  const stillnessOf = (h: Held): HungError | null => {
    const limit = quietMsOf(h.task.kind, options.quietMs);
    const seconds = Math.round(h.quietMs / 1000);
    if (h.quietMs <= limit) return null;
    const needed = ({ place, needsMs }: { place: string; needsMs: number }): number => (answers(place) ? needsMs : 0);
    const waiting = [...h.calls].filter((call) => call.lastsMs > limit + needed(call));
    if (waiting.length > 0) {
      const places = [...new Set(waiting.map(({ place }) => place))];
      const calls = [...new Set(waiting.map(({ place, call }) => `${place} (${call})`))].join(", ");
      return new HungError(places, `${calls} did not answer for ${seconds} s`);
    }
    const atFile = fileCallMs() > limit;
    if (!atFile && (h.calls.size > 0 || h.quietMs <= limit * computingFactor)) return null;
    const places = [...h.open.keys()];
    return atFile && places.length > 0
      ? new HungError(places, `${places.join(", ")} did not answer for ${seconds} s`)
      : new HungError([], `Task ${h.task.id} did not move for ${seconds} s, and called nothing`);
  };

  // Responses may overtake each other.
  const extend = (h: Held, until: bigint): void => {
    if (until > Atomics.load(h.writableUntil, 0)) Atomics.store(h.writableUntil, 0, until);
  };

  const renew = async (): Promise<void> => {
    const askedAt = process.hrtime.bigint();
    const asked = [...held.values()];
    if (asked.length === 0 && options.isRegistered?.() === true) return;
    const rows = asked.map((h) => ({
      taskId: h.task.id,
      claim: h.task.claim,
      bytesDone: h.bytesDone,
      bytesStored: h.bytesStored,
    }));
    const kept = new Map((await renewLeases(database, { workerId, leaseMs, held: rows })).map((k) => [k.taskId, k]));
    for (const h of asked) {
      const answer = kept.get(h.task.id);
      if (answer) h.task.operation.priority = answer.priority;
      if (!answer) lose(h, "another worker has claimed it");
      else if (answer.cancelled) h.controller.abort(new CancelledError(h.task.id));
      else if (!h.controller.signal.aborted) extend(h, stopsAt(askedAt));
    }
  };

  // A connection may be silent: the next renewal does not wait for it, and uses another one while there is still time.
  const silence = async (): Promise<never> => {
    await sleep(limitMs / 4, undefined, { ref: false });
    throw new Error("PostgreSQL does not answer");
  };

  let beating = false;
  const beat = async (): Promise<void> => {
    if (beating) return;
    beating = true;
    try {
      await Promise.race([renew(), silence()]);
    } catch (error) {
      log.warn({ err: error }, "leases could not be renewed");
    } finally {
      beating = false;
    }
  };
  const heartbeat = setInterval(() => void beat(), options.heartbeatMs);
  const watchMs = Math.max(50, Math.min(limitMs, options.quietMs) / 10);
  let watchedAt = performance.now();
  const watch = setInterval(() => {
    // A process that was stopped, or so busy that its timers were late, has not seen the responses that arrived meanwhile.
    const now = performance.now();
    const passedMs = Math.min(now - watchedAt, 2 * watchMs);
    watchedAt = now;
    for (const h of held.values()) {
      if (stale(h)) lose(h, "the lease could not be renewed in time");
      h.quietMs = h.moved ? 0 : h.quietMs + passedMs;
      h.moved = false;
      for (const call of h.calls) call.lastsMs += passedMs;
      // Also when it is to end for another reason: its caller is waiting.
      const stillness = h.given ? null : stillnessOf(h);
      if (stillness) giveUp(h, stillness);
    }
  }, watchMs);

  return {
    hold(task, claimedAt) {
      const mine: Held = {
        task,
        controller: new AbortController(),
        writableUntil: new BigInt64Array(new SharedArrayBuffer(8)),
        bytesDone: 0,
        bytesStored: 0,
        quietMs: 0,
        moved: false,
        calls: new Set(),
        open: new Map(),
        hung: Promise.withResolvers<never>(),
        given: false,
      };
      mine.hung.promise.catch(() => {});
      const moved = (): void => {
        mine.moved = true;
      };
      Atomics.store(mine.writableUntil, 0, stopsAt(claimedAt));
      held.set(`${task.id}-${task.claim}`, mine);
      return {
        run: {
          signal: mine.controller.signal,
          fence() {
            mine.controller.signal.throwIfAborted();
            if (stale(mine)) lose(mine, "the lease could not be renewed in time");
            mine.controller.signal.throwIfAborted();
          },
          writableUntil: mine.writableUntil,
          onProgress(progress) {
            if (progress.bytesDone !== mine.bytesDone || progress.bytesStored !== mine.bytesStored) moved();
            mine.bytesDone = progress.bytesDone;
            mine.bytesStored = progress.bytesStored;
          },
        },
        watch: {
          moved,
          begin(place, call, needsMs = 0) {
            const begun = { place, call, needsMs, lastsMs: 0 };
            mine.calls.add(begun);
            return () => {
              if (mine.calls.delete(begun)) moved();
            };
          },
          opened(place) {
            mine.open.set(place, (mine.open.get(place) ?? 0) + 1);
            return () => {
              const left = (mine.open.get(place) ?? 1) - 1;
              if (left > 0) mine.open.set(place, left);
              else mine.open.delete(place);
            };
          },
        },
        hung: mine.hung.promise,
        progress: () => ({ bytesDone: mine.bytesDone, bytesStored: mine.bytesStored }),
        async [Symbol.asyncDispose]() {
          held.delete(`${task.id}-${task.claim}`);
        },
      };
    },
    abortAll(reason) {
      for (const h of held.values()) h.controller.abort(reason);
    },
    count: (lane) =>
      lane === undefined ? held.size : [...held.values()].filter(({ task }) => task.lane === lane).length,
    async stop() {
      clearInterval(heartbeat);
      clearInterval(watch);
    },
  };
}
