import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { move } from "../rows/move.ts";
import { getVolume, moveVolume } from "../rows/volumes.ts";

/**
 * Writes a volume's bytes to a file, which may exist already only with `overwrite`. The volume is `uploading` meanwhile.
 *
 * @throws InvalidError unless the volume is available
 */
export async function requestVolumeExport(
  database: Database,
  principal: Principal,
  request: { volumeId: string; path: string; overwrite: boolean },
): Promise<{ id: string }> {
  const id = await inTransaction(database, (tx) => requestVolumeExportWithin(tx, principal, request));
  return { id };
}

/** @returns the operation's id @throws as requestVolumeExport */
export async function requestVolumeExportWithin(
  tx: Transaction,
  principal: Principal,
  request: { volumeId: string; path: string; overwrite: boolean },
): Promise<string> {
  const volume = await getVolume(tx, principal, request.volumeId);
  await moveVolume(tx, volume.id, ["available"], "uploading", (status) => {
    return new InvalidError(
      "volume",
      `Volume to be exported must be available, but the current status is "${status}".`,
    );
  });
  return startOperation(tx, principal, {
    kind: "volume-export",
    projectId: volume.projectId,
    volumeId: volume.id,
    input: { path: request.path, overwrite: request.overwrite },
    bytesTotal: volume.sizeBytes,
    task: { kind: "export-volume", needs: [`backend:${volume.backend}`] },
  });
}

/** The export is written: the volume gets its previous status back. */
export async function finishVolumeExport(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await move(tx, "volume", { id: operation.volumeId ?? nilUuid }, { from: "uploading", to: "available" });
    await completeOperation(tx, operation, result, { bytesStored: result.bytesStored });
  });
}
