import { type Dir, lstat, type Stats } from "node:fs";
import { errnoOf } from "../errors.ts";
import type { ListedObject } from "./repository.ts";

/** Names whose status is read per batch; bounds the memory of a listing. */
const namesPerLook = 512;

/** A folder entry: an object, or the reason why it is not one. */
export type FolderEntry = { object: ListedObject; odd: null } | { object: null; odd: { name: string; cause: unknown } };

/**
 * The entries of a folder whose names are wanted, with their sizes, a few hundred at a time: memory does not grow with the folder.
 * Entries removed meanwhile are left out. Folders are not objects; one whose name `isObjectName` accepts is reported as odd, and so is an
 * entry that cannot be examined.
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
    // Invalid UTF-8 was decoded to replacement characters, so the name does not lead back to the file.
    else if (name.includes("\ufffd")) yield { object: null, odd: { name, cause: new Error("its name is not UTF-8") } };
  }
}

/** One promise for the whole batch: a promise per name would take most of a listing's time. */
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
