import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma, type Transaction } from "../db/database.ts";
import { type Lane, laneRanks, lanes } from "../priorities.ts";
import type { Logger } from "../telemetry/telemetry.ts";
import { listenForTasks } from "./doorbell.ts";
import type { Election } from "./election.ts";
import type { TaskKind } from "./tasks.ts";
import { adriftMs, type LiveQueue, liveQueues, needToRead, needToWrite, undeliveredMax } from "./workers.ts";

/** One dispatch of a task: the job carries the task's id and nothing else. */
export interface Dispatched {
  taskId: string;
  /** `t-<task>-<dispatch>`: BullMQ silently ignores an id that it still remembers, so each dispatch has its own. */
  jobId: string;
  /** Whether it takes a slot of those that are kept for high priority. */
  high: boolean;
  /** The span that added the task; null: none. */
  traceParent: string | null;
}

/** A task that was chosen for dispatch. */
interface Chosen extends Dispatched {
  kind: TaskKind;
  projectId: string;
  /** Dispatches, including this one, that have not led to a claim. */
  undelivered: number;
}

/** What was chosen for a queue. */
interface Choice {
  tasks: Chosen[];
  /** Whether there was room for no more. */
  isFull: boolean;
}

/** Adds jobs to the queue of that name. May fail: the tasks are dispatched again later. */
export type Enqueue = (queue: string, jobs: readonly Dispatched[]) => Promise<void>;

/** The worker that a dispatcher runs beside: it can take tasks without a job, while Redis delivers none. */
export interface OwnWorker {
  /** The queue that it serves; null: none at the moment. */
  queue(): string | null;
  /** Whether Redis works as the queue needs it to, as far as this worker knows. */
  redisWorks(): boolean;
  /** Number of free slots: of those that are kept for high priority, or of the others. */
  free(lane: Lane): number;
  /** Takes a task as if its job had arrived. */
  take(taskId: string, lane: Lane): void;
}

/** Jobs kept in Redis per slot: one running and one waiting, so that no slot idles for a round trip. */
const jobsPerSlot = 2;

/** Maximum number of tasks in flight: per project, and per repository with a limit, by its name; reads and writes both count. */
interface Caps {
  project: number | null;
  repositories: Readonly<Record<string, number>>;
}

function capsOf({ dispatcher, repositories }: Config): Caps {
  const limited = repositories.flatMap(({ name, max_running_tasks: max }) =>
    max === null ? [] : [[name, max] as const],
  );
  return { project: dispatcher.project_cap, repositories: Object.fromEntries(limited) };
}

/** Projects among which one round chooses. */
interface Window {
  projects: readonly string[];
  /** Of each, how many tasks of any had been dispatched when it got its last one; 0: none that this dispatcher knows of. */
  servedAt: readonly number[];
  /** Whether others have ready tasks, too. */
  isPart: boolean;
  /** Whether tasks of high priority are ready. */
  high: boolean;
}

/** Of so many projects a dispatcher knows when they got their last task. Beyond, it begins anew. */
const servedMax = 20_000;

/** With more projects than this, a round takes its turn with a part of them: what it costs does not depend on how many there are. */
const projectsMax = 512;

/** Projects with ready tasks, in the order of their names, from the first after `after`; at most `projectsMax`. */
async function readyProjects(database: Database, after: string): Promise<{ projects: string[]; high: boolean }> {
  const rows = await database.$queryRaw<{ project: string; high: boolean }[]>`
    WITH RECURSIVE found AS (
      (SELECT project_id, 1 AS n FROM tasks WHERE state = 'ready' AND run_after <= now() AND project_id > ${after}
        ORDER BY project_id LIMIT 1)
      UNION ALL
      SELECT (SELECT t.project_id FROM tasks t WHERE t.state = 'ready' AND t.run_after <= now() AND t.project_id > f.project_id
        ORDER BY t.project_id LIMIT 1), f.n + 1
      FROM found f WHERE f.project_id IS NOT NULL AND f.n < ${projectsMax}
    )
    SELECT project_id AS project, EXISTS (SELECT FROM tasks WHERE state = 'ready' AND rank < 0) AS high
    FROM found WHERE project_id IS NOT NULL`;
  return { projects: rows.map(({ project }) => project), high: rows[0]?.high ?? false };
}

/**
 * Chooses ready tasks for one lane of a queue, in one statement: round-robin over projects, counting what each has in flight; of those that
 * have equally many, what ends an operation first, then the project that got its last task the longest ago. Within a project tasks that
 * finish work before those that start it, older operations first. At most `most` tasks. Of each project only its share of the
 * room is examined, and what the busiest has in flight: where some have less to do, the next round fills the rest. Several dispatchers may choose at once: a row goes to one of them, and the queue's capacity may be exceeded by a few.
 *
 * A project's cap applies only while another project has work. A repository's limit always applies: where there is one, dispatchers choose
 * one at a time, so that each counts what the previous one took. A task of an incremental may need two repositories, and counts against
 * both.
 */
async function choose(
  database: Database,
  { queue, lane, most = queue.slots * jobsPerSlot }: { queue: LiveQueue; lane: Lane; most?: number },
  window: Window,
  caps: Caps,
): Promise<Choice> {
  if (lane === "high" && !window.high) return { tasks: [], isFull: false };
  const limited = Object.keys(caps.repositories).flatMap((name) => [needToRead(name), needToWrite(name)]);
  if (!limited.some((place) => queue.reaches.includes(place)))
    return chooseIn(database, { queue, lane, most }, window, caps);
  return inTransaction(database, async (tx) => {
    await tx.$executeRaw`SELECT pg_advisory_xact_lock(hashtextextended('tephra:dispatch', 0))`;
    return chooseIn(tx, { queue, lane, most }, window, caps);
  });
}

/** SQL: the order in which candidates `f` are chosen. Ranks of each priority are ten; of these the first three finish something. */
const inTurn = Prisma.sql`f.turn, (f.rank + 10) / 10, (f.rank + 10) % 10 > 2, f.served_at, f.rank, f.queued_at, f.ordinal`;

async function chooseIn(
  database: Database | Transaction,
  { queue, lane, most }: { queue: LiveQueue; lane: Lane; most: number },
  window: Window,
  caps: Caps,
): Promise<Choice> {
  const jobsMax = queue.slots * jobsPerSlot;
  const { from, to } = laneRanks[lane];
  // In subqueries, lists are unknown to the planner, so that one plan serves all of them: planning takes longer than choosing.
  const rows = await database.$queryRaw<ChosenRow[]>`
    WITH RECURSIVE busy AS (
      SELECT project_id, queue, count(*) AS jobs FROM tasks
      WHERE state IN ('running', 'dispatched') AND rank BETWEEN ${from}::int AND ${to}::int GROUP BY project_id, queue
    ), limited AS (
      SELECT c.key AS name, p.places, c.value::int - (SELECT count(*) FROM tasks t
        WHERE t.state IN ('running', 'dispatched') AND t.needs && p.places)::int AS jobs
      FROM jsonb_each_text(${JSON.stringify(caps.repositories)}::jsonb) c
      CROSS JOIN LATERAL (SELECT ARRAY['repository:' || c.key, 'repository-read:' || c.key] AS places) p
    ), room AS (
      SELECT LEAST(${most}, GREATEST(0, ${jobsMax} - coalesce(sum(jobs), 0)))::int AS jobs FROM busy WHERE queue = ${queue.queue}
    ), projects AS (
      SELECT unnest((SELECT ${window.projects}::text[])) AS project_id, unnest((SELECT ${window.servedAt}::float8[])) AS served_at
    ), share AS (
      SELECT LEAST(r.jobs, ceil(r.jobs::float8 / ${window.projects.length}::int)
        + coalesce((SELECT max(b.jobs) FROM (SELECT sum(jobs) AS jobs FROM busy GROUP BY project_id) b), 0))::int AS jobs FROM room r
    ), candidates AS (
      SELECT c.id, c.project_id, c.needs, c.rank, c.queued_at, c.ordinal, p.served_at,
        coalesce((SELECT sum(b.jobs) FROM busy b WHERE b.project_id = p.project_id), 0)
          + row_number() OVER (PARTITION BY c.project_id ORDER BY c.rank, c.queued_at, c.ordinal) AS turn
      FROM projects p CROSS JOIN LATERAL (
        SELECT t.* FROM tasks t
        WHERE t.state = 'ready' AND t.project_id = p.project_id AND t.rank BETWEEN ${from}::int AND ${to}::int AND t.run_after <= now() AND t.needs <@ (SELECT ${queue.reaches}::text[])
          AND NOT EXISTS (SELECT 1 FROM limited l WHERE l.jobs <= 0 AND t.needs && l.places)
        ORDER BY t.rank, t.queued_at, t.ordinal LIMIT (SELECT jobs FROM share)
      ) c
    ), contended AS (
      SELECT ${window.isPart} OR count(*) > 1 AS yes FROM (SELECT project_id FROM candidates UNION SELECT project_id FROM busy) p
    ), fair AS (
      SELECT * FROM candidates WHERE NOT (SELECT yes FROM contended) OR turn <= coalesce(${caps.project}::int, turn)
    ), placed AS (
      SELECT f.id, l.jobs - row_number() OVER (PARTITION BY l.name ORDER BY ${inTurn}) AS left_over
      FROM fair f JOIN limited l ON f.needs && l.places
    ), chosen AS (
      SELECT id FROM fair f WHERE NOT EXISTS (SELECT 1 FROM placed WHERE placed.id = f.id AND placed.left_over < 0)
      ORDER BY ${inTurn} LIMIT (SELECT jobs FROM room)
    ), locked AS (
      SELECT t.id FROM tasks t JOIN chosen USING (id) WHERE t.state = 'ready' FOR UPDATE OF t SKIP LOCKED
    ), taken AS (
      UPDATE tasks t SET state = 'dispatched', dispatch = t.dispatch + 1, dispatched_at = now(), queue = ${queue.queue}
      FROM locked WHERE t.id = locked.id AND t.state = 'ready' RETURNING t.id, t.kind, t.project_id, t.dispatch, t.claim, t.trace_parent
    )
    SELECT room.jobs AS room, taken.* FROM room LEFT JOIN taken ON true`;
  const tasks = rows.flatMap(({ id, kind, project_id: projectId, dispatch, claim, trace_parent: traceParent }) =>
    id === null
      ? []
      : [
          {
            taskId: id,
            kind,
            projectId,
            jobId: `t-${id}-${dispatch}`,
            high: lane === "high",
            undelivered: dispatch - claim,
            traceParent,
          },
        ],
  );
  return { tasks, isFull: tasks.length >= (rows[0]?.room ?? 0) };
}

/** `id` and what follows it: null where nothing was chosen. */
interface ChosenRow {
  room: number;
  id: string | null;
  kind: TaskKind;
  project_id: string;
  dispatch: number;
  claim: number;
  trace_parent: string | null;
}

export interface Dispatcher {
  /** Something may have become ready. */
  wake(): void;
  /** A slot of this process became free. */
  freed(): void;
  stop(): Promise<void>;
}

/** Poll interval: nothing announces that run_after has passed, and a NOTIFY can be lost with its connection. */
const pollMs = 1_000;
/** Wake-ups within this window are coalesced. */
const coalesceMs = 3;
/**
 * Nothing announces a slot of another process that becomes free, either: while tasks wait, the dispatcher looks this often, and less often
 * where none is placed.
 */
const backlogMs = 50;
const backlogMsMax = 250;
/** A slot that becomes free while all were taken has its next job waiting in Redis: others may become free meanwhile. */
const refillMs = 15;
/** How long workers' registrations are cached. */
const queuesAgeMaxMs = 1_000;
/** A round that takes longer has another process dispatch meanwhile. */
const roundMsMax = 3_000;

/**
 * Ranges of a volume take seconds, and one worker with several slots would take them all while another idles. So they are enqueued one at a
 * time: Redis gives each to the worker that has waited longest.
 */
const rangeKinds: readonly TaskKind[] = ["copy", "restore", "verify"];
const isRange = ({ kind }: Chosen): boolean => rangeKinds.includes(kind);
const spreadMs = 5;

/**
 * Runs beside every worker's consumers, and dispatches in the one process that is elected: woken by NOTIFY unless all slots are taken, by
 * its own worker's finished tasks unless none waits, and once a second; more often while tasks wait for a slot. Several at once do no harm. Nothing depends on its memory: kill it at
 * any point, and the reconciler makes a dispatched but never claimed task ready again. While Redis does not work, every worker takes tasks
 * by itself.
 */
export function startDispatcher(options: {
  database: Database;
  config: Config;
  log: Logger;
  enqueue: Enqueue;
  own?: OwnWorker;
  /** Without one, this process always dispatches. */
  election?: Election;
}): Dispatcher {
  const { database, config, log, enqueue, own, election } = options;
  let stopped = false;
  let rung = false;
  let running: Promise<void> = Promise.resolve();
  let timer: NodeJS.Timeout | undefined;
  let backlog: NodeJS.Timeout | undefined;
  let backlogWaitMs = backlogMs;
  let refill: NodeJS.Timeout | null = null;
  /** What the last round left behind: no ready task, or ready ones and no free slot, or neither. */
  let left: "nothing" | "no-room" | "unknown" = "unknown";

  let queues: LiveQueue[] = [];
  let queuesReadAt = Number.NEGATIVE_INFINITY;
  const caps = capsOf(config);
  const leads = (): boolean => election?.holds("dispatcher") ?? true;

  /** Project → how many tasks had been dispatched when it got its last one: among equals, whoever has waited longest goes first. */
  const served = new Map<string, number>();
  let dispatched = 0;
  const chooseNext: typeof choose = async (...asked) => {
    const choice = await choose(...asked);
    if (served.size > servedMax) served.clear();
    for (const { projectId } of choice.tasks) served.set(projectId, ++dispatched);
    return choice;
  };

  let after = "";
  /** The projects whose turn it is; null when no task is ready. */
  const nextWindow = async (): Promise<Window | null> => {
    const begun = after;
    const found = await readyProjects(database, begun);
    const { projects, high } = found.projects.length === 0 && begun !== "" ? await readyProjects(database, "") : found;
    const last = projects.at(-1);
    after = last !== undefined && projects.length === projectsMax ? last : "";
    const servedAt = projects.map((project) => served.get(project) ?? 0);
    return last === undefined ? null : { projects, servedAt, high, isPart: begun !== "" || after !== "" };
  };

  const readQueues = async (): Promise<LiveQueue[]> => {
    if (performance.now() - queuesReadAt > queuesAgeMaxMs) {
      queues = await liveQueues(database, config.worker.down_ms);
      queuesReadAt = performance.now();
    }
    return queues;
  };
  /** Without Redis: takes as many of the queue's tasks as there are free slots here, unless somebody else has them. */
  const takeHere = async (worker: OwnWorker): Promise<void> => {
    if (lanes.every((lane) => worker.free(lane) <= 0)) return;
    const queue = (await readQueues()).find(({ queue }) => queue === worker.queue());
    if (!queue) return;
    const window = await nextWindow();
    for (const lane of lanes) {
      const free = worker.free(lane);
      if (free <= 0) continue;
      const { from, to } = laneRanks[lane];
      const adrift = await database.$queryRaw<{ id: string }[]>`
        SELECT id FROM tasks WHERE state = 'dispatched' AND queue = ${queue.queue} AND rank BETWEEN ${from}::int AND ${to}::int
          AND dispatched_at < now() - ${adriftMs} * interval '1 millisecond' ORDER BY rank, queued_at, ordinal LIMIT ${free}`;
      for (const { id } of adrift) worker.take(id, lane);
      if (window === null) continue;
      const { tasks } = await chooseNext(database, { queue, lane, most: free - adrift.length }, window, caps);
      for (const { taskId } of tasks) worker.take(taskId, lane);
    }
  };
  /** @returns how many were sent, and whether there was room for no more */
  const fill = async (queue: LiveQueue, lane: Lane, window: Window): Promise<{ sent: number; isFull: boolean }> => {
    const { tasks: chosen, isFull } = await chooseNext(database, { queue, lane }, window, caps);
    const isOwn = own?.queue() === queue.queue;
    const lost = isOwn ? chosen.filter((job) => job.undelivered > undeliveredMax).slice(0, own?.free(lane)) : [];
    for (const { taskId } of lost) own?.take(taskId, lane);
    const jobs = chosen.filter((job) => !lost.includes(job));
    const spread = queue.workers > 1 ? isRange : () => false;
    const [ranges, others] = [jobs.filter(spread), jobs.filter((job) => !spread(job))];
    if (others.length > 0) await enqueue(queue.queue, others);
    for (const range of ranges) {
      await enqueue(queue.queue, [range]);
      if (!stopped) await sleep(spreadMs);
    }
    return { sent: jobs.length, isFull };
  };
  const dispatch = async (window: Window): Promise<void> => {
    let sent = 0;
    let isFull = true;
    const known = await readQueues();
    for (const queue of known) {
      const first = await fill(queue, "high", window);
      const others = await fill(queue, "other", window);
      isFull &&= others.isFull;
      sent += first.sent + others.sent;
    }
    // More may wait than there are slots.
    const isAlone = known.every(({ queue, workers }) => workers === 1 && queue === own?.queue());
    backlogWaitMs = sent > 0 && !isAlone ? backlogMs : Math.min(backlogMsMax, 2 * backlogWaitMs);
    if (isFull && known.length > 0) left = "no-room";
    clearTimeout(backlog);
    if (!stopped) backlog = setTimeout(look, backlogWaitMs);
  };
  const round = async (): Promise<void> => {
    left = "unknown";
    if (own && !own.redisWorks()) {
      // The process that dispatches for all must reach Redis.
      election?.resign("dispatcher");
      return takeHere(own);
    }
    if (!leads()) return;
    const window = await nextWindow();
    if (window !== null) await dispatch(window);
    else left = "nothing";
  };
  const guarded = async (): Promise<void> => {
    if (!election || !leads()) return round();
    await election.during("dispatcher", roundMsMax, round).catch((error: unknown) => {
      election.resign("dispatcher");
      throw error;
    });
  };
  const loop = async (): Promise<void> => {
    while (rung && !stopped) {
      await sleep(coalesceMs);
      rung = false;
      await guarded().catch((error: unknown) => log.warn({ err: error }, "dispatch failed; it will be tried again"));
    }
  };
  const look = (): void => {
    const idle = !rung;
    rung = true;
    if (idle && !stopped) running = running.then(loop);
  };
  // Where there was no room, the timer of the backlog runs.
  const wake = (): void => {
    if (left !== "no-room") look();
  };
  const freed = (): void => {
    // What becomes ready rings.
    if (left === "nothing" && listener?.hears() === true) return;
    const refillNow = (): void => {
      refill = null;
      look();
    };
    if (left === "no-room") refill ??= setTimeout(refillNow, refillMs);
    else look();
  };
  let listener: ReturnType<typeof listenForTasks> | null = null;
  const listen = (): void => {
    listener ??= listenForTasks({
      url: config.database_direct_url ?? config.database_url,
      database,
      onRing: wake,
      log,
    });
  };
  if (!election) listen();
  election?.onChange((role, holds) => {
    if (role !== "dispatcher" || stopped) return;
    if (holds) {
      listen();
      look();
    } else {
      void listener?.stop();
      listener = null;
    }
  });
  timer = setInterval(look, pollMs);
  look();
  return {
    wake,
    freed,
    async stop() {
      stopped = true;
      clearInterval(timer);
      clearTimeout(backlog);
      clearTimeout(refill ?? undefined);
      await listener?.stop();
      await running;
    },
  };
}
