import type { Database } from "../db/database.ts";
import { Prisma } from "../db/database.ts";
import { containing, equalText, isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { type BoundedPage, readToPageBytes } from "../db/page-bytes.ts";
import { type Principal, projectOf } from "../principal.ts";
import { type BackupRow, getBackup, withDependents } from "../rows/backups.ts";

/** Columns that lists can be sorted and filtered by, with their value types and their names in the database. */
const columns = {
  id: ["uuid", "id"],
  projectId: ["text", "project_id"],
  userId: ["text", "user_id"],
  volumeId: ["uuid", "volume_id"],
  snapshotId: ["uuid", "snapshot_id"],
  parentId: ["uuid", "parent_id"],
  restoreVolumeId: ["uuid", "restore_volume_id"],
  name: ["text", "name"],
  description: ["text", "description"],
  status: ["word", "status"],
  failReason: ["text", "fail_reason"],
  container: ["text", "container"],
  availabilityZone: ["text", "availability_zone"],
  service: ["text", "service"],
  serviceMetadata: ["text", "service_metadata"],
  host: ["text", "host"],
  encryptionKeyId: ["text", "encryption_key_id"],
  sizeGib: ["number", "size_gib"],
  objectCount: ["number", "object_count"],
  createdAt: ["time", "created_at"],
  updatedAt: ["time", "updated_at"],
  dataTimestamp: ["time", "data_timestamp"],
  deletedAt: ["time", "deleted_at"],
} as const satisfies Record<string, readonly ["uuid" | "text" | "word" | "number" | "time", string]>;

export type BackupColumn = keyof typeof columns;

/** Rows whose column equals `value`, ignoring case, or with `like` contains it anywhere: `%` and `_` are SQL wildcards. */
export interface BackupFilter {
  column: BackupColumn;
  value: string;
  like: boolean;
}

/** Most values of a non-text column that a `like` filter may match. */
const valuesMax = 10_000;

async function valuesHolding(database: Database, column: string, part: string): Promise<unknown[]> {
  const name = Prisma.raw(column);
  const rows = await database.$queryRaw<{ value: unknown }[]>`
    SELECT DISTINCT ${name} AS value FROM backups
    WHERE deleted_at IS NULL AND ${name}::text ILIKE ${`%${part}%`} LIMIT ${valuesMax}`;
  return rows.map((row) => row.value);
}

/** Prisma's condition on one column; null where no row can match it. */
async function conditionOf(database: Database, { column, value, like }: BackupFilter): Promise<unknown> {
  const [form, name] = columns[column];
  if (like)
    return form === "text" || form === "word" ? containing(value) : { in: await valuesHolding(database, name, value) };
  switch (form) {
    case "text":
      return equalText(value);
    case "word":
      return value.toLowerCase();
    case "uuid":
      return isUuid(value) ? value : null;
    case "number":
      return /^\d{1,9}$/.test(value) ? Number(value) : null;
    case "time": {
      const time = new Date(`${value}Z`);
      return Number.isNaN(time.getTime()) ? null : time;
    }
    default:
      return form satisfies never;
  }
}

/** One page; `count` of all pages only where asked for. @throws NotFoundError when the marker is unknown or another project's */
export async function listBackups(
  database: Database,
  principal: Principal,
  query: { filters: readonly BackupFilter[]; allProjects: boolean; withCount: boolean; page: Page<BackupColumn> },
): Promise<BoundedPage<BackupRow> & { count: number }> {
  const { filters, page } = query;
  if (page.marker !== undefined) await getBackup(database, principal, page.marker);
  const conditions: Prisma.BackupWhereInput[] = [];
  for (const filter of filters) {
    const condition = await conditionOf(database, filter);
    if (condition === null) return { rows: [], cut: false, count: 0 };
    conditions.push({ [filter.column]: condition });
  }
  const where = { AND: conditions, ...projectOf(principal, query.allProjects), deletedAt: null };
  // All of these rows have the same value; naming the column makes the order that of the index, so that a page costs no more with many
  // backups. A cursor would compare with it.
  const first = page.marker === undefined ? [{ deletedAt: page.sort[0]?.direction ?? "desc" }] : [];
  const [rows, count] = await Promise.all([
    database.backup.findMany({
      where,
      orderBy: [...first, ...orderOf(page)],
      ...windowOf(page),
      omit: { metadata: true },
    }),
    query.withCount ? database.backup.count({ where }) : 0,
  ]);
  const told = await readToPageBytes(database, rows, "backups.metadata", "metadata");
  return { rows: await withDependents(database, told.rows), cut: told.cut, count };
}
