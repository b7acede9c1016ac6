import { DamagedObjectError, EngineError, ObjectMissingError } from "../errors.ts";
import { FormatError } from "../format/json-stream.ts";
import type { ObjectKey, Repository } from "../repository/repository.ts";

/** Where a backup lies. */
export interface BackupReference {
  /** Names the backup in errors; an imported backup may bear another id than its objects. */
  backupId: string;
  repository: Repository;
  container: string;
  prefix: string;
}

export function keyOf(reference: BackupReference, name: string): ObjectKey {
  return { container: reference.container, name };
}

export function damaged(
  reference: BackupReference,
  object: string,
  reason: string,
  cause?: unknown,
): DamagedObjectError {
  return new DamagedObjectError({ backupId: reference.backupId, object, reason }, { cause });
}

/** Turns what reading an object can show (it is missing, it is no valid text) into DamagedObjectError; others pass. */
export function asDamage(reference: BackupReference, object: string, error: unknown): unknown {
  if (error instanceof ObjectMissingError) return damaged(reference, object, "it is missing", error);
  if (error instanceof FormatError) return damaged(reference, object, error.message, error);
  return error;
}

/**
 * Runs a read, and once more when it shows damage: only damage that is seen twice is reported, and a single bad read costs
 * nothing but time. `read` must be free of effects.
 */
export async function confirmed<Result>(read: () => Promise<Result>): Promise<Result> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof EngineError) || error.code !== "damaged_object") throw error;
  }
  return read();
}
