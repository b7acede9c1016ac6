import { EngineError, errnoOf, VolumeStorageError, VolumeStorageFullError } from "../errors.ts";

/** Runs a file-system call on volume storage and turns its failure into an engine error. */
export async function guardStorage<Result>(what: string, call: () => Promise<Result>): Promise<Result> {
  try {
    return await call();
  } catch (error) {
    throw storageError(what, error);
  }
}

function storageError(what: string, error: unknown): unknown {
  const errno = errnoOf(error);
  if (error instanceof EngineError || !/^E[A-Z0-9]+$/.test(errno)) return error;
  if (errno === "ENOSPC" || errno === "EDQUOT") {
    return new VolumeStorageFullError(`No space left: cannot ${what}. Free space there, then try again.`, {
      cause: error,
    });
  }
  return new VolumeStorageError(`Cannot ${what} (${errno}).`, { cause: error, retryable: errno === "EIO" });
}
