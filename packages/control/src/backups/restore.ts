import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { startOperation } from "../queue/operations.ts";
import { needToRead } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { getBackup, lockBackup } from "../rows/backups.ts";
import { chainRepositories } from "../rows/chains.ts";
import { lockForNewVolume } from "../rows/groups.ts";
import { move } from "../rows/move.ts";
import { reserveQuota } from "../rows/quotas.ts";
import type { Volume } from "../rows/volumes.ts";
import { addRestoreVolume, GiB, getVolume, moveVolume, type NewVolume, type VolumeRow } from "../rows/volumes.ts";

export interface AcceptedRestore {
  backupId: string;
  volumeId: string;
  volumeName: string | null;
}

const availableOnly = "Backup status must be available";

/** What any restore of it would be refused with now, whatever the target; null: nothing. */
export const whyNotRestored = ({ status }: { status: string }): string | null =>
  status === "available" ? null : availableOnly;

/**
 * Accepts a restore to `volumeId`, or to a new volume of the source's length (cinder-api 6.7).
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestRestore(
  database: Database,
  config: Config,
  principal: Principal,
  request: { backupId: string; volumeId: string | null; name: string | null },
): Promise<AcceptedRestore> {
  return inTransaction(database, async (tx) => {
    const seen = await getBackup(tx, principal, request.backupId);
    const refused = whyNotRestored(seen);
    if (refused !== null) throw new InvalidError("backup", refused);
    const volume = request.volumeId === null ? null : await claimTarget(tx, principal, seen, request.volumeId);
    if (!volume) await reserveQuota(tx, config, principal.projectId, { volumes: 1, gigabytes: seen.sizeGib });
    const target =
      volume ??
      (await addRestoreVolume(tx, config, principal, {
        name: request.name ?? `restore_backup_${seen.id}`,
        description: "auto-created_from_restore_from_backup",
        metadata: {},
        status: "restoring-backup",
        sizeGib: seen.sizeGib,
        sizeBytes: seen.volumeBytes ?? 0n,
      }));
    await startRestore(tx, principal, { backupId: seen.id, target, newVolume: volume === null });
    return { backupId: seen.id, volumeId: target.id, volumeName: target.name };
  });
}

/**
 * A new volume with a backup's bytes, `creating` until they are there (cinder-api 7.2).
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestVolumeFromBackup(
  database: Database,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number | null; backupId: string },
): Promise<VolumeRow> {
  return inTransaction(database, async (tx) => {
    const backup = await getBackup(tx, principal, volume.backupId);
    if (backup.status !== "available") {
      throw new InvalidError("backup", "Originating backup status must be one of 'available' values");
    }
    const sizeGib = volume.sizeGib ?? backup.sizeGib;
    const refused = sizeRefusal(sizeGib, backup);
    if (refused !== null) throw new InvalidError("input", refused);
    await reserveQuota(tx, config, principal.projectId, { volumes: 1, gigabytes: sizeGib });
    if (volume.groupId) await lockForNewVolume(tx, principal, volume.groupId);
    // A volume of odd length is restored at its exact length; only one that was requested larger gets the full size in GiB.
    const sizeBytes = sizeGib > backup.sizeGib ? BigInt(sizeGib) * BigInt(GiB) : (backup.volumeBytes ?? 0n);
    const target = await addRestoreVolume(tx, config, principal, { ...volume, status: "creating", sizeGib, sizeBytes });
    await startRestore(tx, principal, { backupId: backup.id, target, newVolume: true });
    return target;
  });
}

/**
 * Sets the backup to `restoring` and adds the operation that fills `target`. As part of the operation `parentId` it leaves the private file
 * for that one to publish.
 *
 * @throws InvalidError unless the backup is available
 */
export async function startRestore(
  tx: Transaction,
  principal: Principal,
  restore: { backupId: string; target: Volume; newVolume: boolean; parentId?: string },
): Promise<void> {
  const { target, newVolume, parentId = null } = restore;
  const backup = await lockBackup(tx, restore.backupId);
  if (backup?.status !== "available") throw new InvalidError("backup", availableOnly);
  const step = { from: "available", to: "restoring" } as const;
  await move(tx, "backup", { id: backup.id }, step, { restoreVolumeId: target.id });
  const repositories = await chainRepositories(tx, backup.id);
  // What the volume holds is known again once the restore has succeeded.
  if (!newVolume) {
    await tx.volume.update({ where: { id: target.id }, data: { restoredFromId: null, restoredAt: null } });
  }
  await startOperation(tx, principal, {
    kind: "backup-restore",
    projectId: backup.projectId,
    backupId: backup.id,
    volumeId: target.id,
    parentId,
    bytesTotal: backup.volumeBytes ?? 0n,
    input: { newVolume },
    task: {
      kind: "plan-restore",
      needs: [...repositories.map(needToRead), `backend:${target.backend}`],
    },
  });
}

async function claimTarget(
  tx: Transaction,
  principal: Principal,
  backup: Backup,
  volumeId: string,
): Promise<VolumeRow> {
  const volume = await getVolume(tx, principal, volumeId);
  const refused = targetRefusal(volume, backup);
  if (refused !== null) throw new InvalidError("volume", refused);
  await moveVolume(tx, volume.id, ["available"], "restoring-backup", () => new InvalidError("volume", notAvailable));
  return volume;
}

const notAvailable = "Volume to be restored to must be available";

/** Why the backup cannot be restored over the volume; null: it can. */
export function targetRefusal(volume: Volume, backup: Backup): string | null {
  if (volume.status !== "available") return notAvailable;
  if (volume.sizeGib < backup.sizeGib) {
    return `volume size ${volume.sizeGib} is too small to restore backup of size ${backup.sizeGib}.`;
  }
  if (backup.volumeBytes !== null && volume.sizeBytes < backup.volumeBytes) {
    return `volume of ${volume.sizeBytes} bytes is too small to restore backup of ${backup.volumeBytes} bytes.`;
  }
  return null;
}

/** Why a new volume cannot be as short as this; null: it can. */
export const sizeRefusal = (sizeGib: number, backup: Backup): string | null =>
  sizeGib >= backup.sizeGib
    ? null
    : `Volume size ${sizeGib}GB cannot be smaller than the backup size ${backup.sizeGib}GB. It must be >= backup size.`;
