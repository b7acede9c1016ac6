import { type Database, Prisma } from "../db/database.ts";
import { type Principal, seesAll } from "../principal.ts";

export type HitType = "volume" | "backup" | "snapshot" | "machine" | "policy" | "operation";

export interface Hit {
  type: HitType;
  id: string;
  /** Of an operation: its kind. */
  name: string | null;
  /** Null: a policy that is published for all. */
  projectId: string | null;
  status: string;
}

const hitsMax = 20;
/** Beyond every character that a name can have. */
const last = "\u{10ffff}";

/** The lowest and the highest UUID that begin with these digits; null where they are none. */
function idsFrom(text: string): { low: string; high: string } | null {
  const digits = text.replaceAll("-", "").toLowerCase();
  if (!/^[0-9a-f]{1,32}$/.test(digits)) return null;
  return { low: digits.padEnd(32, "0"), high: digits.padEnd(32, "f") };
}

/**
 * Whatever has an id or a name that begins so (of names, capitals do not matter), and operations that this request has asked for: at most
 * twenty, of each kind some. What fits exactly comes first. Backups that are deleted are left out.
 */
export async function search(database: Database, principal: Principal, text: string): Promise<Hit[]> {
  const ids = idsFrom(text);
  const own = (table: string): Prisma.Sql =>
    seesAll(principal) ? Prisma.sql`true` : Prisma.sql`${Prisma.raw(table)}.project_id = ${principal.projectId}`;
  const byId = ids ? Prisma.sql`t.id BETWEEN ${ids.low}::uuid AND ${ids.high}::uuid` : Prisma.sql`false`;
  // Ranges by bytes, which an index can answer whatever the plan knows of the text.
  const byName = Prisma.sql`(lower(t.name) ~>=~ lower(${text}) AND lower(t.name) ~<~ (lower(${text}) || ${last}))`;
  const found = (type: HitType, table: string, status: Prisma.Sql, more = Prisma.sql`true`): Prisma.Sql => {
    const [from, columns] = [
      Prisma.raw(table),
      Prisma.sql`${type}::text AS type, t.id, t.name, t.project_id, ${status} AS status`,
    ];
    return Prisma.sql`
      SELECT * FROM (SELECT ${columns} FROM ${from} t WHERE ${byId} AND ${own("t")} AND ${more} LIMIT ${hitsMax}) by_id
      UNION SELECT * FROM (SELECT ${columns} FROM ${from} t WHERE ${byName} AND ${own("t")} AND ${more} LIMIT ${hitsMax}) by_name`;
  };
  const rows = await database.$queryRaw<(Omit<Hit, "projectId"> & { project_id: string | null })[]>`
    WITH found AS (
      ${found("volume", "volumes", Prisma.sql`t.status`)}
      UNION ${found("backup", "backups", Prisma.sql`t.status`, Prisma.sql`t.deleted_at IS NULL`)}
      UNION ${found("snapshot", "snapshots", Prisma.sql`t.status`)}
      UNION ${found("machine", "instances", Prisma.sql`t.power_state`)}
      UNION SELECT * FROM (SELECT 'policy', t.id, t.name, t.project_id, CASE WHEN t.enabled THEN 'enabled' ELSE 'disabled' END FROM policies t
        WHERE (${byId} OR ${byName}) AND (t.project_id IS NULL OR ${own("t")}) LIMIT ${hitsMax}) policies
      UNION SELECT * FROM (SELECT 'operation', t.id, t.kind, t.project_id, t.state FROM operations t
        WHERE ${byId} AND ${own("t")} LIMIT ${hitsMax}) operations
      UNION SELECT * FROM (SELECT 'operation', t.id, t.kind, t.project_id, t.state FROM operations t
        WHERE t.id IN (SELECT a.operation_id FROM audit a WHERE a.request_id = ${text}) AND ${own("t")} LIMIT ${hitsMax}) requested
    ), ranked AS (
      SELECT *, coalesce(lower(name) = lower(${text}), false) OR id::text = lower(${text}) AS exact FROM found
    ), numbered AS (
      SELECT *, row_number() OVER (PARTITION BY type ORDER BY exact DESC, lower(name), id) AS number FROM ranked
    )
    SELECT type, id, name, project_id, status FROM numbered
    ORDER BY exact DESC, number, array_position(ARRAY['volume', 'machine', 'backup', 'snapshot', 'policy', 'operation'], type) LIMIT ${hitsMax}`;
  return rows.map(({ project_id: projectId, ...hit }) => ({ ...hit, projectId }));
}
