import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { chmod, type FileHandle, lstat, mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, RepositoryUnavailableError } from "../errors.ts";
import { Folder } from "../folder.ts";
import { writeBytesMax } from "../run/run-context.ts";

/** What Cinder's driver sets: the backup service's group may read and write. */
export const fileMode = 0o660;
const folderMode = 0o770;
/** One read of an object's file. */
export const readBytes = 1024 * 1024;

/** Creates folders of the operator's with the right mode whatever the umask, and makes their names durable. */
export async function makeFolders(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true, mode: folderMode });
  if (first === undefined) return;
  for (let folder = path; folder.length >= first.length; folder = join(folder, "..")) {
    await chmod(folder, folderMode).catch(ignoreModeless);
    await syncFolder(join(folder, ".."));
  }
}

/** Creates the folders that are missing on the way down from `root`, as makeFolders does. Errors as of `Folder.beneath`. */
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
    if (errnoOf(error) !== "EEXIST") throw error; // Somebody else was first.
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

/** Opens for reading without following a link and without hanging on a FIFO. */
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

/** Whether a file holds exactly the bytes of a body. */
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
 * The SHA-256 of a file, in hexadecimal digits, as the server has it where that can be asked (NFS lets O_DIRECT read in any alignment), else
 * as the system has it in memory.
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

/** A whole file as chunks. */
export async function* fileChunks(file: FileHandle): AsyncGenerator<Uint8Array> {
  for (let offset = 0; ; ) {
    const chunk = new Uint8Array(readBytes);
    const { bytesRead } = await file.read(chunk, 0, chunk.length, offset);
    if (bytesRead === 0) return;
    offset += bytesRead;
    yield chunk.subarray(0, bytesRead);
  }
}

/** A body in pieces that one call of the fence allows to be written. */
export async function* pieces(body: Uint8Array | AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const chunks = body instanceof Uint8Array ? [body] : body;
  for await (const chunk of chunks) {
    for (let start = 0; start < chunk.length; start += writeBytesMax) {
      yield chunk.subarray(start, start + writeBytesMax);
    }
  }
}

/** Zeros shorter than this are written: a file of many small pieces is slower to read. */
const holeBytesMin = 64 * 1024;
const zeros = Buffer.alloc(holeBytesMin);

/** The parts of a piece that are not zeros, as start and end within it. */
export function dataRuns(piece: Uint8Array): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = [];
  for (let start = 0; start < piece.length; start += holeBytesMin) {
    const end = Math.min(start + holeBytesMin, piece.length);
    if (zeros.compare(piece, start, end, 0, end - start) === 0) continue;
    const last = runs.at(-1);
    if (last?.end === start) last.end = end;
    else runs.push({ start, end });
  }
  return runs;
}

export async function writeAll(file: FileHandle, data: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < data.length; ) {
    const { bytesWritten } = await file.write(data, done, data.length - done, offset + done);
    done += bytesWritten;
  }
}

/** Makes names durable. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Makes names durable for many callers: those that come while a folder is being synced share the next sync of it. */
export class FolderSync {
  readonly #running = new Map<string, Promise<void>>();
  readonly #next = new Map<string, Promise<void>>();

  /**
   * Resolves when every name that the folder had at the call is durable. `folder` stays open until then; callers with one `key` have
   * the same folder.
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

/** For catch(): some file systems have no modes of their own, and what we have made is ours to give one. */
export function ignoreModeless(error: unknown): undefined {
  if (!["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL"].includes(errnoOf(error))) throw error;
}

/** For catch(): a missing file is no failure. */
export function ignoreMissing(error: unknown): undefined {
  if (errnoOf(error) !== "ENOENT") throw error;
}
