import type { Database } from "../db/database.ts";
import { Prisma } from "../db/database.ts";
import { type Principal, seesAll } from "../principal.ts";
import { getBackup } from "../rows/backups.ts";

export interface ChainMember {
  id: string;
  name: string | null;
  projectId: string;
  volumeId: string;
  status: string;
  parentId: string | null;
  /** 0: nothing of its chain is older. */
  depth: number;
  dataTimestamp: Date;
  createdAt: Date;
  volumeBytes: bigint | null;
  storedBytes: bigint | null;
  objectCount: number;
  repository: string;
  damage: string | null;
  /** Neither it nor what it builds on is damaged. */
  sound: boolean;
  verifiedAt: Date | null;
  verifiedMode: string | null;
  /** Whether a restore of the backup that was asked for reads it. */
  isRead: boolean;
}

export interface BackupChain {
  /** Newest first. */
  members: ChainMember[];
  /** What a restore reads; null: something that the backup builds on is gone. */
  restore: { members: number; objects: number; storedBytes: number } | null;
}

/** Chains are shorter, and have few branches. */
const membersMax = 1_000;

/**
 * All that hangs together with a backup: what it builds on, what builds on that, and what a restore of it would read.
 *
 * @throws NotFoundError for an unknown id or another project's
 */
export async function readBackupChain(database: Database, principal: Principal, id: string): Promise<BackupChain> {
  const asked = await getBackup(database, principal, id);
  const own = seesAll(principal) ? Prisma.sql`true` : Prisma.sql`b.project_id = ${principal.projectId}`;
  const members = await database.$queryRaw<ChainMember[]>`
    WITH RECURSIVE up AS (
      SELECT b.id, b.parent_id, 0 AS step FROM backups b WHERE b.id = ${asked.id}::uuid
      UNION ALL
      SELECT b.id, b.parent_id, u.step + 1 FROM backups b JOIN up u ON b.id = u.parent_id WHERE b.deleted_at IS NULL
    ) CYCLE id SET looped USING walked, family AS (
      (SELECT id, 0 AS depth, true AS sound FROM up WHERE NOT looped ORDER BY step DESC LIMIT 1)
      UNION ALL
      SELECT b.id, f.depth + 1, f.sound AND p.damage IS NULL FROM family f JOIN backups p ON p.id = f.id
        JOIN backups b ON b.parent_id = f.id WHERE b.deleted_at IS NULL
    ) CYCLE id SET again USING path
    SELECT b.id, b.name, b.project_id AS "projectId", b.volume_id AS "volumeId", b.status, b.parent_id AS "parentId", f.depth,
      b.data_timestamp AS "dataTimestamp", b.created_at AS "createdAt", b.volume_bytes AS "volumeBytes", b.stored_bytes AS "storedBytes",
      b.object_count AS "objectCount", b.repository, b.damage, f.sound AND b.damage IS NULL AS sound, b.verified_at AS "verifiedAt",
      b.verified_mode AS "verifiedMode", b.id IN (SELECT id FROM up) AS "isRead"
    FROM family f JOIN backups b ON b.id = f.id WHERE NOT f.again AND ${own}
    ORDER BY b.data_timestamp DESC, f.depth DESC, b.id LIMIT ${membersMax}`;
  const read = members.filter(({ isRead }) => isRead);
  const isWhole = read.some(({ parentId }) => parentId === null);
  const restore = {
    members: read.length,
    objects: read.reduce((sum, { objectCount }) => sum + objectCount, 0),
    storedBytes: read.reduce((sum, { storedBytes }) => sum + Number(storedBytes ?? 0n), 0),
  };
  return { members, restore: isWhole ? restore : null };
}
