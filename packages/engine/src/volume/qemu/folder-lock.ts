import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { BackendUnavailableError, VolumeStorageError } from "../../errors.ts";
import { guardStorage } from "../storage-error.ts";

/** flock(2) on Linux. */
const exclusiveNow = 2 | 4;
const tryEveryMs = 20;
/** Whoever has the lock only reads headers and makes names. */
const waitMs = 60_000;

type Flock = (fd: number, operation: number) => Promise<number>;

async function loadFlock(): Promise<Flock> {
  try {
    const { default: koffi } = await import("koffi");
    const flock = koffi.load("libc.so.6").func("int flock(int fd, int operation)");
    return promisify(flock.async) as Flock;
  } catch (error) {
    throw new BackendUnavailableError("Files cannot be locked on this machine (koffi does not load).", {
      cause: error,
    });
  }
}

let loaded: Promise<Flock> | undefined;

/** @throws BackendUnavailableError */
export async function requireLocks(): Promise<void> {
  loaded ??= loadFlock();
  await loaded;
}

/** A lock, which is held as long as any process has the file open that it was given. */
export interface FileLock extends AsyncDisposable {
  readonly file: FileHandle;
}

/** Locks a file against every other process and task, until it is disposed or the process ends. Null when somebody else has the lock. */
export async function tryLock(path: string): Promise<FileLock | null> {
  loaded ??= loadFlock();
  const flock = await loaded;
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
  const file = await guardStorage(`lock ${path}`, () => open(path, flags, 0o660));
  if ((await flock(file.fd, exclusiveNow)) === 0) return { file, [Symbol.asyncDispose]: () => file.close() };
  await file.close();
  return null;
}

/** Like tryLock, but waits its turn. @throws VolumeStorageError when that takes too long */
export async function lock(path: string): Promise<AsyncDisposable> {
  for (const until = performance.now() + waitMs; performance.now() < until; ) {
    const held = await tryLock(path);
    if (held !== null) return held;
    await sleep(tryEveryMs);
  }
  throw new VolumeStorageError(`Another task has held the lock ${path} for ${waitMs / 1000} s.`, { retryable: true });
}
