import { constants } from "node:fs";
import { type FileHandle, lstat, open, readlink } from "node:fs/promises";
import { errnoOf } from "./errors.ts";

/** open(2) on Linux, missing in node:fs: a handle on a path without opening the file. */
export const O_PATH = 0o10000000;
const folderFlags = O_PATH | constants.O_DIRECTORY;

/** A folder on the path is a symbolic link. `code` is a file-system error code, so that callers treat it as one. */
export class LinkInPathError extends Error {
  readonly code = "ELOOP";
  constructor(name: string) {
    super(`${JSON.stringify(name)} is a symbolic link`);
    this.name = "LinkInPathError";
  }
}

/**
 * A folder held open by its descriptor. Operations on a name in it affect this very folder, whatever its path refers to by now:
 * `at(name)` goes through /proc/self/fd, which the kernel resolves to the open folder instead of looking up its name. So a path is walked
 * once, component by component, and no component is ever resolved again.
 */
export class Folder implements AsyncDisposable {
  readonly #handle: FileHandle;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Opens a folder named by the operator: links in its path are followed. File-system errors pass unchanged. */
  static async open(path: string): Promise<Folder> {
    return new Folder(await open(path, folderFlags));
  }

  /** Opens the folder reached by `names` from an operator's folder, each within the previous one. Errors as for `open` and `enter`. */
  static async beneath(path: string, names: readonly string[]): Promise<Folder> {
    let at = await Folder.open(path);
    for (const name of names) {
      await using left = at;
      at = await left.enter(name);
    }
    return at;
  }

  /** Opens a subfolder. LinkInPathError when it is a link; ENOTDIR, ENOENT … pass unchanged. */
  async enter(name: string): Promise<Folder> {
    try {
      return new Folder(await open(this.at(name), folderFlags | constants.O_NOFOLLOW));
    } catch (error) {
      // With O_DIRECTORY, only lstat tells a link from any other non-folder.
      if (errnoOf(error) !== "ENOTDIR" && errnoOf(error) !== "ELOOP") throw error;
      if ((await lstat(this.at(name)).catch(() => undefined))?.isSymbolicLink()) throw new LinkInPathError(name);
      throw error;
    }
  }

  /** A path of `name` in this folder, valid while the folder is open. Its last component may be a link: use O_NOFOLLOW. */
  at(name: string): string {
    if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) throw new Error("not the name of an entry");
    return `${this.#descriptorPath}/${name}`;
  }

  /** A path of the folder itself, valid while it is open. */
  get self(): string {
    return `${this.#descriptorPath}/.`;
  }

  /** The folder's current location according to the kernel: absolute and free of links. */
  currentPath(): Promise<string> {
    return readlink(this.#descriptorPath);
  }

  /** The same value for every path and mount of one folder. */
  async identity(): Promise<string> {
    return identityOf(await this.#handle.stat({ bigint: true }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }

  get #descriptorPath(): string {
    return `/proc/self/fd/${this.#handle.fd}`;
  }
}

/** Distinguishes one file or folder from all others on a machine. */
export function identityOf({ dev, ino }: { dev: bigint; ino: bigint }): string {
  return `${dev}:${ino}`;
}

/** Makes the names in a folder durable. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
