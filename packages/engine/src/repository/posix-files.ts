import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { chmod, type FileHandle, lstat, mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, RepositoryUnavailableError } from "../errors.ts";
import { Folder, syncFolder } from "../folder.ts";
import { writeBytesMax } from "../run/run-context.ts";

/** Cinder's driver uses the same mode: readable and writable by the backup service's group. */
export const fileMode = 0o660;
const folderMode = 0o770;
/** Size of one read from an object's file. */
export const readBytes = 1024 * 1024;

/** Creates the operator's folders with the right mode regardless of the umask, and makes their names durable. */
export async function makeFolders(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true, mode: folderMode });
  if (first === undefined) return;
  for (let folder = path; folder.length >= first.length; folder = join(folder, "..")) {
    await chmod(folder, folderMode).catch(ignoreModeless);
    await syncFolder(join(folder, ".."));
  }
}

/** Creates missing folders on the path down from `root`, like makeFolders. Errors as for `Folder.beneath`. */
export async function makeFoldersBeneath(root: string, names: readonly string[]): Promise<void> {
  let at = await Folder.open(root);
  for (const name of names) {
    await using parent = at;
    at = await enterOrMake(parent, name);
  }
  await at[Symbol.asyncDispose]();
}

async function enterOrMake(parent: Folder, name: string): Promise<Folder> {
  const known = await parent.enter(name).catch(ignoreMissing);
  if (known !== undefined) return known;
  await mkdir(parent.at(name), { mode: folderMode }).catch((error: unknown) => {
    if (errnoOf(error) !== "EEXIST") throw error; // Created by another process first.
  });
  const made = await parent.enter(name);
  try {
    await chmod(made.self, folderMode).catch(ignoreModeless);
    await syncFolder(parent.self);
    return made;
  } catch (error) {
    await made[Symbol.asyncDispose]();
    throw error;
  }
}

export async function folderExists(path: string): Promise<boolean> {
  const status = await lstat(path).catch(ignoreMissing);
  return status?.isDirectory() ?? false;
}

/** Opens a file for reading without following a link or blocking on a FIFO. */
export async function openRegular(path: string): Promise<{ file: FileHandle; sizeBytes: number }> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  const status = await file.stat();
  if (status.isFile()) return { file, sizeBytes: status.size };
  await file.close();
  throw notRegular(path);
}

export function notRegular(path: string): RepositoryUnavailableError {
  return new RepositoryUnavailableError(`${path} is not a regular file.`, { retryable: false });
}

/** Whether a file contains exactly the bytes of a body. */
export async function fileHolds(
  file: FileHandle,
  body: Uint8Array | AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): Promise<boolean> {
  const { size } = await file.stat();
  let offset = 0;
  for await (const piece of pieces(body)) {
    signal.throwIfAborted();
    const stored = Buffer.allocUnsafe(piece.length);
    const { bytesRead } = await file.read(stored, 0, piece.length, offset);
    if (bytesRead !== piece.length || !stored.equals(piece)) return false;
    offset += piece.length;
  }
  return offset === size;
}

/**
 * A file's SHA-256 in hex, read from the server where that is possible (NFS allows O_DIRECT reads at any alignment), otherwise from the
 * page cache.
 */
export async function storedDigest(path: string): Promise<string> {
  const digestOf = async (flags: number): Promise<string> => {
    const hash = createHash("sha256");
    const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | flags);
    try {
      for await (const chunk of fileChunks(file)) hash.update(chunk);
      return hash.digest("hex");
    } finally {
      await file.close();
    }
  };
  return digestOf(constants.O_DIRECT).catch((error: unknown) => {
    if (errnoOf(error) !== "EINVAL") throw error;
    return digestOf(0);
  });
}

/** Streams a whole file. */
export async function* fileChunks(file: FileHandle): AsyncGenerator<Uint8Array> {
  for (let offset = 0; ; ) {
    const chunk = new Uint8Array(readBytes);
    const { bytesRead } = await file.read(chunk, 0, chunk.length, offset);
    if (bytesRead === 0) return;
    offset += bytesRead;
    yield chunk.subarray(0, bytesRead);
  }
}

/** Chunks shorter than this are gathered: compressed zeros arrive as fifty chunks of a kilobyte, and each piece is a call of the system. */
const gatheredBytesMax = 64 * 1024;

/**
 * Splits a body into pieces no larger than one fence check allows, and joins what is far smaller. A piece's memory is the next one's, too:
 * be done with it before asking for that.
 */
export async function* pieces(body: Uint8Array | AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const chunks = body instanceof Uint8Array ? [body] : body;
  let gathered: Uint8Array | null = null;
  let filled = 0;
  for await (const chunk of chunks) {
    if (gathered !== null && filled + chunk.length > gatheredBytesMax) {
      yield gathered.subarray(0, filled);
      filled = 0;
    }
    if (chunk.length < gatheredBytesMax) {
      gathered ??= new Uint8Array(gatheredBytesMax);
      gathered.set(chunk, filled);
      filled += chunk.length;
      continue;
    }
    for (let start = 0; start < chunk.length; start += writeBytesMax) {
      yield chunk.subarray(start, start + writeBytesMax);
    }
  }
  if (gathered !== null && filled > 0) yield gathered.subarray(0, filled);
}

export async function writeAll(file: FileHandle, data: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < data.length; ) {
    const { bytesWritten } = await file.write(data, done, data.length - done, offset + done);
    done += bytesWritten;
  }
}

/** Makes names durable for many callers: those arriving while a folder is being synced share its next sync. */
export class FolderSync {
  readonly #running = new Map<string, Promise<void>>();
  readonly #next = new Map<string, Promise<void>>();

  /**
   * Resolves when every name in the folder at the time of the call is durable. `folder` must stay open until then; callers with the same
   * `key` refer to the same folder.
   */
  sync(key: string, folder: Folder): Promise<void> {
    const next = this.#next.get(key);
    if (next !== undefined) return next;
    const running = this.#running.get(key);
    if (running === undefined) return this.#start(key, folder);
    const queued = running
      .catch(() => {})
      .then(() => {
        this.#next.delete(key);
        return this.#start(key, folder);
      });
    this.#next.set(key, queued);
    return queued;
  }

  #start(key: string, folder: Folder): Promise<void> {
    const run = syncFolder(folder.self).finally(() => this.#running.delete(key));
    this.#running.set(key, run);
    return run;
  }
}

/** A folder that several callers have open at once, by one descriptor: walking to it again for every object would cost more than storing small ones. */
export class SharedFolders {
  readonly #open = new Map<string, { folder: Promise<Folder>; users: number }>();

  /** The folder that others have open at the moment, otherwise one opened now. It is closed when nobody uses it any more. */
  async open(key: string, open: () => Promise<Folder>): Promise<AsyncDisposable & { folder: Folder }> {
    const entry = this.#open.get(key) ?? { folder: open(), users: 0 };
    this.#open.set(key, entry);
    entry.users += 1;
    const leave = async (): Promise<void> => {
      entry.users -= 1;
      if (entry.users > 0) return;
      if (this.#open.get(key) === entry) this.#open.delete(key);
      await (await entry.folder)[Symbol.asyncDispose]();
    };
    try {
      return { folder: await entry.folder, [Symbol.asyncDispose]: leave };
    } catch (error) {
      // Whoever comes next tries again.
      if (this.#open.get(key) === entry) this.#open.delete(key);
      throw error;
    }
  }
}

/** For catch(): some file systems do not support modes; EPERM has no other cause here, because we own what we have created. */
export function ignoreModeless(error: unknown): undefined {
  if (!["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL"].includes(errnoOf(error))) throw error;
}

/** For catch(): a missing file is not a failure. */
export function ignoreMissing(error: unknown): undefined {
  if (errnoOf(error) !== "ENOENT") throw error;
}
