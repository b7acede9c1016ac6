import { constants } from "node:fs";
import { type FileHandle, lstat, open, readlink } from "node:fs/promises";
import { errnoOf } from "./errors.ts";

/** open(2) on Linux, missing in node:fs: a place in the tree, without opening what is there. */
export const O_PATH = 0o10000000;
const folderFlags = O_PATH | constants.O_DIRECTORY;

/** A folder on the way is a symbolic link. `code` is that of a file system's error, so that callers treat it as one. */
export class LinkInPathError extends Error {
  readonly code = "ELOOP";
  constructor(name: string) {
    super(`${JSON.stringify(name)} is a symbolic link`);
    this.name = "LinkInPathError";
  }
}

/**
 * A folder that is held by its descriptor. What is done to a name in it is done in this very folder, whatever its path has come to
 * mean meanwhile: `at(name)` goes through /proc/self/fd, which the kernel resolves to the open folder and not by its name. So a
 * path is walked once, one part at a time, and no part is ever looked up again.
 */
export class Folder implements AsyncDisposable {
  readonly #handle: FileHandle;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Opens a folder that the operator has named: links on the way are followed. Errors of the file system as they are. */
  static async open(path: string): Promise<Folder> {
    return new Folder(await open(path, folderFlags));
  }

  /** Opens the folder that `names` lead to from a folder of the operator's, each in the one before. Errors as of `open` and `enter`. */
  static async beneath(path: string, names: readonly string[]): Promise<Folder> {
    let at = await Folder.open(path);
    for (const name of names) {
      await using left = at;
      at = await left.enter(name);
    }
    return at;
  }

  /** Opens a folder in this one. LinkInPathError when it is a link; ENOTDIR, ENOENT … as they are. */
  async enter(name: string): Promise<Folder> {
    try {
      return new Folder(await open(this.at(name), folderFlags | constants.O_NOFOLLOW));
    } catch (error) {
      // With O_DIRECTORY a link is told apart from any other file only by looking.
      if (errnoOf(error) !== "ENOTDIR" && errnoOf(error) !== "ELOOP") throw error;
      if ((await lstat(this.at(name)).catch(() => undefined))?.isSymbolicLink()) throw new LinkInPathError(name);
      throw error;
    }
  }

  /** A path of `name` in this folder, good as long as the folder is open. Its last part may be a link: use O_NOFOLLOW. */
  at(name: string): string {
    if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) throw new Error("not the name of an entry");
    return `${this.#descriptorPath}/${name}`;
  }

  /** A path of the folder itself, good as long as it is open. */
  get self(): string {
    return `${this.#descriptorPath}/.`;
  }

  /** Where the folder is now, by the kernel's account: absolute and free of links. */
  currentPath(): Promise<string> {
    return readlink(this.#descriptorPath);
  }

  /** The same for every path and mount of one folder. */
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

/** What tells one file or folder from all others of a machine. */
export function identityOf({ dev, ino }: { dev: bigint; ino: bigint }): string {
  return `${dev}:${ino}`;
}
