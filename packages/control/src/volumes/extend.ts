import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { reserveQuota } from "../rows/quotas.ts";
import { finishGrowth, GiB, getVolume, moveVolume } from "../rows/volumes.ts";

/**
 * Makes a volume longer. Volumes in use only with `inUse`. `sizeBytes`: the exact length, of which `sizeGib` is the size.
 *
 * @throws InvalidError in another status, or when it would not grow; QuotaExceededError
 */
export async function requestVolumeExtend(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
  request: { sizeGib: number; inUse: boolean; sizeBytes?: number },
): Promise<void> {
  await inTransaction(database, (tx) => requestVolumeExtendWithin(tx, config, principal, id, request));
}

/** @returns the operation's id @throws as requestVolumeExtend */
export async function requestVolumeExtendWithin(
  tx: Transaction,
  config: Config,
  principal: Principal,
  id: string,
  request: { sizeGib: number; inUse: boolean; sizeBytes?: number },
): Promise<string> {
  const seen = await getVolume(tx, principal, id);
  const { sizeGib, sizeBytes = sizeGib * GiB } = request;
  const grows = request.sizeBytes === undefined ? sizeGib > seen.sizeGib : BigInt(sizeBytes) > seen.sizeBytes;
  if (!grows) {
    const sizes = `(current: ${seen.sizeGib}, extended: ${sizeGib})`;
    throw new InvalidError("input", `New size for extend must be greater than current size. ${sizes}.`);
  }
  const from = request.inUse && seen.status === "in-use" ? "in-use" : "available";
  const refuse = (status: string) => {
    const wanted = `{'status': '${from}'}`;
    return new InvalidError("volume", `Volume ${id} status must be '${wanted}' to extend, currently ${status}.`);
  };
  if (seen.status !== from) throw refuse(seen.status);
  await reserveQuota(tx, config, seen.projectId, { gigabytes: sizeGib - seen.sizeGib });
  await moveVolume(tx, id, [from], "extending", refuse);
  return startOperation(tx, principal, {
    kind: "volume-extend",
    projectId: seen.projectId,
    volumeId: id,
    input: { sizeBytes, addedGib: sizeGib - seen.sizeGib },
    task: { kind: "extend-volume", needs: [`backend:${seen.backend}`] },
  });
}

/**
 * The volume has its new length `sizeBytes`, and gets the size that was asked for and its previous status back. A device that was made
 * longer by others may lack a part of a GiB.
 */
export async function finishVolumeExtend(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  growth: { asked: number; sizeBytes: number },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await finishGrowth(tx, operation.volumeId ?? nilUuid, growth);
    await completeOperation(tx, operation, result);
  });
}
