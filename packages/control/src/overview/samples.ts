import type { Config } from "../config.ts";
import { type Database, Prisma } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import { refusalOf } from "../policies/check.ts";
import { countProtection, type ProtectionState } from "../policies/protection.ts";
import { sumRepositories } from "./repositories.ts";

/** Rows per minute become one in so many minutes after so many days. The sums in them only grow, so that nothing is lost by it. */
const thinned = [
  { days: 2, minutes: 15 },
  { days: 90, minutes: 24 * 60 },
] as const;

/** Interval, in minutes, at which volumes and repositories are counted for a row: that reads all volumes and all backups. */
const countedMinutes = 15;

/**
 * Adds the row of this minute, if it is not there. Ends are those before the minute began: who has ended by then has committed. What is counted
 * in other rows already is their sums' difference, however long ago the last row was.
 */
export async function takeSample(database: Database, config: Config): Promise<void> {
  const [last] = await database.$queryRaw<{ counted: boolean }[]>`
    SELECT EXISTS (SELECT FROM samples WHERE at > date_trunc('minute', now()) - ${countedMinutes} * interval '1 minute'
      AND at <= now() AND stored IS NOT NULL) AS counted`;
  const all = last?.counted ? null : await countAll(database, config);
  await database.$executeRaw`
    WITH minute AS (SELECT date_trunc('minute', now()) AS at
    ), before AS (
      SELECT s.at, succeeded, failed, cancelled FROM samples s, minute m WHERE s.at < m.at ORDER BY s.at DESC LIMIT 1
    ), ends AS (
      SELECT count(*) FILTER (WHERE o.state = 'succeeded') AS succeeded, count(*) FILTER (WHERE o.state = 'failed') AS failed,
        count(*) FILTER (WHERE o.state = 'cancelled') AS cancelled
      FROM operations o, minute m, before b
      WHERE o.state IN ('succeeded', 'failed', 'cancelled') AND o.tasks_removed_at IS NULL
        AND o.finished_at >= b.at AND o.finished_at < m.at
    ), bytes AS (
      SELECT coalesce(sum(value) FILTER (WHERE name = 'bytes_read'), 0) AS read,
        coalesce(sum(value) FILTER (WHERE name = 'bytes_stored'), 0) AS stored FROM counters
    ), waits AS (
      SELECT count(*) FILTER (WHERE state <> 'running') AS waiting, count(*) FILTER (WHERE state = 'running') AS running,
        min(queued_at) FILTER (WHERE state <> 'running') AS since
      FROM tasks WHERE state IN ('ready', 'dispatched', 'running')
    ), live AS (
      SELECT count(*) AS workers, coalesce(sum(slots), 0) AS slots FROM workers WHERE ${isLiveWorker("workers", config.worker.down_ms)}
    )
    INSERT INTO samples (at, bytes_read, bytes_stored, succeeded, failed, cancelled, waiting, running, oldest_seconds, workers, slots,
      volumes, stored)
    SELECT m.at, bytes.read, bytes.stored, e.succeeded + coalesce(b.succeeded, 0), e.failed + coalesce(b.failed, 0),
      e.cancelled + coalesce(b.cancelled, 0), w.waiting, w.running,
      least(greatest(0, coalesce(extract(epoch FROM now() - w.since), 0)), 2147483647)::int, l.workers, l.slots,
      ${all && JSON.stringify(all.volumes)}::jsonb, ${all && JSON.stringify(all.stored)}::jsonb
    FROM minute m CROSS JOIN ends e CROSS JOIN bytes CROSS JOIN waits w CROSS JOIN live l LEFT JOIN before b ON true
    ON CONFLICT (at) DO NOTHING`;
}

async function countAll(database: Database, config: Config) {
  const [volumes, sums] = await Promise.all([countProtection(database, config), sumRepositories(database, null)]);
  const bytes = (name: string): number => sums.find(({ repository }) => repository === name)?.stored ?? 0;
  return { volumes, stored: Object.fromEntries(config.repositories.map(({ name }) => [name, bytes(name)])) };
}

/** Leaves rows out that are older, and those that a clock had written before it was set back. @returns whether there may be more: never */
export async function thinSamples(database: Database): Promise<boolean> {
  await database.$executeRaw`DELETE FROM samples WHERE at > now()`;
  for (const { days, minutes } of thinned) {
    await database.$executeRaw`
      WITH kept AS (
        SELECT DISTINCT ON (slot) at FROM (
          SELECT at, stored, ceil(extract(epoch FROM at) / ${minutes * 60}::float8) AS slot FROM samples
          WHERE at <= now() - ${days} * interval '1 day') old
        ORDER BY slot, stored IS NULL, at DESC)
      DELETE FROM samples WHERE at <= now() - ${days} * interval '1 day' AND at NOT IN (SELECT at FROM kept)`;
  }
  return false;
}

/** What is asked: until `to`, by default now; from `from`, by default a day before; in at most `points` steps. */
export interface SamplesQuery {
  from: Date | null;
  to: Date | null;
  points: number;
}

/** Of one step; null where nobody has looked. Rates are per second, ends of the whole step, all else as of its end. */
export interface SampleStep {
  bytesRead: number | null;
  bytesStored: number | null;
  succeeded: number | null;
  failed: number | null;
  cancelled: number | null;
  waiting: number | null;
  running: number | null;
  /** The longest of the step, in seconds. */
  oldestSeconds: number | null;
  workers: number | null;
  slots: number | null;
  volumes: Partial<Record<ProtectionState, number>> | null;
  stored: Record<string, number> | null;
}

export interface Samples {
  asOf: Date;
  stepSeconds: number;
  /** The beginning of each step. */
  starts: Date[];
  steps: SampleStep[];
}

const dayS = 86_400;
/** Steps are of one of these lengths in seconds, or whole days. */
const lengths = [60, 300, 900, 3_600, 14_400, dayS];

/** The shortest step of which there are at most so many from `since` to `until`, wherever the first begins, and in which rows are left. */
export function stepOf({ since, until, now }: { since: Date; until: Date; now: Date }, points: number): number {
  const ageDays = (now.getTime() - since.getTime()) / (dayS * 1_000);
  const left = thinned.filter(({ days }) => ageDays > days).map(({ minutes }) => minutes * 60);
  const least = Math.max((until.getTime() - since.getTime()) / 1_000 / Math.max(1, points - 1), ...left);
  return lengths.find((length) => length >= least) ?? Math.ceil(least / dayS) * dayS;
}

const nothing: SampleStep = {
  ...{
    bytesRead: null,
    bytesStored: null,
    succeeded: null,
    failed: null,
    cancelled: null,
    waiting: null,
    running: null,
  },
  ...{ oldestSeconds: null, workers: null, slots: null, volumes: null, stored: null },
};

/** SQL: by how much a sum has grown; null where there is no row to compare with. */
const grown = (column: string): Prisma.Sql =>
  Prisma.raw(`sum(greatest(0, ${column})) FILTER (WHERE seconds IS NOT NULL)`);

/** SQL: the last value of a column that is not null. */
const newest = (column: string): Prisma.Sql =>
  Prisma.raw(`(array_agg(${column} ORDER BY at DESC) FILTER (WHERE ${column} IS NOT NULL))[1]`);

/**
 * What the whole installation did. The end of a step is part of it, its beginning is not.
 *
 * @throws InvalidError
 */
export async function readSamples(database: Database, { from, to, points }: SamplesQuery): Promise<Samples> {
  const [clock] = await database.$queryRaw<{ now: Date }[]>`SELECT now() AS now`;
  if (!clock) throw new Error("PostgreSQL returned no row");
  const until = to ?? clock.now;
  const since = from ?? new Date(until.getTime() - dayS * 1_000);
  if (since >= until) throw refusalOf([{ key: "from", problem: "is not before to" }]);
  const stepSeconds = stepOf({ since, until, now: clock.now }, points);
  const slotOf = (at: Date): number => Math.floor(at.getTime() / 1_000 / stepSeconds);
  const [first, last] = [slotOf(since), slotOf(until)];
  const begin = new Date(first * stepSeconds * 1_000);
  const rows = await database.$queryRaw<(SampleStep & { slot: number })[]>`
    WITH each AS (
      SELECT at, waiting, running, oldest_seconds, workers, slots, volumes, stored,
        extract(epoch FROM at - lag(at) OVER o)::float8 AS seconds, (bytes_read - lag(bytes_read) OVER o)::float8 AS read,
        (bytes_stored - lag(bytes_stored) OVER o)::float8 AS out, (succeeded - lag(succeeded) OVER o)::float8 AS succeeded,
        (failed - lag(failed) OVER o)::float8 AS failed, (cancelled - lag(cancelled) OVER o)::float8 AS cancelled
      FROM samples
      WHERE at >= coalesce((SELECT max(at) FROM samples WHERE at <= ${begin}), ${begin}) AND at <= least(${until}, now())
      WINDOW o AS (ORDER BY at)
    )
    SELECT (ceil(extract(epoch FROM at) / ${stepSeconds}::float8) - 1)::float8 AS slot, ${grown("read")} / sum(seconds) AS "bytesRead",
      ${grown("out")} / sum(seconds) AS "bytesStored", ${grown("succeeded")} AS succeeded, ${grown("failed")} AS failed,
      ${grown("cancelled")} AS cancelled,
      ${newest("waiting")} AS waiting, ${newest("running")} AS running, max(oldest_seconds) AS "oldestSeconds",
      ${newest("workers")} AS workers, ${newest("slots")} AS slots, ${newest("volumes")} AS volumes, ${newest("stored")} AS stored
    FROM each WHERE at > ${begin} GROUP BY 1`;
  const known = new Map(rows.map(({ slot, ...step }) => [slot, step]));
  const slots = Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index);
  return {
    asOf: clock.now,
    stepSeconds,
    starts: slots.map((slot) => new Date(slot * stepSeconds * 1_000)),
    steps: slots.map((slot) => known.get(slot) ?? nothing),
  };
}
