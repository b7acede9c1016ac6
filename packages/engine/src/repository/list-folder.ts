import { type Dir, lstat, type Stats } from "node:fs";
import { errnoOf } from "../errors.ts";
import type { ListedObject } from "./repository.ts";

/** Names that are looked at together; what a listing holds in memory at a time. */
const namesPerLook = 512;

/** An entry of a folder: an object, or what is wrong with it. */
export type FolderEntry = { object: ListedObject; odd: null } | { object: null; odd: { name: string; cause: unknown } };

/**
 * The entries of a folder whose names are wanted, with their sizes, a few hundred at a time: memory does not grow with the folder. What has
 * gone meanwhile is left out. Folders are no objects; one that has a name which `isObjectName` accepts is odd, and so is what cannot be
 * looked at.
 */
export async function* lookThroughFolder(
  folder: Dir,
  {
    wanted,
    pathOf,
    isObjectName,
  }: { wanted: (name: string) => boolean; pathOf: (name: string) => string; isObjectName: (name: string) => boolean },
): AsyncGenerator<FolderEntry> {
  let names: string[] = [];
  for await (const entry of folder) {
    if (!wanted(entry.name)) continue;
    if (entry.isDirectory()) {
      if (isObjectName(entry.name))
        yield { object: null, odd: { name: entry.name, cause: new Error("it is a folder") } };
      continue;
    }
    names.push(entry.name);
    if (names.length < namesPerLook) continue;
    yield* look(names, pathOf);
    names = [];
  }
  yield* look(names, pathOf);
}

async function* look(names: readonly string[], pathOf: (name: string) => string): AsyncGenerator<FolderEntry> {
  for (const [index, found] of (await statAll(names.map(pathOf))).entries()) {
    const name = names[index] as string;
    if (!(found instanceof Error)) {
      yield { object: { name, sizeBytes: found.size, modifiedAt: found.mtime }, odd: null };
      continue;
    }
    if (errnoOf(found) !== "ENOENT") yield { object: null, odd: { name, cause: found } };
    // Bytes that are no UTF-8 were read as replacement characters, by which nothing is found.
    else if (name.includes("\ufffd")) yield { object: null, odd: { name, cause: new Error("its name is not UTF-8") } };
  }
}

/** One promise for all: a promise for each name would take most of the time of a listing. */
function statAll(paths: readonly string[]): Promise<(Stats | Error)[]> {
  const found: (Stats | Error)[] = new Array(paths.length);
  let left = paths.length;
  return new Promise((resolve) => {
    if (left === 0) resolve(found);
    for (const [index, path] of paths.entries()) {
      lstat(path, (error, status) => {
        found[index] = error ?? status;
        left -= 1;
        if (left === 0) resolve(found);
      });
    }
  });
}
