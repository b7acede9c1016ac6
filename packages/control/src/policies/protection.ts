import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma } from "../db/database.ts";
import { noteAudit } from "../events/audit.ts";
import { type Principal, seesAll } from "../principal.ts";
import { readClock } from "../rows/policies.ts";
import { findVolume } from "../rows/volumes.ts";
import { candidatesOf } from "./applies.ts";
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

/** SQL: a query of `ProtectionRow` with `created_at` of the volumes for which the condition on `v` holds. */
const judgedVolumes = ({ protection }: Config, volumes: Prisma.Sql): Prisma.Sql => Prisma.sql`
  WITH RECURSIVE damaged AS (
    SELECT id FROM backups WHERE damage IS NOT NULL AND deleted_at IS NULL
    UNION
    SELECT b.id FROM backups b JOIN damaged d ON b.parent_id = d.id WHERE b.deleted_at IS NULL
  ), applied AS (
    SELECT DISTINCT ON (volume_id) volume_id, policy_id FROM (${candidatesOf(volumes)}) candidates ORDER BY volume_id, place
  ), known AS (
    SELECT v.id, v.name, v.project_id AS "projectId", v.size_bytes AS "sizeBytes", v.status, v.backend, v.created_at,
      good.id AS "goodId", good.data_timestamp AS "goodAt", good.verified_at AS "verifiedAt",
      good.verified_mode AS "verifiedMode", newest.id AS "tryId", newest.status AS "tryStatus", newest.created_at AS "tryAt",
      newest.fail_reason, whole.id IS DISTINCT FROM good.id AS spoilt,
      coalesce(p.target_hours, ${protection.target_hours}::int) AS "targetHours", p.id AS "policyId", p.name AS "policyName",
      p.next_at AS "nextAt", e.reason AS "excludedReason", e.until AS "excludedUntil", e.volume_id IS NOT NULL AS excluded
    FROM volumes v
    LEFT JOIN applied a ON a.volume_id = v.id
    LEFT JOIN policies p ON p.id = a.policy_id
    LEFT JOIN volume_exclusions e ON e.volume_id = v.id AND (e.until IS NULL OR e.until > now())
    LEFT JOIN LATERAL (
      SELECT b.id, b.data_timestamp, b.verified_at, b.verified_mode FROM backups b
      WHERE b.volume_id = v.id AND b.project_id = v.project_id AND b.deleted_at IS NULL AND b.status IN ('available', 'restoring')
        AND b.id NOT IN (SELECT id FROM damaged)
      ORDER BY b.data_timestamp DESC, b.created_at DESC LIMIT 1) good ON true
    LEFT JOIN LATERAL (
      SELECT b.id FROM backups b
      WHERE b.volume_id = v.id AND b.project_id = v.project_id AND b.deleted_at IS NULL AND b.status IN ('available', 'restoring')
      ORDER BY b.data_timestamp DESC, b.created_at DESC LIMIT 1) whole ON true
    LEFT JOIN LATERAL (
      SELECT b.id, b.status, b.created_at, b.fail_reason FROM backups b
      WHERE b.volume_id = v.id AND b.project_id = v.project_id AND b.deleted_at IS NULL
      ORDER BY b.created_at DESC LIMIT 1) newest ON true
    WHERE ${volumes}
  ), judged AS (
    SELECT *, CASE
      WHEN excluded THEN 'excluded'
      WHEN "goodAt" IS NULL THEN 'never'
      WHEN "goodAt" < now() - "targetHours" * interval '1 hour' THEN 'late'
      WHEN "tryStatus" = 'error' OR spoilt THEN 'at risk'
      ELSE 'protected' END AS state
    FROM known
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

const seenBy = (principal: Principal): Prisma.Sql =>
  seesAll(principal) ? Prisma.sql`true` : Prisma.sql`v.project_id = ${principal.projectId}`;

export interface ProtectionQuery {
  state?: ProtectionState;
  /** Id of the last volume of the previous page. */
  marker?: string;
  limit: number;
}

/** How protected volumes are, oldest good backup first, those without one before; and how many are in each state. */
export async function listProtection(
  database: Database,
  config: Config,
  principal: Principal,
  { state, marker, limit }: ProtectionQuery,
): Promise<{ rows: ProtectionRow[]; facets: Record<ProtectionState, number> }> {
  const all = await database.$queryRaw<(ProtectionRow & { facets: Record<string, number> })[]>`
    WITH volume AS MATERIALIZED (${judgedVolumes(config, seenBy(principal))}), counted AS (
      SELECT coalesce(jsonb_object_agg(state, volumes), '{}') AS facets FROM (SELECT state, count(*) AS volumes FROM volume GROUP BY state) s
    ), page AS (
      SELECT * FROM volume WHERE ${state === undefined ? Prisma.sql`true` : Prisma.sql`state = ${state}`}
        AND ${
          marker === undefined
            ? Prisma.sql`true`
            : Prisma.sql`(coalesce("goodAt", '-infinity'), id) > (SELECT coalesce("goodAt", '-infinity'), id FROM volume WHERE id = ${marker}::uuid)`
        }
      ORDER BY coalesce("goodAt", '-infinity'), id LIMIT ${limit}
    )
    SELECT page.*, counted.facets FROM counted LEFT JOIN page ON true ORDER BY coalesce("goodAt", '-infinity'), id`;
  const counts = all[0]?.facets ?? {};
  const facets = Object.fromEntries(protectionStates.map((one) => [one, counts[one] ?? 0]));
  return { rows: all.filter(({ id }) => id !== null), facets: facets as Record<ProtectionState, number> };
}

/** @throws NotFoundError */
export async function getProtection(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
): Promise<ProtectionRow> {
  const volume = await findVolume(database, principal, id);
  const [row] = await database.$queryRaw<
    ProtectionRow[]
  >`${judgedVolumes(config, Prisma.sql`v.id = ${volume.id}::uuid`)}`;
  return row ?? Promise.reject(new Error(`volume ${id} went meanwhile`));
}

/** Counts of volumes by state: of one project, or of all (null). */
export async function countProtection(
  database: Database,
  config: Config,
  projectId: string | null = null,
): Promise<Record<ProtectionState, number>> {
  const asked = projectId === null ? Prisma.sql`true` : Prisma.sql`v.project_id = ${projectId}`;
  const rows = await database.$queryRaw<{ state: ProtectionState; volumes: number }[]>`
    SELECT state, count(*)::int AS volumes FROM (${judgedVolumes(config, asked)}) volume GROUP BY state`;
  const found = protectionStates.map((one) => [one, rows.find(({ state }) => state === one)?.volumes ?? 0]);
  return Object.fromEntries(found) as Record<ProtectionState, number>;
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
