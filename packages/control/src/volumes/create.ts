import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { type Principal, visibleTo } from "../principal.ts";
import type { VolumeSource } from "../queue/documents.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { lockForNewVolume, lockGroupOf, settleGroup } from "../rows/groups.ts";
import { move } from "../rows/move.ts";
import { reserveQuota } from "../rows/quotas.ts";
import {
  addVolume,
  baseRow,
  findVolume,
  GiB,
  type NewVolume,
  requireProvisioning,
  type VolumeRow,
} from "../rows/volumes.ts";
import { assertFree, lockVolumeId } from "./adopt.ts";

/**
 * A new volume of `sizeGib`, empty or with the bytes of a source: quota, row and the task that creates the file commit together. With a
 * source the size may be null, which means the source's. `sizeBytes`: the exact length of an empty one, which counts as whole GiB.
 *
 * @throws NotFoundError, InvalidError for a source in another status or too large; IdTakenError, QuotaExceededError
 */
export async function requestVolume(
  database: Database,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number | null; sizeBytes?: number; source: VolumeSource | null },
): Promise<VolumeRow> {
  return inTransaction(database, async (tx) => {
    if (volume.id !== undefined) {
      await lockVolumeId(tx, volume.id);
      await assertFree(tx, principal.projectId, volume.id);
    }
    const source = volume.source && (await readSource(tx, principal, volume.source));
    const sizeGib = volume.sizeGib ?? source?.sizeGib ?? 0;
    if (source && sizeGib < source.sizeGib) throw new InvalidError("input", source.tooSmall(sizeGib));
    await reserveQuota(tx, config, principal.projectId, { volumes: 1, gigabytes: sizeGib });
    if (volume.groupId) await lockForNewVolume(tx, principal, volume.groupId);
    return startVolume(tx, config, principal, { ...volume, sizeGib, source });
  });
}

/** The row and the task that creates its file. Its quota has been reserved, and its group is locked. */
export async function startVolume(
  tx: Transaction,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number; sizeBytes?: number; source: SourceOfVolume | null },
): Promise<VolumeRow> {
  const { source, sizeGib } = volume;
  const sizeBytes = volume.sizeBytes === undefined ? BigInt(sizeGib) * BigInt(GiB) : BigInt(volume.sizeBytes);
  if (source) requireProvisioning(config, source.columns.backend, "create volume from another one");
  const row = await addVolume(tx, {
    ...baseRow(config, principal, volume),
    ...source?.columns,
    ...(volume.availabilityZone && { availabilityZone: volume.availabilityZone }),
    sizeGib,
    // A source of odd length is copied at its exact length; only a volume that is to be larger gets the full size in GiB.
    sizeBytes: source && sizeGib === source.sizeGib ? source.sizeBytes : sizeBytes,
  });
  await startOperation(tx, principal, {
    kind: "volume-create",
    projectId: row.projectId,
    volumeId: row.id,
    bytesTotal: source?.sizeBytes ?? 0n,
    input: source?.input ?? {},
    task: { kind: source ? "clone-volume" : "provision-volume", needs: [`backend:${row.backend}`] },
  });
  return row;
}

export interface SourceOfVolume {
  /** The source as requested, for the worker. */
  input: VolumeSource;
  sizeGib: number;
  sizeBytes: bigint;
  /** Columns that the new row takes from the source. */
  columns: {
    backend: string;
    availabilityZone: string;
    bootable: boolean;
    snapshotId?: string;
    sourceVolumeId?: string;
  };
  tooSmall: (sizeGib: number) => string;
}

/** @throws NotFoundError for an unknown source; InvalidError for one that cannot be copied now */
export async function readSource(tx: Transaction, principal: Principal, source: VolumeSource): Promise<SourceOfVolume> {
  if ("volumeId" in source) {
    const volume = await findVolume(tx, principal, source.volumeId);
    const { backend, availabilityZone, bootable, sizeGib, sizeBytes } = volume;
    if (volume.status !== "available" && volume.status !== "in-use") {
      throw new InvalidError("volume", "Originating source volume status must be one of 'available, in-use' values");
    }
    return {
      input: source,
      sizeGib,
      sizeBytes,
      columns: { backend, availabilityZone, bootable, sourceVolumeId: volume.id },
      tooSmall: (size) =>
        `Volume size '${size}'GB cannot be smaller than original volume size  ${sizeGib}GB. They must be >= original volume size.`,
    };
  }
  const snapshot = await tx.snapshot.findFirst({
    where: { id: isUuid(source.snapshotId) ? source.snapshotId : nilUuid, ...visibleTo(principal) },
    include: { volume: true },
  });
  if (!snapshot) throw new NotFoundError("Snapshot", source.snapshotId);
  if (snapshot.status !== "available") {
    throw new InvalidError("snapshot", "Originating snapshot status must be one of 'available' values");
  }
  const { backend, availabilityZone, bootable } = snapshot.volume;
  return {
    input: source,
    sizeGib: snapshot.sizeGib,
    sizeBytes: snapshot.sizeBytes,
    columns: { backend, availabilityZone, bootable, snapshotId: snapshot.id },
    tooSmall: (size) =>
      `Volume size '${size}'GB cannot be smaller than the snapshot size ${snapshot.sizeGib}GB. They must be >= original snapshot size.`,
  };
}

/** The file is there: the volume becomes available, with the exact length that the worker reports. */
export async function finishVolume(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  sizeBytes: number,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volumeId = operation.volumeId ?? nilUuid;
    await lockGroupOf(tx, volumeId);
    const columns = { sizeBytes: BigInt(sizeBytes), launchedAt: new Date() };
    await move(tx, "volume", { id: volumeId }, { from: "creating", to: "available" }, columns);
    await settleGroup(tx, volumeId);
    await completeOperation(tx, operation, result, { bytesStored: result.bytesStored });
  });
}
