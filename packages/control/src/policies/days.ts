import { type Database, Prisma } from "../db/database.ts";
import { isTimeZone } from "../limits/windows.ts";
import { type Principal, seesAll } from "../principal.ts";
import { readClock } from "../rows/policies.ts";
import { candidatesOf } from "./applies.ts";
import { refusalOf } from "./check.ts";
import { nextTimes } from "./schedule.ts";

/** What is asked: volumes, and local days of a time zone as `YYYY-MM-DD`, both ends included. */
export interface DaysQuery {
  volumeIds: readonly string[];
  /** Null: 34 days before `to`. */
  from: string | null;
  /** Null: today. */
  to: string | null;
  timezone: string;
}

/**
 * One letter a day. `R`: a backup of that day can be restored; `p`: one was made and has been deleted since; `F`: one failed, or is damaged; `X`:
 * excluded on purpose; `M`: a run of its policy was due and missed, or skipped it; `.`: nothing was due; `-`: the volume did not exist.
 */
export interface VolumeDays {
  id: string;
  days: string;
}

/** The better letter of a day wins. */
const letters = "RpFXM.-";
const daysMax = 366;
const usual = 35;
const dayMs = 86_400_000;

/** When the local day begins is looked for from here: no time zone is as far from UTC. */
const lookBackMs = 2 * dayMs;

/** The local day of a moment, as Swedes write it: `YYYY-MM-DD`. */
const labelsOf = (timezone: string) => {
  const format = new Intl.DateTimeFormat("sv-SE", { timeZone: timezone, dateStyle: "short" });
  return (at: Date): string => format.format(at);
};

/**
 * The moments at which the days begin, and the end of the last one. Days are 23 or 25 hours long where clocks are set.
 *
 * @throws InvalidError
 */
export function boundsOf(query: Omit<DaysQuery, "volumeIds">, now: Date): { from: string; bounds: Date[] } {
  const { timezone } = query;
  if (!isTimeZone(timezone)) {
    throw refusalOf([{ key: "tz", problem: `there is no time zone ${JSON.stringify(timezone)}` }]);
  }
  const labelOf = labelsOf(timezone);
  const to = query.to ?? labelOf(now);
  const first = query.from ?? new Date(Date.parse(to) - (usual - 1) * dayMs).toISOString().slice(0, 10);
  const span = Math.round((Date.parse(to) - Date.parse(first)) / dayMs) + 1;
  if (span < 1) throw refusalOf([{ key: "from", problem: "is after to" }]);
  if (span > daysMax) throw refusalOf([{ key: "from", problem: `is more than ${daysMax} days before to` }]);
  const midnight = { cron: "0 0 * * *", timezone };
  const all = nextTimes(midnight, new Date(Date.parse(first) - lookBackMs), span + 5);
  const bounds = all.filter((at) => labelOf(at) >= first && labelOf(new Date(at.getTime() - dayMs / 2)) <= to);
  return { from: first, bounds };
}

/**
 * How each volume was protected on each of some local days, by what is known now: filled means that one can go back to that day. Volumes that
 * are unknown, or another project's, are left out.
 *
 * @throws InvalidError
 */
export async function listDays(
  database: Database,
  principal: Principal,
  query: DaysQuery,
): Promise<{ from: string; volumes: VolumeDays[] }> {
  const now = await readClock(database);
  const { from, bounds } = boundsOf(query, now);
  const marks = await readMarks(database, principal, { ids: query.volumeIds, bounds });
  const volumes = new Map<string, string[]>();
  for (const { id, day, letter } of marks) {
    const days = volumes.get(id) ?? Array.from({ length: bounds.length - 1 }, () => ".");
    volumes.set(id, days);
    if (day !== null && letters.indexOf(letter) < letters.indexOf(days[day] ?? "")) days[day] = letter;
  }
  for (const { id, createdAt } of marks) {
    const days = volumes.get(id) ?? [];
    bounds.slice(1).forEach((end, day) => {
      if (days[day] === "." && end <= createdAt) days[day] = "-";
    });
  }
  const found = query.volumeIds.filter((id) => volumes.has(id));
  return { from, volumes: [...new Set(found)].map((id) => ({ id, days: (volumes.get(id) ?? []).join("") })) };
}

interface Mark {
  id: string;
  createdAt: Date;
  /** Null: the volume has none. */
  day: number | null;
  letter: string;
}

/** What happened on which day, at least one row for each volume. A backup counts on the day whose bytes it has; a failed one when it was tried. */
function readMarks(
  database: Database,
  principal: Principal,
  { ids, bounds }: { ids: readonly string[]; bounds: readonly Date[] },
): Promise<Mark[]> {
  const seen = seesAll(principal) ? Prisma.sql`true` : Prisma.sql`v.project_id = ${principal.projectId}`;
  const asked = Prisma.sql`v.id = ANY(${[...ids]}::uuid[]) AND ${seen}`;
  const [begin, end] = [bounds[0], bounds.at(-1)];
  return database.$queryRaw<Mark[]>`
    WITH RECURSIVE damaged AS (
      SELECT id FROM backups WHERE damage IS NOT NULL AND deleted_at IS NULL
      UNION
      SELECT b.id FROM backups b JOIN damaged d ON b.parent_id = d.id WHERE b.deleted_at IS NULL
    ), asked AS MATERIALIZED (
      SELECT v.id, v.project_id, v.created_at FROM volumes v WHERE ${asked}
    ), applied AS (
      SELECT DISTINCT ON (volume_id) volume_id, policy_id, instance_id FROM (${candidatesOf(asked)}) candidates ORDER BY volume_id, place
    ), judged AS (
      SELECT a.id, b.data_timestamp AS good_at, b.created_at AS tried_at,
        b.deleted_at IS NULL AND b.status IN ('available', 'restoring') AND b.id NOT IN (SELECT id FROM damaged) AS good,
        (b.deleted_at IS NOT NULL OR b.status IN ('deleting', 'error_deleting')) AND (b.stored_bytes IS NOT NULL OR b.object_count > 0) AS pruned,
        b.deleted_at IS NULL AND (b.status LIKE 'error%' OR b.id IN (SELECT id FROM damaged)) AS failed
      FROM asked a JOIN backups b ON b.volume_id = a.id AND b.project_id = a.project_id
      WHERE greatest(b.data_timestamp, b.created_at) >= ${begin}
    ), marks AS (
      SELECT id, 'R' AS letter, good_at AS at FROM judged WHERE good
      UNION ALL SELECT id, 'p', good_at FROM judged WHERE pruned
      UNION ALL SELECT id, 'F', tried_at FROM judged WHERE failed
      UNION ALL SELECT a.volume_id, 'M', r.due_at FROM applied a JOIN policy_runs r ON r.policy_id = a.policy_id AND r.state = 'missed'
        WHERE r.due_at >= ${begin} AND r.due_at < ${end}
      UNION ALL SELECT a.volume_id, 'M', i.starts_at FROM applied a
        JOIN policy_run_items i ON coalesce(i.volume_id, i.instance_id) IN (a.volume_id, a.instance_id) AND i.state = 'skipped'
        WHERE i.starts_at >= ${begin} AND i.starts_at < ${end}
    ), days AS (
      SELECT DISTINCT id, letter, width_bucket(at, ${[...bounds]}::timestamptz[]) - 1 AS day FROM marks
      WHERE at >= ${begin} AND at < ${end}
      UNION ALL SELECT e.volume_id, 'X', day - 1 FROM volume_exclusions e JOIN asked a ON a.id = e.volume_id
        CROSS JOIN generate_series(width_bucket(greatest(e.created_at, ${begin}), ${[...bounds]}::timestamptz[]),
          width_bucket(least(coalesce(e.until, now()), now()), ${[...bounds]}::timestamptz[])) AS day
    )
    SELECT a.id, a.created_at AS "createdAt", d.day, coalesce(d.letter, '.') AS letter
    FROM asked a LEFT JOIN days d ON d.id = a.id AND d.day < ${bounds.length - 1}`;
}
