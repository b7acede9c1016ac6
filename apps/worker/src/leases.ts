import { setTimeout as sleep } from "node:timers/promises";
import { type ClaimedTask, type Database, type Logger, renewLeases } from "@tephra/control";
import type { RunContext } from "@tephra/engine";

/** The lease can be somebody else's by now, or will be before this worker could renew it: not one more byte is written. */
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

/** The worker stops: the task goes back as it is. */
export class DrainedError extends Error {
  readonly code = "drained";
  constructor() {
    super("The worker is stopping");
    this.name = "DrainedError";
  }
}

/** After this part of a lease without a renewal a worker stops by itself, by its own monotonic clock. */
const selfStopFraction = 0.6;

interface Held {
  task: ClaimedTask;
  controller: AbortController;
  /** When to stop, as threads read it too: see RunContext. */
  writableUntil: BigInt64Array<SharedArrayBuffer>;
  bytesDone: number;
  bytesStored: number;
}

export interface HeldLease extends AsyncDisposable {
  run: RunContext;
  /** What the engine reported last. */
  progress(): { bytesDone: number; bytesStored: number };
}

export interface Leases {
  /** Begins to renew a claim. `claimedAt` is `process.hrtime` in ns just before the claim was asked for. Dispose to let go. */
  hold(task: ClaimedTask, claimedAt: bigint): HeldLease;
  /** Aborts every task that is held. */
  abortAll(reason: Error): void;
  count(): number;
  stop(): Promise<void>;
}

/**
 * Renews all leases of this worker in one statement per heartbeat. A task whose lease was lost or whose operation ended is aborted;
 * when no renewal succeeds for 60 % of a lease, all are, before anybody else can take them.
 */
export function openLeases(options: {
  database: Database;
  log: Logger;
  workerId: string;
  leaseMs: number;
  heartbeatMs: number;
}): Leases {
  const { database, log, workerId, leaseMs } = options;
  const held = new Map<string, Held>();
  const limitMs = leaseMs * selfStopFraction;
  const stopsAt = (renewedAt: bigint): bigint => renewedAt + BigInt(Math.floor(limitMs * 1e6));
  const stale = (h: Held): boolean => process.hrtime.bigint() > Atomics.load(h.writableUntil, 0);
  const lose = (h: Held, why: string): void => {
    Atomics.store(h.writableUntil, 0, 0n);
    if (!h.controller.signal.aborted) h.controller.abort(new LeaseLostError(h.task.id, why));
  };

  // Answers may overtake each other.
  const extend = (h: Held, until: bigint): void => {
    if (until > Atomics.load(h.writableUntil, 0)) Atomics.store(h.writableUntil, 0, until);
  };

  const renew = async (): Promise<void> => {
    const askedAt = process.hrtime.bigint();
    const asked = [...held.values()];
    const rows = asked.map((h) => ({
      taskId: h.task.id,
      claim: h.task.claim,
      bytesDone: h.bytesDone,
      bytesStored: h.bytesStored,
    }));
    const kept = new Map((await renewLeases(database, { workerId, leaseMs, held: rows })).map((k) => [k.taskId, k]));
    for (const h of asked) {
      const answer = kept.get(h.task.id);
      if (!answer) lose(h, "another worker has claimed it");
      else if (answer.cancelled) h.controller.abort(new CancelledError(h.task.id));
      else if (!h.controller.signal.aborted) extend(h, stopsAt(askedAt));
    }
  };

  // A connection may be silent: the next renewal does not wait for it, and goes by another one while there is still time.
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
  const watch = setInterval(
    () => {
      for (const h of held.values()) if (stale(h)) lose(h, "the lease could not be renewed in time");
    },
    Math.max(50, limitMs / 10),
  );

  return {
    hold(task, claimedAt) {
      const mine: Held = {
        task,
        controller: new AbortController(),
        writableUntil: new BigInt64Array(new SharedArrayBuffer(8)),
        bytesDone: 0,
        bytesStored: 0,
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
            mine.bytesDone = progress.bytesDone;
            mine.bytesStored = progress.bytesStored;
          },
        },
        progress: () => ({ bytesDone: mine.bytesDone, bytesStored: mine.bytesStored }),
        async [Symbol.asyncDispose]() {
          held.delete(`${task.id}-${task.claim}`);
        },
      };
    },
    abortAll(reason) {
      for (const h of held.values()) h.controller.abort(reason);
    },
    count: () => held.size,
    async stop() {
      clearInterval(heartbeat);
      clearInterval(watch);
    },
  };
}
