import { randomUUID } from "node:crypto";
import { mkdir, readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { unlinkIfThere } from "./copy-file.ts";
import { guardStorage } from "./storage-error.ts";

/** Where files are made before they get their name, apart from the volumes so that looking for leftovers stays cheap. */
export const draftFolder = ".drafts";

/** A new private name for what will become `path`. What an interrupted run has left for the same path is removed. */
export async function newDraft(path: string): Promise<string> {
  await removeDrafts(path);
  return join(dirname(path), draftFolder, `${draftStart(path)}${randomUUID()}`);
}

/** Removes every draft of `path`; the folder for drafts is there afterwards. */
export async function removeDrafts(path: string): Promise<void> {
  const folder = join(dirname(path), draftFolder);
  await guardStorage(`create ${folder}`, () => mkdir(folder, { recursive: true, mode: 0o770 }));
  for (const name of await guardStorage(`list ${folder}`, () => readdir(folder))) {
    if (name.startsWith(draftStart(path))) await unlinkIfThere(join(folder, name));
  }
}

function draftStart(path: string): string {
  return `${basename(path)}.`;
}
