import { type Database, Prisma } from "../db/database.ts";
import { isUuid, matching } from "../db/listing.ts";
import { isLiveOperation } from "../db/live.ts";
import { NotFoundError } from "../errors.ts";
import { mayLook, type Principal, seesAll } from "../principal.ts";

/** A backup as lists show it. */
export interface ListedBackup {
  id: string;
  name: string | null;
  projectId: string;
  volumeId: string;
  volumeName: string | null;
  volumeGone: boolean;
  /** The machine that the volume is attached to. */
  machineId: string | null;
  machineName: string | null;
  status: string;
  parentId: string | null;
  /** How many it builds on. */
  depth: number;
  dataTimestamp: Date;
  createdAt: Date;
  volumeBytes: bigint | null;
  storedBytes: bigint | null;
  objectCount: number;
  repository: string;
  encrypted: boolean;
  damage: string | null;
  /** Neither it nor what it builds on is damaged. */
  sound: boolean;
  verifiedAt: Date | null;
  verifiedMode: string | null;
  failReason: string | null;
  /** What is being done with it. */
  operationId: string | null;
  holdUntil: Date | null;
  holdReason: string | null;
  policyId: string | null;
  /** Live incrementals build on it. */
  hasDependents: boolean;
}

/** When a backup was last verified: within 7 days, within 30, before, never. */
export const proofAges = ["week", "month", "older", "never"] as const;
export type ProofAge = (typeof proofAges)[number];

const proofAge = Prisma.sql`CASE WHEN b.verified_at IS NULL THEN 'never' WHEN b.verified_at > now() - interval '7 days' THEN 'week'
  WHEN b.verified_at > now() - interval '30 days' THEN 'month' ELSE 'older' END`;

/** What a list can be sorted by, and its direction. The id makes an order of rows that are equal. */
const orders = {
  newest: [Prisma.sql`b.created_at`, "DESC"],
  oldest: [Prisma.sql`b.created_at`, "ASC"],
  as_of: [Prisma.sql`b.data_timestamp`, "DESC"],
  name: [Prisma.sql`lower(coalesce(b.name, ''))`, "ASC"],
  size: [Prisma.sql`coalesce(b.volume_bytes, -1)`, "DESC"],
  stored: [Prisma.sql`coalesce(b.stored_bytes, -1)`, "DESC"],
} as const satisfies Record<string, readonly [Prisma.Sql, "ASC" | "DESC"]>;
export type BackupOrder = keyof typeof orders;

/** What is asked for; null: everything. Of several statuses, repositories or ages any. */
export interface BackupsQuery {
  statuses: readonly string[] | null;
  repositories: readonly string[] | null;
  proofs: readonly ProofAge[] | null;
  volumeId: string | null;
  policyId: string | null;
  /** A part of the name, or how the id begins. */
  text: string | null;
  /** Only those that are damaged themselves. */
  isDamaged: boolean;
  /** Only those whose volume is gone. */
  isOrphan: boolean;
  /** The moment that it is a backup of: from, inclusive, and to, exclusive. */
  from: Date | null;
  to: Date | null;
}

const all = Prisma.sql`true`;

const seenBy = (principal: Principal): Prisma.Sql =>
  seesAll(principal) ? all : Prisma.sql`b.project_id = ${principal.projectId}`;

const among = (column: Prisma.Sql, values: readonly string[] | null): Prisma.Sql =>
  values === null ? all : Prisma.sql`${column} = ANY(${[...values]}::text[])`;

/** SQL: the filters beside those that have facets. */
function othersOf(principal: Principal, query: BackupsQuery): Prisma.Sql {
  const { volumeId, policyId, text, isDamaged, isOrphan, from, to } = query;
  const conditions = [
    Prisma.sql`b.deleted_at IS NULL`,
    seenBy(principal),
    volumeId === null ? all : Prisma.sql`b.volume_id = ${volumeId}::uuid`,
    policyId === null ? all : Prisma.sql`b.policy_id = ${policyId}::uuid`,
    text === null ? all : matching("b", text),
    isDamaged ? Prisma.sql`b.damage IS NOT NULL` : all,
    isOrphan ? Prisma.sql`NOT EXISTS (SELECT FROM volumes v WHERE v.id = b.volume_id)` : all,
    from === null ? all : Prisma.sql`b.data_timestamp >= ${from}`,
    to === null ? all : Prisma.sql`b.data_timestamp < ${to}`,
  ];
  return Prisma.join(conditions, " AND ");
}

/** SQL: the filters that have facets. */
const facetsOf = ({ statuses, repositories, proofs }: BackupsQuery): Prisma.Sql =>
  Prisma.sql`${among(Prisma.sql`b.status`, statuses)} AND ${among(Prisma.sql`b.repository`, repositories)} AND ${among(proofAge, proofs)}`;

/** SQL: the rows of `ListedBackup` of the backups in `page` (`id`, `place`), in the order of their places. */
const listed = (page: Prisma.Sql): Prisma.Sql => Prisma.sql`
  WITH RECURSIVE page AS MATERIALIZED (${page}), up AS (
    SELECT b.id AS of, b.id, b.parent_id, 0 AS depth, b.damage IS NOT NULL AS damaged FROM page JOIN backups b USING (id)
    UNION ALL
    SELECT u.of, b.id, b.parent_id, u.depth + 1, b.damage IS NOT NULL FROM up u JOIN backups b ON b.id = u.parent_id
    WHERE b.deleted_at IS NULL
  ) CYCLE id SET looped USING walked, chains AS (
    SELECT of, max(depth) AS depth, NOT bool_or(damaged) AS sound FROM up WHERE NOT looped GROUP BY of
  )
  SELECT b.id, b.name, b.project_id AS "projectId", b.volume_id AS "volumeId", v.name AS "volumeName", v.id IS NULL AS "volumeGone",
    machine.id AS "machineId", machine.name AS "machineName", b.status, b.parent_id AS "parentId", c.depth,
    b.data_timestamp AS "dataTimestamp", b.created_at AS "createdAt", b.volume_bytes AS "volumeBytes", b.stored_bytes AS "storedBytes",
    b.object_count AS "objectCount", b.repository, b.encryption_key_id IS NOT NULL AS encrypted, b.damage, c.sound,
    b.verified_at AS "verifiedAt", b.verified_mode AS "verifiedMode", b.fail_reason AS "failReason", busy.id AS "operationId",
    b.hold_until AS "holdUntil", b.hold_reason AS "holdReason", b.policy_id AS "policyId",
    EXISTS (SELECT FROM backups child WHERE child.parent_id = b.id AND child.deleted_at IS NULL) AS "hasDependents"
  FROM page JOIN backups b USING (id) JOIN chains c ON c.of = b.id
  LEFT JOIN volumes v ON v.id = b.volume_id AND v.project_id = b.project_id
  LEFT JOIN LATERAL (
    SELECT i.id, i.name FROM attachments a JOIN instances i ON i.id::text = a.server_id AND i.project_id = a.project_id
    WHERE a.volume_id = v.id ORDER BY i.id LIMIT 1) machine ON true
  LEFT JOIN LATERAL (
    SELECT o.id FROM operations o WHERE o.backup_id = b.id AND ${isLiveOperation("o")} ORDER BY o.created_at DESC LIMIT 1) busy ON true
  ORDER BY page.place`;

/**
 * One page of backups that are not deleted.
 *
 * @param marker id of the last one of the page before
 * @throws NotFoundError where it is not there any more, or another project's
 */
export async function browseBackups(
  database: Database,
  principal: Principal,
  query: BackupsQuery & { sort: BackupOrder; marker: string | null; limit: number },
): Promise<ListedBackup[]> {
  const { sort, marker, limit } = query;
  const [key, way] = orders[sort];
  const direction = Prisma.raw(way);
  // All of these rows have the same value; naming the column makes the order that of the index.
  const order = Prisma.sql`b.deleted_at ${direction}, ${key} ${direction}, b.id ${direction}`;
  let after = all;
  if (marker !== null) {
    const [last] = isUuid(marker)
      ? await database.$queryRaw<
          { projectId: string }[]
        >`SELECT project_id AS "projectId" FROM backups WHERE id = ${marker}::uuid`
      : [];
    if (!last || !mayLook(principal, last)) throw new NotFoundError("Backup", marker);
    const beyond = Prisma.raw(way === "DESC" ? "<" : ">");
    after = Prisma.sql`(${key}, b.id) ${beyond} (SELECT ${key}, b.id FROM backups b WHERE b.id = ${marker}::uuid)`;
  }
  return database.$queryRaw<ListedBackup[]>`${listed(Prisma.sql`
    SELECT b.id, row_number() OVER (ORDER BY ${order}) AS place FROM backups b
    WHERE ${othersOf(principal, query)} AND ${facetsOf(query)} AND ${after} ORDER BY ${order} LIMIT ${limit}`)}`;
}

/** One backup. @throws NotFoundError also for another project's */
export async function getListedBackup(database: Database, principal: Principal, id: string): Promise<ListedBackup> {
  const [row] = isUuid(id)
    ? await database.$queryRaw<ListedBackup[]>`${listed(Prisma.sql`
        SELECT b.id, 1 AS place FROM backups b WHERE b.id = ${id}::uuid AND b.deleted_at IS NULL AND ${seenBy(principal)}`)}`
    : [];
  return row ?? Promise.reject(new NotFoundError("Backup", id));
}

/** How many match; and, whatever of these three was asked for, how many of the rest there are by status, repository and proof. */
export interface BackupFacets {
  total: number;
  status: Record<string, number>;
  repository: Record<string, number>;
  proof: Record<ProofAge, number>;
}

export async function countBackups(
  database: Database,
  principal: Principal,
  query: BackupsQuery,
): Promise<BackupFacets> {
  const rows = await database.$queryRaw<
    { status: string | null; repository: string | null; proof: ProofAge | null; count: number; matching: number }[]
  >`
    SELECT status, repository, proof, count(*)::int AS count, count(*) FILTER (WHERE matches)::int AS matching FROM (
      SELECT b.status, b.repository, ${proofAge} AS proof, ${facetsOf(query)} AS matches FROM backups b WHERE ${othersOf(principal, query)}) b
    GROUP BY GROUPING SETS ((), (status), (repository), (proof))`;
  const by = (key: "status" | "repository" | "proof"): Record<string, number> =>
    Object.fromEntries(rows.flatMap((row) => (row[key] === null ? [] : [[row[key], row.count]])));
  const sum = rows.find(({ status, repository, proof }) => status === null && repository === null && proof === null);
  const none = Object.fromEntries(proofAges.map((age) => [age, 0]));
  return {
    total: sum?.matching ?? 0,
    status: by("status"),
    repository: by("repository"),
    proof: { ...none, ...by("proof") } as Record<ProofAge, number>,
  };
}
