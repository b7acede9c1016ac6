import { randomUUID } from "node:crypto";
import { link, mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { VolumeConflictError, VolumeStorageError } from "../../errors.ts";
import { type FileLock, tryLock } from "../qemu/folder-lock.ts";
import { guardStorage } from "../storage-error.ts";
import type { Writers } from "./connector.ts";

/**
 * A target that neither locks what it exports nor tells our sessions apart is locked here, on the host of all runs of a restore, by a file
 * that processes which write have open. Two hosts may have one name, or its workers other folders: so the folder bears an id, which is noted
 * as the writer. Under another id nothing can be known about an earlier run.
 */
interface LockHere extends FileLock {
  readonly path: string;
}

/**
 * `name`: of what is written; `folder`: of the locks, which is made where there is none.
 *
 * @throws VolumeConflictError where an earlier run was elsewhere; VolumeStorageError while another process writes it
 */
export async function lockHere(folder: string, name: string, writers: Writers): Promise<LockHere> {
  const id = await guardStorage(`prepare ${folder}`, () => idOf(folder));
  if (writers.earlier !== null && writers.earlier !== id) {
    throw new VolumeConflictError(
      "A worker was lost while it was writing, and this host does not know it; make sure that it is gone, then restore again.",
    );
  }
  const path = join(folder, name.replaceAll(/[^A-Za-z0-9._-]/g, "-"));
  const lock = await lockFile(path);
  try {
    if (writers.earlier === null) await writers.note(id);
    const release = async (): Promise<void> => {
      // Before it is let go of: whoever waits for it finds that it has lost its name.
      await rm(path, { force: true });
      await lock[Symbol.asyncDispose]();
    };
    return { path, file: lock.file, [Symbol.asyncDispose]: release };
  } catch (error) {
    await lock[Symbol.asyncDispose]();
    throw error;
  }
}

async function idOf(folder: string): Promise<string> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const path = join(folder, "id");
  const draft = `${path}-${randomUUID()}`;
  await writeFile(draft, randomUUID(), { flag: "wx", mode: 0o600 });
  try {
    // One of several that come at once makes it, complete.
    await link(draft, path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
  } finally {
    await rm(draft, { force: true });
  }
  return readFile(path, "utf8");
}

async function lockFile(path: string): Promise<FileLock> {
  for (;;) {
    const lock = await tryLock(path);
    if (lock === null) {
      throw new VolumeStorageError(
        "A restore that was given up has not let go of the volume yet. Make sure that its process ends, then restore again.",
        { retryable: true },
      );
    }
    const [held, named] = await Promise.all([lock.file.stat(), stat(path).catch(() => null)]);
    if (held.ino === named?.ino) return lock;
    await lock[Symbol.asyncDispose]();
  }
}
