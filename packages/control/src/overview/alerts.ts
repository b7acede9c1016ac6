import type { Config } from "../config.ts";
import { type Database, Prisma } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import type { ProtectionState } from "../policies/protection.ts";
import { nearQuotas } from "../rows/quotas.ts";
import { fullAt, readGrowth } from "./repositories.ts";

export interface Alert {
  code: AlertCode;
  severity: "critical" | "warning";
  /** A worker, a repository, a backend on a host, a project; null: the installation, or everything that the asked one sees. */
  subject: string | null;
  /** One sentence. */
  text: string;
  /** Null: nobody has noted it. */
  since: Date | null;
  count: number;
  /** The console's page for it, below `/console`. */
  href: string;
  /** Who knows of it, and until when nobody is told; null for those who do not see all projects. */
  snoozed: AlertSnooze | null;
}

export interface AlertSnooze {
  until: Date;
  reason: string;
  userId: string;
}

/** What alerts are asked of: one project, or (null) the installation. */
export interface AlertsOf {
  database: Database;
  config: Config;
  projectId: string | null;
  /** Volumes by how protected they are, of the same. */
  volumes: Readonly<Record<ProtectionState, number>>;
}

type Found = Pick<Alert, "text" | "since" | "count"> & { subject?: string };

interface Rule {
  severity: Alert["severity"];
  /** Told to those only who see all projects. */
  wide?: boolean;
  href: string;
  find: (of: AlertsOf) => Promise<Found[]>;
}

/** The oldest task waits longer than this, in seconds: as in deploy/prometheus/alerts.yaml. */
const oldSeconds = 1_800;
/** A backend or repository with less free is nearly full: a restore to a new volume, or the next backup, may not fit. */
const lowBytes = 10 * 1024 ** 3;
/** A repository that is full in fewer days calls for somebody. */
const soonDays = 14;
/** A quota is nearly used up when this share of it is. */
const nearShare = 0.9;
/** What failed, or was missed, is told for so long. */
const told = Prisma.sql`now() - interval '24 hours'`;

/**
 * SQL: whether the operation `o` has failed lately and calls for somebody. One that was retried does not, since the other one counts; nor
 * does a part, since the whole does. Found by `operations_failed_idx`.
 */
export const hasFailedLately = Prisma.sql`(o.state = 'failed' AND o.finished_at > ${told} AND o.parent_id IS NULL AND o.retried_as IS NULL)`;

const many = (count: number, one: string, more = `${one}s`): string => `${count} ${count === 1 ? one : more}`;

const own = (alias: "o" | "b" | "t" | "p", projectId: string | null): Prisma.Sql =>
  projectId === null ? Prisma.sql`true` : Prisma.sql`${Prisma.raw(alias)}.project_id = ${projectId}`;

interface Counted {
  count: number;
  since: Date | null;
}

/** One alert about everything that the query has counted; none where that is nothing. */
async function counted(database: Database, query: Prisma.Sql, text: (found: Counted) => string): Promise<Found[]> {
  const rows = await database.$queryRaw<Counted[]>(query);
  return rows.filter(({ count }) => count > 0).map((row) => ({ ...row, text: text(row) }));
}

const ofVolumes = (count: number, text: string): Found[] => (count === 0 ? [] : [{ text, since: null, count }]);

const gibText = (bytes: number): string => `${(bytes / 1024 ** 3).toFixed(1)} GiB`;

/** Repositories with little room left, or that are full soon if they grow as they do. */
async function fillingRepositories(database: Database, config: Config): Promise<Found[]> {
  const rows = await database.$queryRaw<{ name: string; free: number; now: Date }[]>`
    SELECT substr(p.key, 12) AS name, min((p.value ->> 'free_bytes')::float8) AS free, now() AS now FROM workers w, jsonb_each(w.places) p
    WHERE ${isLiveWorker("w", config.worker.down_ms)} AND p.key LIKE 'repository:%' AND p.value ->> 'free_bytes' IS NOT NULL
    GROUP BY 1 ORDER BY 1`;
  if (rows.length === 0) return [];
  const growth = await readGrowth(database);
  return rows.flatMap(({ name, free, now }) => {
    const full = fullAt({ now: now.getTime(), freeBytes: free, perDay: growth.get(name) ?? null });
    const days = full === null ? null : Math.floor((full.getTime() - now.getTime()) / 86_400_000);
    if (free >= lowBytes && (days === null || days >= soonDays)) return [];
    const soon = days === null ? "" : ` and is full in ${many(days, "day")} if it goes on growing so`;
    const text = `The repository ${name} has ${gibText(free)} free${soon}.`;
    return [{ subject: `repository ${name}`, text, since: null, count: 1 }];
  });
}

/** One row for each: the worst first, then in this order. Whoever adds one names it in docs/console.md and packages/wire, too. */
const rules = {
  no_workers: {
    severity: "critical",
    href: "/workers",
    find: ({ database, config }) =>
      counted(
        database,
        Prisma.sql`SELECT (count(*) FILTER (WHERE ${isLiveWorker("workers", config.worker.down_ms)}) = 0)::int AS count,
          max(heartbeat_at) AS since FROM workers`,
        () => "No worker is alive: what was accepted waits.",
      ),
  },
  repository_down: {
    severity: "critical",
    wide: true,
    href: "/repositories",
    find: async ({ database, config }) => {
      const live = isLiveWorker("w", config.worker.down_ms);
      const names = config.repositories.map(({ name }) => name);
      const rows = await database.$queryRaw<{ name: string; why: string | null; since: Date | null; count: number }[]>`
        SELECT n AS name, (SELECT min(w.host || ': ' || (w.unreachable ->> ('repository:' || n))) FROM workers w WHERE ${live}) AS why,
          min(t.unplaced_at) AS since, count(DISTINCT t.operation_id)::int AS count
        FROM unnest(${names}::text[]) n LEFT JOIN tasks t ON t.state = 'ready' AND 'repository:' || n = ANY(t.needs)
        WHERE NOT EXISTS (SELECT FROM workers w WHERE ${live} AND 'repository:' || n = ANY(w.reaches))
          AND EXISTS (SELECT FROM workers w WHERE ${live})
        GROUP BY n ORDER BY n`;
      return rows.map(({ name, why, since, count }) => {
        const waiting = count === 0 ? "" : `; ${many(count, "operation waits", "operations wait")}`;
        const words = why === null ? "" : ` (${why})`;
        return {
          subject: name,
          since,
          count,
          text: `No worker can write to the repository ${name}${waiting}${words}.`,
        };
      });
    },
  },
  operation_stuck: {
    severity: "critical",
    href: "/operations?stuck=1",
    find: ({ database, projectId }) =>
      counted(
        database,
        Prisma.sql`SELECT count(DISTINCT t.operation_id)::int AS count, min(t.unplaced_at) AS since FROM tasks t
          WHERE t.state = 'ready' AND t.unplaced_at IS NOT NULL AND ${own("t", projectId)}`,
        ({ count }) => `No worker reaches what ${many(count, "operation needs", "operations need")}.`,
      ),
  },
  damage_found: {
    severity: "critical",
    href: "/backups?damage=1",
    find: ({ database, projectId }) =>
      counted(
        database,
        Prisma.sql`SELECT count(*)::int AS count, min(b.verified_at) AS since FROM backups b
          WHERE b.damage IS NOT NULL AND b.deleted_at IS NULL AND ${own("b", projectId)}`,
        ({ count }) => `${many(count, "backup is", "backups are")} damaged.`,
      ),
  },
  key_missing: {
    severity: "critical",
    wide: true,
    href: "/repositories",
    find: async ({ database, config }) => {
      const rows = await database.$queryRaw<{ subject: string; id: string; host: string; missing: string }[]>`
        WITH had AS (
          SELECT substr(p.key, 12) AS name, w.id, w.host, p.value -> 'keys' AS keys FROM workers w, jsonb_each(w.places) p
          WHERE ${isLiveWorker("w", config.worker.down_ms)} AND p.key LIKE 'repository:%' AND p.value ? 'keys'
        ), known AS (SELECT DISTINCT name, jsonb_array_elements_text(keys) AS version FROM had)
        SELECT h.name AS subject, h.id, h.host, coalesce(string_agg(k.version, ', ' ORDER BY k.version), 'every one') AS missing
        FROM had h LEFT JOIN known k ON k.name = h.name AND NOT h.keys ? k.version
        WHERE k.version IS NOT NULL OR h.keys = '[]' GROUP BY h.name, h.id, h.host ORDER BY h.name, h.host, h.id`;
      const lacking = [...Map.groupBy(rows, ({ subject }) => subject)].map(([subject, workers]) => {
        const who = workers.map(({ id, host, missing }) => `${id} on ${host} lacks ${missing}`).join("; ");
        return {
          subject,
          since: null,
          count: workers.length,
          text: `Not every worker has all master keys of the repository ${subject}: ${who}.`,
        };
      });
      const failed = await counted(
        database,
        Prisma.sql`SELECT count(*)::int AS count, min(o.finished_at) AS since FROM operations o
          WHERE ${hasFailedLately} AND o.fail_reason LIKE '%is encrypted with master key%'`,
        ({ count }) =>
          `${many(count, "operation has", "operations have")} failed within 24 hours for want of a master key.`,
      );
      return [...lacking, ...failed];
    },
  },
  volumes_never: {
    severity: "warning",
    href: "/volumes?state=never",
    find: async ({ volumes: { never } }) =>
      ofVolumes(never, `${many(never, "volume has", "volumes have")} no backup that can be restored.`),
  },
  volumes_late: {
    severity: "warning",
    href: "/volumes?state=late",
    find: async ({ volumes: { late } }) =>
      ofVolumes(late, `The newest good backup of ${many(late, "volume")} is older than the target.`),
  },
  worker_silent: {
    severity: "warning",
    wide: true,
    href: "/workers",
    find: async ({ database, config }) => {
      const rows = await database.$queryRaw<{ subject: string; host: string; since: Date }[]>`
        SELECT id AS subject, host, heartbeat_at AS since FROM workers
        WHERE NOT ${isLiveWorker("workers", config.worker.down_ms)} ORDER BY heartbeat_at, id`;
      return rows.map(({ subject, host, since }) => {
        return { subject, since, count: 1, text: `The worker ${subject} on ${host} has fallen silent.` };
      });
    },
  },
  operation_failed: {
    severity: "warning",
    href: "/operations?state=failed",
    find: ({ database, projectId }) =>
      counted(
        database,
        Prisma.sql`SELECT count(*)::int AS count, min(o.finished_at) AS since FROM operations o
          WHERE ${hasFailedLately} AND ${own("o", projectId)}`,
        ({ count }) => `${many(count, "operation has", "operations have")} failed within 24 hours.`,
      ),
  },
  schedule_missed: {
    severity: "warning",
    href: "/policies",
    find: ({ database, projectId }) =>
      counted(
        database,
        Prisma.sql`SELECT count(*)::int AS count, min(r.due_at) AS since FROM policy_runs r JOIN policies p ON p.id = r.policy_id
          WHERE r.state = 'missed' AND r.created_at > ${told} AND ${own("p", projectId)}`,
        ({ count }) => `${many(count, "run")} of policies ${count === 1 ? "was" : "were"} missed within 24 hours.`,
      ),
  },
  queue_old: {
    severity: "warning",
    href: "/operations?state=queued",
    find: ({ database, projectId }) =>
      counted(
        database,
        Prisma.sql`SELECT count(*)::int AS count, min(t.queued_at) AS since FROM tasks t
          WHERE t.state IN ('ready', 'dispatched') AND t.queued_at < now() - ${oldSeconds} * interval '1 second' AND ${own("t", projectId)}`,
        ({ count }) => `${many(count, "task has", "tasks have")} waited for more than ${oldSeconds / 60} minutes.`,
      ),
  },
  queue_drift: {
    severity: "warning",
    wide: true,
    href: "/workers",
    find: ({ database, config }) =>
      counted(
        database,
        Prisma.sql`SELECT count(*)::int AS count, min(t.dispatched_at) AS since FROM tasks t
          WHERE t.state = 'dispatched' AND t.dispatched_at < now() - ${2 * config.tasks.dispatch_timeout_ms} * interval '1 millisecond'`,
        ({ count }) =>
          `${many(count, "task was", "tasks were")} handed to the queue and ${count === 1 ? "has" : "have"} not arrived at a worker.`,
      ),
  },
  disk_low: {
    severity: "warning",
    wide: true,
    href: "/workers",
    find: async ({ database, config }) => {
      const rows = await database.$queryRaw<{ subject: string; free: number }[]>`
        SELECT substr(f.key, 9) || ' on ' || w.host AS subject, min(f.value::float8) AS free FROM workers w, jsonb_each_text(w.free_bytes) f
        WHERE ${isLiveWorker("w", config.worker.down_ms)} AND f.key LIKE 'backend:%' AND f.value::float8 < ${lowBytes}::float8
        GROUP BY 1 ORDER BY 1`;
      const backends = rows.map(({ subject, free }) => {
        return { subject, text: `The volume backend ${subject} has ${gibText(free)} free.`, since: null, count: 1 };
      });
      return [...backends, ...(await fillingRepositories(database, config))];
    },
  },
  quota_near: {
    severity: "warning",
    href: "/projects",
    find: async ({ database, config, projectId }) =>
      (await nearQuotas(database, config, { projectId, share: nearShare })).map(({ project, lines }) => {
        const used = lines.map(({ resource, inUse, limit }) => `${inUse} of ${limit} ${resource.replaceAll("_", " ")}`);
        const text = `Project ${project} uses ${used.join(", ")}.`;
        return { subject: project, text, since: null, count: lines.length };
      }),
  },
  notifications_dead: {
    severity: "warning",
    wide: true,
    href: "/notifications",
    find: ({ database }) =>
      counted(
        database,
        Prisma.sql`SELECT count(*)::int AS count, min(n.created_at) AS since FROM deliveries d JOIN notifications n ON n.id = d.notification_id
          WHERE d.state = 'dead'`,
        ({ count }) => `${many(count, "notification was", "notifications were")} never accepted.`,
      ),
  },
  versions_mixed: {
    severity: "warning",
    wide: true,
    href: "/workers",
    find: async ({ database, config }) => {
      const rows = await database.$queryRaw<{ version: string; since: Date }[]>`
        SELECT coalesce(version, 'an older release') AS version, min(started_at) AS since FROM workers
        WHERE ${isLiveWorker("workers", config.worker.down_ms)} GROUP BY 1 ORDER BY 1`;
      if (rows.length < 2) return [];
      const since = new Date(Math.max(...rows.map((row) => row.since.getTime())));
      const versions = rows.map(({ version }) => version).join(", ");
      return [{ text: `Workers of several releases are alive: ${versions}.`, since, count: rows.length }];
    },
  },
} as const satisfies Readonly<Record<string, Rule>>;

export type AlertCode = keyof typeof rules;

const codes = Object.keys(rules) as AlertCode[];

/** As rows have it: an alert without a subject has the empty one. */
export const snoozeSubject = (subject: string | null): string => subject ?? "";

/** The snoozes that have not ended, by code and subject. They are of the whole installation: a project's own alerts are told all the same. */
async function readSnoozes({
  database,
  projectId,
}: AlertsOf): Promise<(alert: Found, code: AlertCode) => AlertSnooze | null> {
  if (projectId !== null) return () => null;
  const rows = await database.$queryRaw<(AlertSnooze & { code: string; subject: string })[]>`
    SELECT code, subject, until, reason, user_id AS "userId" FROM alert_snoozes WHERE until > now()`;
  return ({ subject = null }, code) => {
    const row = rows.find((one) => one.code === code && one.subject === snoozeSubject(subject));
    return row ? { until: row.until, reason: row.reason, userId: row.userId } : null;
  };
}

/** What asks for somebody, the worst first, snoozed or not. */
export async function findAlerts(of: AlertsOf): Promise<Alert[]> {
  const found: Alert[] = [];
  const snoozeOf = await readSnoozes(of);
  for (const code of codes) {
    const { severity, href, find, wide = false }: Rule = rules[code];
    if (wide && of.projectId !== null) continue;
    for (const one of await find(of)) {
      found.push({ code, severity, href, ...one, subject: one.subject ?? null, snoozed: snoozeOf(one, code) });
    }
  }
  return found;
}

/** How many alerts there are of each code, in the whole installation: those that are told, and those that are snoozed. */
export async function countAlerts(
  of: Omit<AlertsOf, "projectId">,
): Promise<Record<AlertCode, { told: number; snoozed: number }>> {
  const alerts = await findAlerts({ ...of, projectId: null });
  const counts = codes.map((code) => {
    const all = alerts.filter((alert) => alert.code === code);
    const snoozed = all.filter((alert) => alert.snoozed !== null).length;
    return [code, { told: all.length - snoozed, snoozed }];
  });
  return Object.fromEntries(counts) as Record<AlertCode, { told: number; snoozed: number }>;
}
