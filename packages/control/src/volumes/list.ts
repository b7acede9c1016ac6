import type { Database, Prisma } from "../db/database.ts";
import { isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { type BoundedPage, pageBytesMax, readToPageBytes } from "../db/page-bytes.ts";
import { type Principal, projectOf } from "../principal.ts";
import { getVolume, type VolumeRow } from "../rows/volumes.ts";

export type VolumeSortKey =
  | "id"
  | "createdAt"
  | "updatedAt"
  | "name"
  | "description"
  | "status"
  | "sizeGib"
  | "userId"
  | "projectId"
  | "snapshotId"
  | "sourceVolumeId"
  | "availabilityZone"
  | "bootable"
  | "launchedAt";

/** A time to compare a column with. */
export interface TimeCondition {
  operator: "gt" | "gte" | "lt" | "lte" | "equals" | "not";
  time: Date;
}

export interface VolumeFilter {
  name?: Prisma.StringNullableFilter | string;
  description?: Prisma.StringNullableFilter | string;
  status?: Prisma.StringFilter | string;
  id?: string;
  snapshotId?: string;
  sourceVolumeId?: string;
  groupId?: string;
  sizeGib?: number;
  bootable?: boolean;
  availabilityZone?: Prisma.StringFilter | string;
  userId?: string;
  /** For an admin who lists all projects; otherwise the caller's own project is used. */
  projectId?: string;
  /** Pairs that must all match. */
  metadata?: Readonly<Record<string, string>>;
  /** Conditions that must all hold. */
  createdAt?: readonly TimeCondition[];
  updatedAt?: readonly TimeCondition[];
}

/** One page; `count` of all pages only where asked for. @throws NotFoundError when the marker is unknown or another project's */
export async function listVolumes(
  database: Database,
  principal: Principal,
  query: { filter: VolumeFilter; allProjects: boolean; withCount: boolean; page: Page<VolumeSortKey> },
): Promise<BoundedPage<VolumeRow> & { count: number }> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getVolume(database, principal, page.marker);
  const ids = [filter.id, filter.snapshotId, filter.sourceVolumeId, filter.groupId];
  if (ids.some((id) => id !== undefined && !isUuid(id))) return { rows: [], cut: false, count: 0 };
  const { metadata, createdAt, updatedAt, ...columns } = filter;
  const where: Prisma.VolumeWhereInput = {
    ...columns,
    ...projectOf(principal, query.allProjects),
    AND: [
      ...havingMetadata(metadata),
      ...(createdAt ?? []).map(({ operator, time }) => ({ createdAt: { [operator]: time } })),
      ...(updatedAt ?? []).map(({ operator, time }) => ({ updatedAt: { [operator]: time } })),
    ],
  };
  const [rows, count] = await Promise.all([
    database.volume.findMany({
      where,
      orderBy: orderOf(page),
      ...windowOf(page),
      omit: { metadata: true },
      include: { attachments: true },
    }),
    query.withCount ? database.volume.count({ where }) : 0,
  ]);
  return { ...(await readToPageBytes(database, rows, "volumes.metadata", "metadata")), count };
}

/** Conditions that a row's metadata contains all of these pairs. */
export function havingMetadata(
  pairs: Readonly<Record<string, string>> = {},
): { metadata: { path: string[]; equals: string } }[] {
  return Object.entries(pairs).map(([key, equals]) => ({ metadata: { path: [key], equals } }));
}

/** The number of volumes, their total size, and the values of their metadata by key: as many keys as fit into the bytes of a page. */
export async function summarizeVolumes(
  database: Database,
  principal: Principal,
  query: { allProjects: boolean },
): Promise<{ count: number; sizeGib: number; metadata: Record<string, string[]> }> {
  const where = projectOf(principal, query.allProjects);
  const project = where.projectId ?? null;
  const [sums, pairs] = await Promise.all([
    database.volume.aggregate({ where, _count: true, _sum: { sizeGib: true } }),
    database.$queryRaw<{ key: string; values: string[] }[]>`
      SELECT key, values FROM (
        SELECT m.key, array_agg(DISTINCT m.value ORDER BY m.value) AS values,
          sum(sum(octet_length(m.key) + octet_length(m.value))) OVER (ORDER BY m.key) AS bytes
        FROM volumes v, jsonb_each_text(v.metadata) m WHERE ${project}::text IS NULL OR v.project_id = ${project}
        GROUP BY m.key) pairs
      WHERE bytes <= ${pageBytesMax} ORDER BY key`,
  ]);
  const metadata = Object.fromEntries(pairs.map(({ key, values }) => [key, values]));
  return { count: sums._count, sizeGib: sums._sum.sizeGib ?? 0, metadata };
}
