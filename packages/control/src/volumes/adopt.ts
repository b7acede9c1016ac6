import { type Config, defaultVolumeBackend } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isLiveOperation } from "../db/live.ts";
import { IdTakenError, InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { type Adoption, documents } from "../queue/documents.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { assertQuota, reserveQuota } from "../rows/quotas.ts";
import { addAdoptedVolume, gibOf } from "../rows/volumes.ts";

export interface NewAdoption {
  /** The id under which earlier backups know the volume. */
  volumeId: string;
  /** A user's file that becomes the volume; null: the file that is already in the backend under the id. */
  path: string | null;
  /** An image that becomes the volume and stays where it is, in the form of the backend's driver; null: none. */
  image: string | null;
  /** Name of a volume backend; null: the default one. */
  backend: string | null;
  name: string | null;
}

/**
 * Accepts that a volume shall exist under an id from before this database: its next incremental backup builds on the backups with that id.
 * No row has the id until a worker has found or placed the file, so before that nothing can be deleted, reset or read through it, and a
 * failed attempt leaves none. No quota is reserved before that either: the size is not known.
 *
 * @throws InvalidError for an unknown backend; IdTakenError
 */
export async function requestVolumeAdoption(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewAdoption,
): Promise<{ id: string }> {
  const id = await inTransaction(database, (tx) => requestVolumeAdoptionWithin(tx, config, principal, request));
  return { id };
}

/** @returns the operation's id @throws as requestVolumeAdoption */
export async function requestVolumeAdoptionWithin(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: NewAdoption,
): Promise<string> {
  const backend = request.backend ?? defaultVolumeBackend(config).name;
  if (!config.volume_backends.some(({ name }) => name === backend)) {
    throw new InvalidError("request", `Volume backend ${backend} could not be found.`);
  }
  await lockVolumeId(tx, request.volumeId);
  await assertFree(tx, principal.projectId, request.volumeId);
  const { volumeId, path, image, name } = request;
  const input: Adoption = { volumeId, path, backend, name, ...(image === null ? {} : { image }) };
  return startOperation(tx, principal, {
    kind: "volume-adopt",
    projectId: principal.projectId,
    volumeId: request.volumeId,
    input,
    task: { kind: "adopt-volume", needs: [`backend:${backend}`] },
  });
}

/** Serializes requests for the same id: there is no row yet that could be locked. */
export async function lockVolumeId(tx: Transaction, id: string): Promise<void> {
  await tx.$executeRaw`SELECT pg_advisory_xact_lock(hashtextextended(${`tephra:volume:${id}`}, 0))`;
}

/**
 * Checks that the id is free in all projects: no volume has it, none that had it was deleted here (a late worker may still remove its file,
 * and the reaper would), and no other adoption of it is live. If it has backups, at least one must be this project's, since they hold the
 * volume's bytes.
 *
 * @throws IdTakenError
 */
export async function assertFree(tx: Transaction, projectId: string, id: string): Promise<void> {
  const [row] = await tx.$queryRaw<{ taken: boolean; foreign: boolean }[]>`
    SELECT EXISTS (SELECT FROM volumes WHERE id = ${id}::uuid)
      OR EXISTS (SELECT FROM audit WHERE resource_id = ${id}::uuid AND resource = 'volume' AND to_status IN ('deleting', 'deleted'))
      OR EXISTS (SELECT FROM operations WHERE volume_id = ${id}::uuid AND (kind = 'volume-delete'
        OR (kind = 'volume-adopt' AND ${isLiveOperation("operations")}))) AS taken,
      EXISTS (SELECT FROM backups WHERE volume_id = ${id}::uuid)
        AND NOT EXISTS (SELECT FROM backups WHERE volume_id = ${id}::uuid AND project_id = ${projectId}) AS foreign`;
  if (row?.taken !== false) throw new IdTakenError(`A volume has or had the id ${id}, or is just being given it.`);
  if (row.foreign)
    throw new IdTakenError(`The backups of volume ${id} are another project's: make it a volume of that one.`);
}

/** Checks that the project's quota has room for the volume, before its file is placed. @throws QuotaExceededError */
export async function checkAdoption(
  database: Database,
  config: Config,
  operation: TaskOperation,
  sizeBytes: number,
): Promise<void> {
  await assertQuota(database, config, operation.projectId, { volumes: 1, gigabytes: gibOf(sizeBytes) });
}

/**
 * The file is in place under the id: reserves the quota and creates the row, in one transaction with the end of the operation.
 *
 * @throws QuotaExceededError, IdTakenError, OperationEndedError, ClaimLostError; nothing is left behind
 */
export async function finishVolumeAdoption(
  database: Database,
  config: Config,
  operation: TaskOperation,
  result: TaskResult,
  sizeBytes: number,
): Promise<void> {
  const { volumeId: id, backend, name } = documents.adoption(operation.input);
  const { projectId } = operation;
  await inTransaction(database, async (tx) => {
    const sizeGib = gibOf(sizeBytes);
    await reserveQuota(tx, config, projectId, { volumes: 1, gigabytes: sizeGib });
    const { userId } = await tx.operation.findUniqueOrThrow({ where: { id: operation.id }, select: { userId: true } });
    const now = new Date();
    const row = {
      ...{ id, projectId, userId, name, backend, sizeGib, sizeBytes: BigInt(sizeBytes) },
      ...{ availabilityZone: config.availability_zone, createdAt: now, launchedAt: now },
    };
    if (!(await addAdoptedVolume(tx, row))) throw new IdTakenError(`A volume has the id ${id}.`);
    await completeOperation(tx, operation, result, { bytesStored: result.bytesStored });
  });
}
