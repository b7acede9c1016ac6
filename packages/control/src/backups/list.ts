import type { Database } from "../db/database.ts";
import { Prisma } from "../db/database.ts";
import { afterMarker, equalText, isUuid, orderSql, type Page, type SqlColumns } from "../db/listing.ts";
import { type BoundedPage, pageBytesMax } from "../db/page-bytes.ts";
import { readRows } from "../db/read.ts";
import { NotFoundError } from "../errors.ts";
import { mayLook, type Principal, projectOf } from "../principal.ts";
import { type BackupRow, getBackup } from "../rows/backups.ts";

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

/** SQL: the condition on one column; null where no row can match it. */
function conditionOf({ column, value, like }: BackupFilter): Prisma.Sql | null {
  const [form] = columns[column];
  const name = Prisma.raw(columns[column][1]);
  if (like) return Prisma.sql`${name}::text ILIKE ${`%${value}%`}`;
  switch (form) {
    case "text":
      return Prisma.sql`${name} ILIKE ${equalText(value).equals}`;
    case "word":
      return Prisma.sql`${name} = ${value.toLowerCase()}`;
    case "uuid":
      return isUuid(value) ? Prisma.sql`${name} = ${value}::uuid` : null;
    case "number":
      return /^\d{1,9}$/.test(value) ? Prisma.sql`${name} = ${Number(value)}::int` : null;
    case "time": {
      const time = new Date(`${value}Z`);
      return Number.isNaN(time.getTime()) ? null : Prisma.sql`${name} = ${time}::timestamptz`;
    }
    default:
      return form satisfies never;
  }
}

const typeOf = { uuid: "uuid", text: "text", word: "text", number: "int", time: "timestamptz" } as const;
const sortColumns = Object.fromEntries(
  Object.entries(columns).map(([key, [form, name]]) => [key, { name, type: typeOf[form] }]),
) as SqlColumns<BackupColumn>;

type Derived = "metadata" | "hasDependents";
/** What can be asked of a backup, or of each in a list. */
export type BackupField = BackupColumn | Derived;

const isDerived = (field: BackupField): field is Derived => field === "metadata" || field === "hasDependents";

/** SQL: these fields; of `metadata` and `hasDependents` what a page or a single backup has instead of a column. */
const selectOf = (fields: readonly BackupField[], derived: Readonly<Record<Derived, string>>): Prisma.Sql =>
  Prisma.raw(
    fields.map((field) => `${isDerived(field) ? derived[field] : columns[field][1]} AS "${field}"`).join(", "),
  );

/** Of the rows `page`, chosen as `chosen`. */
const ofPage = {
  metadata: "CASE WHEN told THEN metadata END",
  // Asked for all rows at once: one by one, each would cost a scan of the table until that has been analysed.
  hasDependents:
    "id IN (SELECT parent_id FROM backups WHERE parent_id = ANY(ARRAY(SELECT id FROM chosen)) AND deleted_at IS NULL)",
};

const ofOne = {
  metadata: "metadata",
  hasDependents: "EXISTS (SELECT FROM backups child WHERE child.parent_id = backups.id AND child.deleted_at IS NULL)",
};

/**
 * These fields of one backup: each column that nobody reads costs, too.
 *
 * @throws NotFoundError for an unknown id or another project's
 */
export async function showBackup<Field extends BackupField>(
  database: Database,
  principal: Principal,
  { id, fields }: { id: string; fields: readonly Field[] },
): Promise<Pick<BackupRow, Field | "projectId">> {
  const selected = selectOf([...new Set<BackupField>(["projectId", ...fields])], ofOne);
  const [backup] = isUuid(id)
    ? await readRows<Pick<BackupRow, Field | "projectId">>(
        database,
        Prisma.sql`SELECT ${selected} FROM backups WHERE id = ${id}::uuid AND deleted_at IS NULL`,
      )
    : [];
  if (!backup || !mayLook(principal, backup)) throw new NotFoundError("Backup", id);
  return backup;
}

/**
 * One page, of each backup these fields; `count` of all pages only where asked for. One statement: a list is asked for again and again, and
 * each further one, and each column that nobody reads, costs as much as the rest of the request.
 *
 * @throws NotFoundError when the marker is unknown or another project's
 */
export async function listBackups<Field extends BackupField>(
  database: Database,
  principal: Principal,
  query: {
    fields: readonly Field[];
    filters: readonly BackupFilter[];
    allProjects: boolean;
    withCount: boolean;
    page: Page<BackupColumn>;
  },
): Promise<BoundedPage<Pick<BackupRow, Field | "id">> & { count: number }> {
  const { fields, filters, page } = query;
  const marker = page.marker === undefined ? null : await getBackup(database, principal, page.marker);
  const { projectId } = projectOf(principal, query.allProjects);
  const conditions = [Prisma.sql`deleted_at IS NULL`];
  if (projectId !== undefined) conditions.push(Prisma.sql`project_id = ${projectId}`);
  for (const filter of filters) {
    const condition = conditionOf(filter);
    if (condition === null) return { rows: [], cut: false, count: 0 };
    conditions.push(condition);
  }
  const where = Prisma.join(conditions, " AND ");
  const beyond = marker ? Prisma.sql` AND ${afterMarker(page, sortColumns, marker)}` : Prisma.empty;
  // All of these rows have the same value; naming the column makes the order that of the index, so that a page costs no more with many
  // backups.
  const first = Prisma.raw(`deleted_at ${page.sort[0]?.direction ?? "desc"}`);
  const order = Prisma.sql`${first}, ${orderSql(page, sortColumns)}`;
  const bytes = Prisma.sql`sum(octet_length(metadata::text)) OVER (ORDER BY ${order} ROWS UNBOUNDED PRECEDING)`;
  const told = fields.some((field) => field === "metadata")
    ? Prisma.sql`row_number() OVER (ORDER BY ${order}) = 1 OR ${bytes} <= ${pageBytesMax}`
    : Prisma.sql`true`;
  const selected = selectOf([...new Set<BackupField>(["id", ...fields])], ofPage);
  const [rows, [counted]] = await Promise.all([
    readRows<Pick<BackupRow, Field | "id"> & { told: boolean }>(
      database,
      Prisma.sql`WITH chosen AS MATERIALIZED (
        SELECT * FROM backups WHERE ${where}${beyond} ORDER BY ${order} LIMIT ${page.limit}::bigint OFFSET ${page.offset}::bigint
      )
      SELECT ${selected}, told FROM (SELECT *, ${told} AS told FROM chosen) AS page
      ORDER BY ${order}`,
    ),
    query.withCount
      ? database.$queryRaw<[{ count: number }]>`SELECT count(*)::int AS count FROM backups WHERE ${where}`
      : [{ count: 0 }],
  ]);
  const kept = rows.filter((row) => row.told);
  return { rows: kept, cut: kept.length < rows.length, count: counted.count };
}
