import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma } from "../db/database.ts";
import { matching } from "../db/listing.ts";
import { noteAudit } from "../events/audit.ts";
import { type Principal, seesAll } from "../principal.ts";
import { readClock } from "../rows/policies.ts";
import { findVolume } from "../rows/volumes.ts";
import { candidatesOf, withOwnPolicy } from "./applies.ts";
import { refusalOf } from "./check.ts";

/**
 * `protected`: the newest good backup is within the target; `late`: it is older; `at risk`: it is within the target, but the newest try has
 * failed, or a newer backup is damaged; `never`: there is none; `excluded`: on purpose. A backup is good when neither it nor one that it
 * builds on is damaged.
 */
export const protectionStates = ["protected", "late", "at risk", "never", "excluded"] as const;
export type ProtectionState = (typeof protectionStates)[number];

export interface ProtectionRow {
  id: string;
  name: string | null;
  projectId: string;
  sizeBytes: bigint;
  status: string;
  backend: string;
  state: ProtectionState;
  reason: string | null;
  goodId: string | null;
  goodAt: Date | null;
  verifiedAt: Date | null;
  verifiedMode: string | null;
  tryId: string | null;
  tryStatus: string | null;
  tryAt: Date | null;
  targetHours: number;
  policyId: string | null;
  policyName: string | null;
  nextAt: Date | null;
  excludedReason: string | null;
  excludedUntil: Date | null;
}

/** SQL, to follow `WITH RECURSIVE`: backups that are damaged, or build on one that is. They are few. */
const damaged = Prisma.sql`damaged AS (
    SELECT id FROM backups WHERE damage IS NOT NULL AND deleted_at IS NULL
    UNION
    SELECT b.id FROM backups b JOIN damaged d ON b.parent_id = d.id WHERE b.deleted_at IS NULL
  )`;

/** SQL: whether the backup `b` is whole and can be restored, unless it is damaged (backups_whole_idx). */
const isWhole = Prisma.sql`b.deleted_at IS NULL AND b.status IN ('available', 'restoring')`;

/** SQL: the last backup of the volume `v`; and the last one that is whole. */
const newestTry = Prisma.sql`
      SELECT b.id, b.status, b.created_at, b.fail_reason FROM backups b
      WHERE b.volume_id = v.id AND b.project_id = v.project_id AND b.deleted_at IS NULL
      ORDER BY b.created_at DESC LIMIT 1`;
const newestWhole = Prisma.sql`
      SELECT b.id FROM backups b WHERE b.volume_id = v.id AND b.project_id = v.project_id AND ${isWhole}
      ORDER BY b.data_timestamp DESC, b.created_at DESC LIMIT 1`;

/** SQL: whether the exclusion `e` is still one. */
const isExcluding = Prisma.sql`(e.until IS NULL OR e.until > now())`;

/** SQL: the state of a volume of which `excluded`, "goodAt", "targetHours" and `marred` are known: the last, whether the newest try failed or is damaged. */
const stateOf = Prisma.sql`CASE
      WHEN excluded THEN 'excluded'
      WHEN "goodAt" IS NULL THEN 'never'
      WHEN "goodAt" < now() - "targetHours" * interval '1 hour' THEN 'late'
      WHEN marred THEN 'at risk'
      ELSE 'protected' END`;

/** SQL: a query of `ProtectionRow` of the volumes for which the condition on `v` holds: each is looked at by itself. */
const judgedVolumes = (config: Config, volumes: Prisma.Sql): Prisma.Sql => Prisma.sql`
  WITH RECURSIVE ${damaged}, applied AS (
    SELECT DISTINCT ON (volume_id) volume_id, policy_id FROM (${candidatesOf(volumes)}) candidates ORDER BY volume_id, place
  ), known AS (
    SELECT v.id, v.name, v.project_id AS "projectId", v.size_bytes AS "sizeBytes", v.status, v.backend,
      good.id AS "goodId", good.data_timestamp AS "goodAt", good.verified_at AS "verifiedAt",
      good.verified_mode AS "verifiedMode", newest.id AS "tryId", newest.status AS "tryStatus", newest.created_at AS "tryAt",
      newest.fail_reason, whole.id IS DISTINCT FROM good.id AS spoilt,
      coalesce(p.target_hours, ${config.protection.target_hours}::int) AS "targetHours", p.id AS "policyId", p.name AS "policyName",
      p.next_at AS "nextAt", e.reason AS "excludedReason", e.until AS "excludedUntil", e.volume_id IS NOT NULL AS excluded
    FROM volumes v
    LEFT JOIN applied a ON a.volume_id = v.id
    LEFT JOIN policies p ON p.id = a.policy_id
    LEFT JOIN volume_exclusions e ON e.volume_id = v.id AND ${isExcluding}
    LEFT JOIN LATERAL (
      SELECT b.id, b.data_timestamp, b.verified_at, b.verified_mode FROM backups b
      WHERE b.volume_id = v.id AND b.project_id = v.project_id AND ${isWhole} AND b.id NOT IN (SELECT id FROM damaged)
      ORDER BY b.data_timestamp DESC, b.created_at DESC LIMIT 1) good ON true
    LEFT JOIN LATERAL (${newestWhole}) whole ON true
    LEFT JOIN LATERAL (${newestTry}) newest ON true
    WHERE ${volumes}
  ), judged AS (
    SELECT *, ${stateOf} AS state FROM (SELECT *, "tryStatus" IS NOT DISTINCT FROM 'error' OR spoilt AS marred FROM known) one
  )
  SELECT *, CASE
    WHEN state = 'excluded' THEN "excludedReason"
    WHEN state = 'protected' THEN NULL
    WHEN spoilt THEN 'A backup that is newer than the newest good one is damaged, or builds on one that is.'
    WHEN "tryStatus" = 'error' THEN 'The newest try has failed: ' || coalesce(fail_reason, 'no reason is known.')
    WHEN state = 'never' THEN 'There is no backup that can be restored.'
    ELSE 'The newest good backup is ' || floor(extract(epoch FROM now() - "goodAt") / 3600) || ' h old; the target is ' || "targetHours" || ' h.'
    END AS reason
  FROM judged`;

/**
 * SQL: a query of `id, "projectId", "goodAt", state` of all volumes of a project, or of all (null): the same judgement, of all at once. Looked at one by
 * one are only those of which something is noted: an exclusion, a failed or damaged backup, a policy that is not their project's.
 */
const statesOf = (config: Config, projectId: string | null): Prisma.Sql => {
  const own = (alias: "b" | "v"): Prisma.Sql =>
    projectId === null ? Prisma.sql`true` : Prisma.sql`${Prisma.raw(alias)}.project_id = ${projectId}`;
  const withOwn = Prisma.sql`v.id IN (${withOwnPolicy}) AND ${own("v")}`;
  return Prisma.sql`
  WITH RECURSIVE ${damaged}, good AS (
    SELECT DISTINCT ON (b.volume_id, b.project_id) b.volume_id, b.project_id, b.data_timestamp AS at FROM backups b
    WHERE ${isWhole} AND b.id NOT IN (SELECT id FROM damaged) AND ${own("b")}
    ORDER BY b.volume_id, b.project_id, b.data_timestamp DESC
  ), tried AS (
    SELECT b.volume_id FROM backups b WHERE b.status = 'error' AND b.deleted_at IS NULL AND ${own("b")}
    UNION
    SELECT b.volume_id FROM backups b JOIN damaged d ON d.id = b.id WHERE ${own("b")}
  ), noted AS (
    SELECT volume_id, bool_or(excluded) AS excluded, bool_or(marred) AS marred, bool_or(led) AS led, max(hours) AS hours FROM (
      SELECT e.volume_id, true AS excluded, false AS marred, false AS led, NULL::int AS hours FROM volume_exclusions e WHERE ${isExcluding}
      UNION ALL
      SELECT v.id, false, true, false, NULL FROM tried t JOIN volumes v ON v.id = t.volume_id
      WHERE (SELECT status FROM (${newestTry}) newest) = 'error' OR (${newestWhole}) IN (SELECT id FROM damaged)
      UNION ALL
      (SELECT DISTINCT ON (c.volume_id) c.volume_id, false, false, true, p.target_hours
      FROM (${candidatesOf(withOwn)}) c JOIN policies p ON p.id = c.policy_id ORDER BY c.volume_id, c.place)
    ) notes GROUP BY volume_id
  ), general AS (
    SELECT a.project_id, p.target_hours AS hours FROM policy_assignments a JOIN policies p ON p.id = a.policy_id WHERE a.scope = 'project'
  )
  SELECT id, "projectId", "goodAt", ${stateOf} AS state FROM (
    SELECT v.id, v.project_id AS "projectId", good.at AS "goodAt", coalesce(noted.excluded, false) AS excluded, coalesce(noted.marred, false) AS marred,
      coalesce(CASE WHEN noted.led THEN noted.hours ELSE general.hours END, ${config.protection.target_hours}::int) AS "targetHours"
    FROM volumes v
    LEFT JOIN good ON good.volume_id = v.id AND good.project_id = v.project_id
    LEFT JOIN noted ON noted.volume_id = v.id
    LEFT JOIN general ON general.project_id = v.project_id
    WHERE ${own("v")}
  ) one`;
};

/** Ways to order volumes, each from least to most: oldest good backup first, those without one before; by name; largest first; most stored first. */
const orders = {
  age: Prisma.sql`coalesce("goodAt", '-infinity')`,
  name: Prisma.sql`lower(coalesce(name, ''))`,
  size: Prisma.sql`-"sizeBytes"`,
  stored: Prisma.sql`-"storedBytes"`,
} as const;
export type ProtectionOrder = keyof typeof orders;

export interface ProtectionQuery {
  state?: ProtectionState | undefined;
  /** A part of the name, or how the id begins. */
  text?: string | undefined;
  projectId?: string | undefined;
  /** That applies to it. */
  policyId?: string | undefined;
  backend?: string | undefined;
  sort: ProtectionOrder;
  /** Id of the last volume of the previous page. */
  marker?: string | undefined;
  limit: number;
}

/** A volume of a list, and what is stored of it. */
export interface ListedProtection extends ProtectionRow {
  machineId: string | null;
  machineName: string | null;
  /** Backups that are whole, damaged or not, and what they store together. */
  points: number;
  storedBytes: number;
  /** How many the newest good one builds on. */
  chainDepth: number | null;
}

/** SQL: whether the volume `v` is one of those that are asked for, whatever its state. */
function askedOf(query: ProtectionQuery): Prisma.Sql {
  const { text, projectId, policyId, backend } = query;
  const every = Prisma.sql`true`;
  return Prisma.join(
    [
      text === undefined ? every : matching("v", text),
      projectId === undefined ? every : Prisma.sql`v.project_id = ${projectId}`,
      backend === undefined ? every : Prisma.sql`v.backend = ${backend}`,
      policyId === undefined
        ? every
        : Prisma.sql`v.id IN (SELECT volume_id FROM (
            SELECT DISTINCT ON (volume_id) volume_id, policy_id FROM (${candidatesOf(every)}) c ORDER BY volume_id, place) first
            WHERE policy_id = ${policyId}::uuid)`,
    ],
    " AND ",
  );
}

/** How protected volumes are; and how many of those that are asked for are in each state, whichever was asked for. */
export async function listProtection(
  database: Database,
  config: Config,
  principal: Principal,
  query: ProtectionQuery,
): Promise<{ rows: ListedProtection[]; facets: Record<ProtectionState, number> }> {
  const { state, sort, marker, limit } = query;
  const key = orders[sort];
  const after =
    marker === undefined
      ? Prisma.sql`true`
      : Prisma.sql`(${key}, id) > (SELECT ${key}, id FROM volume WHERE id = ${marker}::uuid)`;
  const stored =
    sort === "stored"
      ? Prisma.sql`(SELECT b.volume_id, b.project_id, sum(b.stored_bytes) AS bytes FROM backups b WHERE ${isWhole} GROUP BY 1, 2)`
      : Prisma.sql`(SELECT NULL::uuid AS volume_id, NULL::text AS project_id, 0 AS bytes WHERE false)`;
  const all = await database.$queryRaw<(ListedProtection & { facets: Record<string, number> })[]>`
    WITH RECURSIVE volume AS MATERIALIZED (
      SELECT one.*, v.name, v.size_bytes AS "sizeBytes", coalesce(stored.bytes, 0) AS "storedBytes"
      FROM (${statesOf(config, seesAll(principal) ? null : principal.projectId)}) one JOIN volumes v ON v.id = one.id
      LEFT JOIN ${stored} stored ON stored.volume_id = v.id AND stored.project_id = v.project_id
      WHERE ${askedOf(query)}
    ), counted AS (
      SELECT coalesce(jsonb_object_agg(state, volumes), '{}') AS facets FROM (SELECT state, count(*) AS volumes FROM volume GROUP BY state) s
    ), page AS MATERIALIZED (
      SELECT id, row_number() OVER (ORDER BY ${key}, id) AS place
      FROM volume WHERE ${state === undefined ? Prisma.sql`true` : Prisma.sql`state = ${state}`} AND ${after}
      ORDER BY ${key}, id LIMIT ${limit}
    ), judged AS MATERIALIZED (${judgedVolumes(config, Prisma.sql`v.id IN (SELECT id FROM page)`)}
    ), up AS (
      SELECT j.id AS of, b.id, b.parent_id, 0 AS depth FROM judged j JOIN backups b ON b.id = j."goodId"
      UNION ALL
      SELECT u.of, b.id, b.parent_id, u.depth + 1 FROM up u JOIN backups b ON b.id = u.parent_id WHERE b.deleted_at IS NULL
    ) CYCLE id SET looped USING walked
    SELECT judged.*, counted.facets, machine.id AS "machineId", machine.name AS "machineName", sums.points, sums."storedBytes",
      (SELECT max(depth) FROM up WHERE up.of = judged.id AND NOT looped) AS "chainDepth"
    FROM counted LEFT JOIN (page JOIN judged USING (id)) ON true
    LEFT JOIN LATERAL (
      SELECT count(*)::int AS points, coalesce(sum(b.stored_bytes), 0)::float8 AS "storedBytes" FROM backups b
      WHERE b.volume_id = judged.id AND b.project_id = judged."projectId" AND ${isWhole}) sums ON true
    LEFT JOIN LATERAL (
      SELECT i.id, i.name FROM attachments a JOIN instances i ON i.id::text = a.server_id AND i.project_id = a.project_id
      WHERE a.volume_id = judged.id AND a.project_id = judged."projectId" ORDER BY i.id LIMIT 1) machine ON true
    ORDER BY page.place`;
  const counts = all[0]?.facets ?? {};
  const facets = Object.fromEntries(protectionStates.map((one) => [one, counts[one] ?? 0]));
  return { rows: all.filter(({ id }) => id !== null), facets: facets as Record<ProtectionState, number> };
}

/** How protected these volumes are, in any order. */
export const judgeVolumes = (database: Database, config: Config, ids: readonly string[]): Promise<ProtectionRow[]> =>
  database.$queryRaw<ProtectionRow[]>`${judgedVolumes(config, Prisma.sql`v.id = ANY(${[...ids]}::uuid[])`)}`;

/** @throws NotFoundError */
export async function getProtection(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
): Promise<ProtectionRow> {
  const volume = await findVolume(database, principal, id);
  const [row] = await judgeVolumes(database, config, [volume.id]);
  return row ?? Promise.reject(new Error(`volume ${id} went meanwhile`));
}

/** Counts of volumes by state: of one project, or of all (null). */
export async function countProtection(
  database: Database,
  config: Config,
  projectId: string | null = null,
): Promise<Record<ProtectionState, number>> {
  const rows = await database.$queryRaw<{ state: ProtectionState; volumes: number }[]>`
    SELECT state, count(*)::int AS volumes FROM (${statesOf(config, projectId)}) volume GROUP BY state`;
  const found = protectionStates.map((one) => [one, rows.find(({ state }) => state === one)?.volumes ?? 0]);
  return Object.fromEntries(found) as Record<ProtectionState, number>;
}

/** Counts of volumes that are late, and that never were backed up, of each project that has volumes. */
export async function countProtectionByProject(
  database: Database,
  config: Config,
): Promise<Map<string, { late: number; never: number }>> {
  const rows = await database.$queryRaw<{ projectId: string; late: number; never: number }[]>`
    SELECT "projectId", count(*) FILTER (WHERE state = 'late')::int AS late, count(*) FILTER (WHERE state = 'never')::int AS never
    FROM (${statesOf(config, null)}) volume GROUP BY "projectId"`;
  return new Map(rows.map(({ projectId, ...counts }) => [projectId, counts]));
}

/**
 * Takes a volume out of what is backed up by policies, on purpose: it is counted apart. An earlier exclusion is replaced.
 *
 * @param until null: until it is taken back
 * @throws NotFoundError, InvalidError
 */
export async function excludeVolume(
  database: Database,
  principal: Principal,
  id: string,
  { reason, until }: { reason: string; until: Date | null },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await findVolume(tx, principal, id);
    if (until !== null && until <= (await readClock(tx))) {
      throw refusalOf([{ key: "until", problem: "is in the past" }]);
    }
    const exclusion = { reason, until, userId: principal.userId };
    await tx.volumeExclusion.upsert({
      where: { volumeId: volume.id },
      create: { volumeId: volume.id, ...exclusion },
      update: exclusion,
    });
    await noteAudit(tx, principal, {
      resource: "volume",
      resourceId: volume.id,
      projectId: volume.projectId,
      to: "excluded",
      reason,
    });
  });
}

/** Takes an exclusion back; a volume that is not excluded is no error. @throws NotFoundError */
export async function includeVolume(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await findVolume(tx, principal, id);
    const removed = await tx.volumeExclusion.deleteMany({ where: { volumeId: volume.id } });
    if (removed.count === 0) return;
    const included = {
      resource: "volume",
      resourceId: volume.id,
      projectId: volume.projectId,
      to: "included",
    } as const;
    await noteAudit(tx, principal, { ...included, reason: null });
  });
}
