import type { Config } from "../config.ts";
import { type Database, inTransaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import type { Principal } from "../principal.ts";
import { startOperation } from "../queue/operations.ts";
import type { TaskOperation } from "../queue/tasks.ts";
import { reserveQuota } from "../rows/quotas.ts";
import { addVolume, baseRow, gibOf, type NewVolume, type VolumeRow } from "../rows/volumes.ts";

/**
 * Creates a volume of exactly the length of a user's own file. The size is not known yet (only a worker reads bytes): the worker reports it
 * with `chargeImport` before it copies.
 */
export async function requestVolumeImport(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewVolume & { path: string },
): Promise<{ volume: VolumeRow; operation: { id: string } }> {
  return inTransaction(database, async (tx) => {
    await reserveQuota(tx, config, principal.projectId, { volumes: 1 });
    const volume = await addVolume(tx, { ...baseRow(config, principal, request), sizeGib: 0, sizeBytes: 0n });
    const id = await startOperation(tx, principal, {
      kind: "volume-import",
      projectId: volume.projectId,
      volumeId: volume.id,
      input: { path: request.path },
      task: { kind: "import-volume", needs: [`backend:${volume.backend}`] },
    });
    return { volume, operation: { id } };
  });
}

/** Charges the file's length, as the worker reports it before copying, to the quota. Idempotent. */
export async function chargeImport(
  database: Database,
  config: Config,
  operation: TaskOperation,
  sizeBytes: number,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const sizeGib = gibOf(sizeBytes);
    const before = await tx.volume.findUniqueOrThrow({ where: { id: operation.volumeId ?? nilUuid } });
    if (sizeGib > before.sizeGib) {
      await reserveQuota(tx, config, before.projectId, { gigabytes: sizeGib - before.sizeGib });
    }
    await tx.volume.update({
      where: { id: before.id },
      data: { sizeGib: Math.max(sizeGib, before.sizeGib), sizeBytes: BigInt(sizeBytes) },
    });
    await tx.operation.update({ where: { id: operation.id }, data: { bytesTotal: BigInt(sizeBytes) } });
  });
}
