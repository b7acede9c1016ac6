import { Client } from "pg";
import type { Config } from "./config.ts";
import { type Database, inTransaction } from "./database.ts";
import { tasksReadyChannel } from "./tasks.ts";
import type { Logger } from "./telemetry.ts";
import { type LiveQueue, liveQueues } from "./workers.ts";

/** One dispatch of a task: the job carries the task's id and nothing else. */
export interface Dispatched {
  taskId: string;
  /** `t-<task>-<dispatch>`: BullMQ silently ignores an id that it still remembers, so each dispatch has its own. */
  jobId: string;
}

/** Puts jobs into the queue of that name. May fail: the tasks are dispatched again later. */
export type Enqueue = (queue: string, jobs: readonly Dispatched[]) => Promise<void>;

/** Jobs kept in Redis per slot: one that runs and one that waits, so that no slot idles for a round trip. */
const jobsPerSlot = 2;

/** Any number that no other advisory lock of ours uses: one dispatcher chooses at a time. */
const dispatchLock = 748_301;

/**
 * Chooses ready tasks for one queue: round-robin over projects, counting what each has in flight, and within a project
 * what finishes before what starts, older operations first. At most `room` rows per project are looked at.
 */
async function chooseFor(tx: Parameters<Parameters<typeof inTransaction>[1]>[0], queue: LiveQueue, room: number): Promise<Dispatched[]> {
  const rows = await tx.$queryRaw<{ id: string; dispatch: number }[]>`
    WITH RECURSIVE projects AS (
      (SELECT project_id FROM tasks WHERE state = 'ready' ORDER BY project_id LIMIT 1)
      UNION ALL
      SELECT (SELECT t.project_id FROM tasks t WHERE t.state = 'ready' AND t.project_id > p.project_id ORDER BY t.project_id LIMIT 1)
      FROM projects p WHERE p.project_id IS NOT NULL
    ), busy AS (
      SELECT project_id, count(*) AS jobs FROM tasks WHERE state IN ('running', 'dispatched') GROUP BY project_id
    ), candidates AS (
      SELECT c.id, c.rank, c.queued_at, c.ordinal, coalesce(b.jobs, 0)
        + row_number() OVER (PARTITION BY c.project_id ORDER BY c.rank, c.queued_at, c.ordinal) AS turn
      FROM projects p LEFT JOIN busy b ON b.project_id = p.project_id
      CROSS JOIN LATERAL (
        SELECT t.* FROM tasks t
        WHERE t.state = 'ready' AND t.project_id = p.project_id AND t.run_after <= now() AND t.needs <@ ${queue.reaches}::text[]
        ORDER BY t.rank, t.queued_at, t.ordinal LIMIT ${room}
      ) c
    ), chosen AS (
      SELECT id FROM candidates ORDER BY turn, rank, queued_at, ordinal LIMIT ${room}
    )
    UPDATE tasks t SET state = 'dispatched', dispatch = t.dispatch + 1, dispatched_at = now(), queue = ${queue.queue}
    FROM chosen WHERE t.id = chosen.id AND t.state = 'ready' RETURNING t.id, t.dispatch`;
  return rows.map((r) => ({ taskId: r.id, jobId: `t-${r.id}-${r.dispatch}` }));
}

/** One round: null when another dispatcher is choosing just now. The commit comes before the queue hears of it. */
async function choose(database: Database, heartbeatMs: number): Promise<Map<string, Dispatched[]> | null> {
  return inTransaction(database, async (tx) => {
    const lock = await tx.$queryRaw<{ mine: boolean }[]>`SELECT pg_try_advisory_xact_lock(${dispatchLock}) AS mine`;
    if (!lock[0]?.mine) return null;
    const chosen = new Map<string, Dispatched[]>();
    const queues = await liveQueues(tx, heartbeatMs);
    const used = await tx.$queryRaw<{ queue: string; jobs: number }[]>`
      SELECT queue, count(*)::int AS jobs FROM tasks WHERE state IN ('dispatched', 'running') AND queue IS NOT NULL GROUP BY queue`;
    for (const queue of queues) {
      const room = queue.slots * jobsPerSlot - (used.find((u) => u.queue === queue.queue)?.jobs ?? 0);
      if (room > 0) chosen.set(queue.queue, await chooseFor(tx, queue, room));
    }
    return chosen;
  });
}

export interface Dispatcher {
  /** Something became ready, or a slot free. */
  wake(): void;
  stop(): Promise<void>;
}

/** Looked at even if nobody rings: run_after passes without a sound, and a NOTIFY can be lost with its connection. */
const pollMs = 1_000;
const contendedRetryMs = 25;
const listenRetryMs = 2_000;

/**
 * Runs beside every worker's consumers, woken by NOTIFY, by every finish, and once a second. Any number may run at once.
 * Nothing depends on what it remembers: kill it anywhere and the reconciler makes a dispatched, never claimed task ready again.
 */
export function startDispatcher(options: { database: Database; config: Config; log: Logger; enqueue: Enqueue }): Dispatcher {
  const { database, config, log, enqueue } = options;
  const heartbeatMs = config.worker.heartbeat_ms;
  let stopped = false;
  let rung = false;
  let running: Promise<void> = Promise.resolve();
  let timer: NodeJS.Timeout | undefined;

  const round = async (): Promise<void> => {
    const chosen = await choose(database, heartbeatMs);
    if (chosen === null) {
      setTimeout(wake, contendedRetryMs).unref();
      return;
    }
    for (const [queue, jobs] of chosen) if (jobs.length > 0) await enqueue(queue, jobs);
  };
  const loop = async (): Promise<void> => {
    while (rung && !stopped) {
      rung = false;
      await round().catch((error: unknown) => log.warn({ err: error }, "dispatch failed; it will be tried again"));
    }
  };
  const wake = (): void => {
    const idle = !rung;
    rung = true;
    if (idle && !stopped) running = running.then(loop);
  };
  const listener = listen(config.database_url, wake, log);
  timer = setInterval(wake, pollMs);
  wake();
  return {
    wake,
    async stop() {
      stopped = true;
      clearInterval(timer);
      await listener.stop();
      await running;
    },
  };
}

/** Hears the doorbell on a connection of its own; comes back by itself when the connection is lost. */
function listen(url: string, onRing: () => void, log: Logger): { stop(): Promise<void> } {
  let stopped = false;
  let client: Client | null = null;
  let retry: NodeJS.Timeout | undefined;
  const connect = async (): Promise<void> => {
    const mine = new Client({ connectionString: url, keepAlive: true });
    client = mine;
    mine.on("notification", onRing);
    mine.on("error", () => {});
    mine.on("end", () => {
      if (stopped || client !== mine) return;
      retry = setTimeout(() => void connect().catch(() => {}), listenRetryMs);
    });
    try {
      await mine.connect();
      await mine.query(`LISTEN ${tasksReadyChannel}`);
      onRing();
    } catch (error) {
      log.debug({ err: error }, "cannot listen yet");
      await mine.end().catch(() => {});
    }
  };
  const first = connect();
  return {
    async stop() {
      stopped = true;
      clearTimeout(retry);
      await first;
      await client?.end().catch(() => {});
    },
  };
}
