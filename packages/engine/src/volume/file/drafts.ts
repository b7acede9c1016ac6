import { randomUUID } from "node:crypto";
import { mkdir, readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { errnoOf } from "../../errors.ts";
import { Folder } from "../../folder.ts";
import { guardStorage } from "../storage-error.ts";
import { unlinkIfThere } from "./copy-file.ts";

/** Files are created here before they get their name, apart from the volumes, so that searching for leftovers stays cheap. */
export const draftFolder = ".drafts";

/** A private name for a file in the making. Disposing removes whatever still has that name. */
export interface Draft extends AsyncDisposable {
  /** Valid until disposed. */
  readonly path: string;
}

/** A new draft for `path`. Leftovers of an interrupted run for the same path are removed. */
export async function newDraft(path: string): Promise<Draft> {
  const folder = await openDrafts(path);
  try {
    await removeFrom(folder, path);
  } catch (error) {
    await folder[Symbol.asyncDispose]();
    throw error;
  }
  const draft = folder.at(`${draftStart(path)}${randomUUID()}`);
  return {
    path: draft,
    async [Symbol.asyncDispose]() {
      await using _closed = folder;
      await unlinkIfThere(draft);
    },
  };
}

/** Removes every draft of `path`; the folder for drafts exists afterwards. */
export async function removeDrafts(path: string): Promise<void> {
  await using folder = await openDrafts(path);
  await removeFrom(folder, path);
}

/** The folder for drafts beside `path`, created when missing; never one that is reached through a link. */
async function openDrafts(path: string): Promise<Folder> {
  const shown = join(dirname(path), draftFolder);
  return guardStorage(`create ${shown}`, async () => {
    await using parent = await Folder.open(dirname(path));
    await mkdir(parent.at(draftFolder), { mode: 0o770 }).catch((error: unknown) => {
      if (errnoOf(error) !== "EEXIST") throw error;
    });
    return await parent.enter(draftFolder);
  });
}

async function removeFrom(folder: Folder, path: string): Promise<void> {
  for (const name of await guardStorage(`list the drafts of ${path}`, () => readdir(folder.self))) {
    if (name.startsWith(draftStart(path))) await unlinkIfThere(folder.at(name));
  }
}

function draftStart(path: string): string {
  return `${basename(path)}.`;
}
