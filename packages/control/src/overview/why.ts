import type { Config } from "../config.ts";
import { type Database, Prisma } from "../db/database.ts";
import { isLiveOperation, liveStates } from "../db/live.ts";
import { listBandwidthLimits, rateAt, type Traffic } from "../limits/bandwidth.ts";
import { type Principal, seesAll } from "../principal.ts";
import { movingKinds, type OperationProgress, positionMax, quietSeconds } from "../queue/list-operations.ts";
import { isLive } from "../queue/operations.ts";
import type { TaskKind } from "../queue/tasks.ts";
import { needToRead, needToWrite } from "../queue/workers.ts";
import { type KnownWorker, listWorkers } from "./workers.ts";

export type WhyCode = Why["code"];

/** Why an operation waits, or is not faster, in words. */
export interface Why {
  code:
    | "queue"
    | "no_worker"
    | "disabled_hosts"
    | "capped_project"
    | "capped_repository"
    | "limited_rate"
    | "backing_off"
    | "taking_over"
    | "no_progress"
    | "waits_for"
    | "ending"
    | "fine";
  text: string;
  /** Null: nobody has noted it. */
  since: Date | null;
  /** A worker's id, a repository, a project, a host, what a limit is of; null: the operation itself. */
  subject: string | null;
}

/** Unfinished tasks that differ in nothing of this. */
export interface TaskFacts {
  state: "ready" | "dispatched" | "running" | "blocked";
  kind: TaskKind;
  needs: string[];
  workerId: string | null;
  tasks: number;
  /** Claims without progress, and times that another service was waited for. */
  attempts: number;
  waits: number;
  /** When the first of them may run; `later`: none may yet. */
  nextAt: Date;
  later: boolean;
  unplacedAt: Date | null;
  /** What the last try of one of them has come to. */
  failReason: string | null;
  /** Whether the lease of one has run out. */
  overdue: boolean;
  /** Since when, where none of them has had more bytes for `quietSeconds`; else null. */
  quietSince: Date | null;
}

/** Something that a maximum is set for. */
export interface CapFacts {
  code: "capped_project" | "capped_repository";
  subject: string;
  running: number;
  max: number;
}

export interface LimitFacts {
  traffic: Traffic;
  /** `project p`, `repository main`, … */
  of: string;
  bytesPerSecond: number;
}

export interface WhyFacts {
  operation: Pick<
    OperationProgress,
    "state" | "kind" | "createdAt" | "startedAt" | "finishedAt" | "queuePosition" | "rateBytesPerSecond"
  >;
  tasks: readonly TaskFacts[];
  workers: readonly Pick<KnownWorker, "id" | "host" | "state" | "heartbeatAt" | "reaches" | "unreachable">[];
  /** Operations that it is made of and that have not ended. */
  parts: number;
  /** Those that are reached. */
  caps: readonly CapFacts[];
  /** Those in force that it may be as fast as. */
  limits: readonly LimitFacts[];
  attemptsMax: number;
  /** Whether workers are named. */
  named: boolean;
}

/** What is left when all bytes are where they belong. */
const endingKinds: readonly TaskKind[] = [
  "seal",
  "seal-squash",
  "publish",
  "conclude-group",
  "conclude-verify",
  "tidy",
];
/** An operation of this share of a limit's rate is held by it. */
const limitShare = 0.7;

const many = (count: number, one: string): string => `${count} ${count === 1 ? one : `${one}s`}`;
const sum = (tasks: readonly TaskFacts[]): number => tasks.reduce((total, { tasks: count }) => total + count, 0);
const earliest = (times: readonly (Date | null)[]): Date | null =>
  times.reduce((least, time) => (time !== null && (least === null || time < least) ? time : least), null);
const needText = (need: string): string => need.replace(":", " ").replace("repository-read", "repository");
/** As a sentence in one: the last full stop is the caller's. */
const quoted = (reason: string): string => reason.replace(/[.\s]+$/, "");

/** @returns null: it has ended, and nothing is left of it to be done */
export function whyOf(facts: WhyFacts): Why | null {
  const { operation, tasks } = facts;
  if (!isLive(operation)) return tasks.length > 0 ? ofCleanUp(facts) : null;
  const running = tasks.filter(({ state }) => state === "running");
  const rule = running.length > 0 ? [takenOver, quiet, ending, capped, limited] : [...standing];
  for (const find of rule) {
    const found = find(facts, running);
    if (found !== null) return found;
  }
  return running.length > 0 ? fine(facts, running) : queued(facts);
}

type Find = (facts: WhyFacts, running: readonly TaskFacts[]) => Why | null;

const ofCleanUp = ({ operation, tasks }: WhyFacts): Why => ({
  code: "ending",
  text: `It has ended; ${many(sum(tasks), "task")} of cleaning up ${sum(tasks) === 1 ? "is" : "are"} left.`,
  since: operation.finishedAt,
  subject: null,
});

const takenOver: Find = ({ workers, named }, running) => {
  for (const task of running) {
    const worker = workers.find(({ id }) => id === task.workerId);
    if (!task.overdue && worker?.state !== "silent") continue;
    const who = named && worker ? `Worker ${worker.id} on ${worker.host}` : "A worker";
    const text = `${who} is silent: what it was doing is taken over when its lease has run out, from where it was.`;
    return { code: "taking_over", text, since: worker?.heartbeatAt ?? null, subject: named ? task.workerId : null };
  }
  return null;
};

const quiet: Find = ({ named }, running) => {
  const moving = running.filter(({ kind }) => movingKinds.includes(kind));
  if (moving.length === 0 || moving.length < running.length) return null;
  if (moving.some(({ quietSince }) => quietSince === null)) return null;
  const text = `Workers are alive, but no byte has moved for over ${quietSeconds} seconds: the volume or the repository does not answer.`;
  const [first] = moving;
  return {
    code: "no_progress",
    text,
    since: earliest(moving.map(({ quietSince }) => quietSince)),
    subject: named ? (first?.workerId ?? null) : null,
  };
};

const ending: Find = ({ tasks }) => {
  if (!tasks.every(({ kind }) => endingKinds.includes(kind))) return null;
  return { code: "ending", text: "All bytes are there; it is being completed.", since: null, subject: null };
};

const capped: Find = ({ tasks, caps }, running) => {
  const waiting = tasks.filter(({ state, later }) => state === "ready" && !later);
  const [cap] = caps;
  if (!cap || waiting.length === 0) return null;
  const { code, subject, max } = cap;
  const whom =
    code === "capped_project"
      ? `project ${subject} runs at most ${many(max, "task")} while others wait`
      : `at most ${many(max, "task")} at a time use repository ${subject}`;
  const has = running.length > 0 ? `${many(sum(running), "task")} of it run; ` : "";
  const more = running.length > 0 ? "more task" : "task";
  return { code, text: `${has}${many(sum(waiting), more)} may not yet: ${whom}.`, since: null, subject };
};

const limited: Find = ({ operation, limits }) => {
  const rate = operation.rateBytesPerSecond ?? 0;
  const [least] = limits.filter(({ bytesPerSecond }) => rate >= limitShare * bytesPerSecond);
  if (!least) return null;
  const what = least.traffic === "volumes" ? "volumes are read" : "bytes go into repositories and come from them";
  const text = `It is as fast as a limit allows: for ${least.of}, ${what} at ${least.bytesPerSecond} bytes a second at most.`;
  return { code: "limited_rate", text, since: null, subject: least.of };
};

const backingOff: Find = ({ tasks, attemptsMax }) => {
  if (tasks.some(({ state, later }) => state === "dispatched" || (state === "ready" && !later))) return null;
  const failed = tasks.find(({ state, failReason }) => state === "ready" && failReason !== null);
  if (!failed) return null;
  const next = `next try at ${failed.nextAt.toISOString()}`;
  const reason = quoted(failed.failReason ?? "");
  const text =
    failed.waits > 0 && failed.attempts === 0
      ? `It waits for another service, ${next}: ${reason}.`
      : `Try ${failed.attempts} of ${attemptsMax} has failed, ${next}: ${reason}.`;
  return { code: "backing_off", text, since: null, subject: null };
};

/** What no worker that takes tasks reaches. */
const unreached: Find = ({ tasks, workers, named }) => {
  const waiting = tasks.filter(({ state, later }) => state === "ready" && !later);
  const reach = (state: KnownWorker["state"], { needs }: TaskFacts) =>
    workers.filter((worker) => worker.state === state && needs.every((need) => worker.reaches.includes(need)));
  const task = waiting.find((each) => reach("live", each).length === 0);
  if (!task || waiting.some((each) => reach("live", each).length > 0)) return null;
  const since = earliest(waiting.map(({ unplacedAt }) => unplacedAt));
  const disabled = reach("disabled", task);
  if (disabled.length > 0) {
    const hosts = [...new Set(disabled.map(({ host }) => host))].join(", ");
    const where = named ? `: ${hosts}` : "";
    const text = `The workers that could do it are on disabled hosts, which take no new tasks${where}.`;
    return { code: "disabled_hosts", text, since, subject: named ? hosts : null };
  }
  const heard = workers.filter(({ state }) => state !== "silent");
  const missing = task.needs.filter((need) => !heard.some(({ reaches }) => reaches.includes(need)));
  const needs = (missing.length > 0 ? missing : task.needs).map(needText).join(", ");
  const words = heard.flatMap(({ host, unreachable }) =>
    task.needs.flatMap((need) => {
      const said = unreachable[need];
      return said === undefined ? [] : [named ? `${host}: ${quoted(said)}.` : `${quoted(said)}.`];
    }),
  );
  const what = heard.length === 0 ? "No worker is alive." : `No worker reaches what it needs (${needs}).`;
  return { code: "no_worker", text: [what, ...new Set(words)].join(" "), since, subject: missing[0] ?? null };
};

const waitsFor: Find = ({ operation, tasks, parts }) => {
  const waits = (text: string): Why => ({ code: "waits_for", text, since: operation.startedAt, subject: null });
  if (tasks.length === 0 && parts > 0) return waits(`It waits for ${many(parts, "operation")} that it is made of.`);
  if (tasks.length > 0 && tasks.every(({ state }) => state === "blocked")) {
    return waits("It waits for workers that still do what was cancelled before it.");
  }
  if (tasks.length > 0 && tasks.every(({ state, later }) => state === "ready" && later)) {
    const at = earliest(tasks.map(({ nextAt }) => nextAt));
    return waits(`Its next task is not begun before ${at?.toISOString()}.`);
  }
  return null;
};

/** For what nobody works on. */
const standing: readonly Find[] = [backingOff, unreached, waitsFor, capped];

function queued({ operation, tasks }: WhyFacts): Why {
  const { queuePosition: position, createdAt } = operation;
  const ahead = (position ?? 1) - 1;
  const text =
    tasks.length === 0
      ? "Its next task is about to be made."
      : position === null
        ? "Its next task waits for a free slot of a worker."
        : ahead >= positionMax
          ? `${many(positionMax, "operation")} or more are ahead of it in the queue.`
          : ahead === 0
            ? "It is the next in the queue, and waits for a free slot of a worker."
            : `It is number ${position} in the queue: ${many(ahead, "operation")} ${ahead === 1 ? "is" : "are"} ahead.`;
  return { code: "queue", text, since: position === null ? null : createdAt, subject: null };
}

const fine = ({ operation, tasks }: WhyFacts, running: readonly TaskFacts[]): Why => {
  const waiting = sum(tasks) - sum(running);
  const more = waiting > 0 ? `, ${waiting} more wait for a free slot` : "";
  return {
    code: "fine",
    text: `${many(sum(running), "task")} ${sum(running) === 1 ? "runs" : "run"}${more}.`,
    since: operation.startedAt,
    subject: null,
  };
};

/** Why the operation waits, or is not faster; null where it has ended and nothing is left to be done. */
export async function explainOperation(
  database: Database,
  config: Config,
  principal: Principal,
  operation: OperationProgress,
): Promise<Why | null> {
  const tasks = await readTasks(database, operation.id);
  const common = { operation, tasks, attemptsMax: config.tasks.attempts_max, named: seesAll(principal) };
  const ended = { ...common, workers: [], parts: 0, caps: [], limits: [] };
  if (!isLive(operation)) return whyOf(ended);
  const [workers, parts, caps, limits] = await Promise.all([
    listWorkers(database, config),
    database.operation.count({ where: { parentId: operation.id, state: liveStates } }),
    readCaps(database, config, operation.projectId, tasks),
    readLimits(database, operation.projectId, tasks),
  ]);
  return whyOf({ ...common, workers, parts, caps, limits });
}

const readTasks = (database: Database, operationId: string): Promise<TaskFacts[]> => database.$queryRaw<TaskFacts[]>`
  SELECT state, kind, needs, worker_id AS "workerId", count(*)::int AS tasks, max(attempts) AS attempts, max(waits) AS waits,
    min(run_after) AS "nextAt", run_after > now() AS later, min(unplaced_at) AS "unplacedAt", max(fail_reason) AS "failReason",
    coalesce(bool_or(lease_until < now()), false) AS overdue,
    CASE WHEN bool_and(coalesce(progressed_at, now()) < now() - ${quietSeconds} * interval '1 second') THEN max(progressed_at) END AS "quietSince"
  FROM tasks WHERE operation_id = ${operationId}::uuid AND state IN ('ready', 'dispatched', 'running', 'blocked')
  GROUP BY state, kind, needs, worker_id, run_after > now() ORDER BY min(rank), min(ordinal)`;

/** Those that are reached, of what the waiting tasks need. Nothing is asked where none is set, or none waits. */
async function readCaps(
  database: Database,
  { dispatcher, repositories }: Config,
  projectId: string,
  tasks: readonly TaskFacts[],
): Promise<CapFacts[]> {
  const waiting = tasks.filter(({ state, later }) => state === "ready" && !later);
  const needs = new Set(waiting.flatMap((task) => task.needs));
  const inFlight = async (where: Prisma.Sql): Promise<number> => {
    const [row] = await database.$queryRaw<{ running: number }[]>`
      SELECT count(*)::int AS running FROM tasks WHERE state IN ('running', 'dispatched') AND ${where}`;
    return row?.running ?? 0;
  };
  const caps: CapFacts[] = [];
  const projectMax = dispatcher.project_cap;
  if (projectMax !== null && waiting.length > 0) {
    const [{ others } = { others: false }] = await database.$queryRaw<{ others: boolean }[]>`
      SELECT EXISTS (SELECT FROM operations o WHERE ${isLiveOperation("o")} AND o.project_id <> ${projectId}) AS others`;
    const running = others ? await inFlight(Prisma.sql`project_id = ${projectId}`) : 0;
    caps.push({ code: "capped_project", subject: projectId, running, max: projectMax });
  }
  for (const { name, max_running_tasks: max } of repositories) {
    const places = [needToWrite(name), needToRead(name)];
    if (max === null || !places.some((place) => needs.has(place))) continue;
    const running = await inFlight(Prisma.sql`needs && ${places}::text[]`);
    caps.push({ code: "capped_repository", subject: name, running, max });
  }
  return caps.filter(({ running, max }) => running >= max);
}

/** The limits in force that all of an operation's tasks share, the least first; nothing is asked where nothing moves. */
async function readLimits(database: Database, projectId: string, tasks: readonly TaskFacts[]): Promise<LimitFacts[]> {
  const moving = tasks.filter(({ state, kind }) => state === "running" && movingKinds.includes(kind));
  if (moving.length === 0) return [];
  const needs = new Set(moving.flatMap((task) => task.needs));
  const { limits, now } = await listBandwidthLimits(database);
  const applies = limits.filter(({ traffic, scope, name }) => {
    if (scope === "project") return name === projectId;
    if (scope === "backend") return needs.has(`backend:${name}`);
    if (scope === "repository") return needs.has(needToWrite(name)) || needs.has(needToRead(name));
    return traffic === "volumes" && name === "*" && moving.length === 1;
  });
  const found = applies.flatMap((limit) => {
    const bytesPerSecond = rateAt(limit, now);
    const of = limit.name === "*" ? "each worker" : `${limit.scope} ${limit.name}`;
    return bytesPerSecond === null ? [] : [{ traffic: limit.traffic, of, bytesPerSecond }];
  });
  return found.sort((one, other) => one.bytesPerSecond - other.bytesPerSecond);
}
