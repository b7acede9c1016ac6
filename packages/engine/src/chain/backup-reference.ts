import { DamagedObjectError, EngineError, ObjectMissingError } from "../errors.ts";
import { FormatError } from "../format/json-stream.ts";
import type { ObjectKey, Repository } from "../repository/repository.ts";

/** Where a backup is stored. */
export interface BackupReference {
  /** Names the backup in errors; an imported backup's id may differ from the one in its object names. */
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

/** Turns what a read can reveal (a missing object, invalid text) into DamagedObjectError; other errors pass through. */
export function asDamage(reference: BackupReference, object: string, error: unknown): unknown {
  if (error instanceof ObjectMissingError) return damaged(reference, object, "it is missing", error);
  if (error instanceof FormatError) return damaged(reference, object, error.message, error);
  return error;
}

/**
 * Runs a read, and repeats it once when it finds damage: only damage seen twice is reported, so a single bad read costs nothing but time.
 * `read` must have no side effects.
 */
export async function confirmed<Result>(read: () => Promise<Result>): Promise<Result> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof EngineError) || error.code !== "damaged_object") throw error;
  }
  return read();
}
