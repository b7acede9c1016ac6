import { readdir, realpath } from "node:fs/promises";
import { guardStorage } from "./storage-error.ts";

/** Where volumes that exist already are noted, which stay where they are: notes in a folder of the backend, volumes below its roots. */
export class AdoptedPlace {
  protected readonly folder: string;
  protected readonly roots: readonly string[];

  constructor(folder: string, roots: readonly string[]) {
    this.folder = folder;
    this.roots = roots;
  }

  /** What is in the folder. */
  protected names(): Promise<string[]> {
    return guardStorage(`list ${this.folder}`, () => readdir(this.folder));
  }

  /** The roots that are there, without links. */
  protected async realRoots(): Promise<string[]> {
    return (await Promise.all(this.roots.map(realPath))).filter((root) => root !== null);
  }
}

/** Without links; null for what is not there. */
export const realPath = (path: string): Promise<string | null> => realpath(path).catch(() => null);
