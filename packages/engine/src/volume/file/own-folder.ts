import { lstat, mkdir, rmdir, stat } from "node:fs/promises";
import { errnoOf, PathNotAllowedError } from "../../errors.ts";
import type { Folder } from "../../folder.ts";
import { guardStorage } from "../storage-error.ts";
import { unlinkIfThere } from "./copy-file.ts";

const draftName = "image";

/**
 * A folder for one draft, held open, within a folder that others may write to: they can take its name away, but put nothing into it. It
 * goes when it is disposed.
 */
export class OwnFolder implements AsyncDisposable {
  readonly #parent: Folder;
  readonly #name: string;
  readonly #folder: Folder;

  private constructor(parent: Folder, name: string, folder: Folder) {
    this.#parent = parent;
    this.#name = name;
    this.#folder = folder;
  }

  /** A path of the draft, valid while this is open. */
  get draft(): string {
    return this.#folder.at(draftName);
  }

  /** Replaces one of that name. @throws PathNotAllowedError when somebody else's was put in its place */
  static async make(parent: Folder, name: string): Promise<OwnFolder> {
    await OwnFolder.remove(parent, name);
    return await guardStorage(`create ${name}`, async () => {
      await mkdir(parent.at(name), { mode: 0o700 });
      await using stack = new AsyncDisposableStack();
      const folder = stack.use(await parent.enter(name));
      const { uid, mode } = await stat(folder.self);
      if (uid !== process.geteuid?.() || (mode & 0o077) !== 0) {
        throw new PathNotAllowedError(`The folder ${name} was replaced by another one.`);
      }
      stack.move();
      return new OwnFolder(parent, name, folder);
    });
  }

  /** Of an earlier process, also a file of an earlier release. What holds anything but a draft is somebody else's, and stays. */
  static async remove(parent: Folder, name: string): Promise<void> {
    await guardStorage(`remove ${name}`, async () => {
      const status = await lstat(parent.at(name)).catch(() => undefined);
      if (status === undefined) return;
      if (!status.isDirectory()) return await unlinkIfThere(parent.at(name));
      {
        await using folder = await parent.enter(name);
        await unlinkIfThere(folder.at(draftName));
      }
      await rmdir(parent.at(name)).catch((error: unknown) => {
        if (!["ENOENT", "ENOTEMPTY"].includes(errnoOf(error))) throw error;
      });
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await guardStorage(`remove ${this.#name}`, () => unlinkIfThere(this.draft));
    await this.#folder[Symbol.asyncDispose]();
    await OwnFolder.remove(this.#parent, this.#name);
  }
}
