import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import type { InstanceRow } from "../groups/instances.ts";
import { judgeVolumes, type ProtectionRow, type ProtectionState } from "../policies/protection.ts";

export interface MachineFacts {
  /** Of the worst of its disks; null: it has none. */
  protection: { state: ProtectionState; reason: string | null; volumeId: string; lastGoodAt: Date | null } | null;
  /** The newest backup of it as a whole. */
  lastBackup: { id: string; at: Date; consistency: string | null; status: string } | null;
}

/** The worst first; what is excluded on purpose counts only where all is. */
const order: readonly ProtectionState[] = ["never", "late", "at risk", "protected", "excluded"];

const worstOf = (rows: readonly ProtectionRow[]): ProtectionRow | null =>
  rows.toSorted((one, other) => order.indexOf(one.state) - order.indexOf(other.state))[0] ?? null;

/** How protected machines are, and when each was last backed up: in the order of the rows. */
export async function readMachineFacts(
  database: Database,
  config: Config,
  rows: readonly InstanceRow[],
): Promise<MachineFacts[]> {
  const groups = rows.flatMap(({ group }) => group?.id ?? []);
  const [judged, backups] = await Promise.all([
    judgeVolumes(
      database,
      config,
      rows.flatMap(({ disks }) => disks.map(({ volumeId }) => volumeId)),
    ),
    database.$queryRaw<{ groupId: string; id: string; at: Date; consistency: string | null; status: string }[]>`
      SELECT DISTINCT ON (group_id) group_id AS "groupId", id, coalesce(taken_at, created_at) AS at, consistency, status FROM group_snapshots
      WHERE group_id = ANY(${groups}::uuid[]) AND ovf IS NULL AND preview_of_id IS NULL
        AND EXISTS (SELECT FROM backups b WHERE b.group_snapshot_id = group_snapshots.id)
      ORDER BY group_id, created_at DESC, id DESC`,
  ]);
  const byVolume = new Map(judged.map((row) => [row.id, row]));
  const byGroup = new Map(backups.map(({ groupId, ...backup }) => [groupId, backup]));
  return rows.map(({ projectId, disks, group }) => {
    const own = disks
      .flatMap(({ volumeId }) => byVolume.get(volumeId) ?? [])
      .filter((row) => row.projectId === projectId);
    const worst = worstOf(own);
    return {
      protection: worst && { state: worst.state, reason: worst.reason, volumeId: worst.id, lastGoodAt: worst.goodAt },
      lastBackup: (group && byGroup.get(group.id)) ?? null,
    };
  });
}
