import { realpath, stat } from "node:fs/promises";
import { basename, dirname, join, relative, resolve, sep } from "node:path";
import { errnoOf, PathNotAllowedError } from "../../errors.ts";
import { Folder, identityOf } from "../../folder.ts";
import type { UserPlaces } from "../backend.ts";
import { guardStorage } from "../storage-error.ts";

/** The folder of a path named by a user, held open, and the last component of that path. */
export interface UserPath extends AsyncDisposable {
  readonly folder: Folder;
  readonly name: string;
  /** The path as given, without `..`. */
  readonly path: string;
  /** PathNotAllowedError when an open file's or folder's identity is one of the service's own. */
  refuseReserved(identity: string): void;
  /**
   * PathNotAllowedError when the folder has moved meanwhile: to be called before the first byte is written and before the file gets its
   * name.
   */
  assertInPlace(): Promise<void>;
}

/**
 * Opens the folder of a path named by a user, from its root downwards, each component within the previous one and none of them a link.
 * PathNotAllowedError for every path that is not beneath a root or is within a reserved place, missing folders included, so that nothing
 * outside the roots can be probed.
 */
export async function openUserPath(path: string, places: UserPlaces): Promise<UserPath> {
  const refuse = (cause?: unknown): PathNotAllowedError =>
    new PathNotAllowedError(`The path ${JSON.stringify(path.slice(0, 500))} is not inside an allowed folder.`, {
      cause,
    });
  if (path.includes("\0") || path === "" || path.endsWith("/")) throw refuse();
  const name = basename(path);
  if (["", ".", ".."].includes(name)) throw refuse();
  const clean = resolve(path);
  const root = rootOf(clean, places.roots);
  if (root === null) throw refuse();
  const names = relative(root, dirname(clean))
    .split(sep)
    .filter((part) => part !== "");
  const reserved = await lookAtReserved(places.reserved ?? []);
  const refuseReserved = (identity: string): void => {
    if (reserved.identities.has(identity)) throw refuse();
  };
  await using opened = new AsyncDisposableStack();
  let rootPath: string;
  let folder: Folder;
  try {
    folder = await Folder.open(root);
    opened.use(folder);
    rootPath = await folder.currentPath();
    if (reserved.paths.some((place) => isWithin(rootPath, place))) throw refuse();
    for (const part of names) {
      folder = opened.use(await folder.enter(part));
      refuseReserved(await folder.identity());
    }
  } catch (error) {
    if (error instanceof PathNotAllowedError) throw error;
    throw refuse(error);
  }
  const held = opened.move();
  const assertInPlace = async (): Promise<void> => {
    const now = await folder.currentPath();
    if (now !== join(rootPath, ...names)) throw refuse(new Error(`the folder was moved to ${now}`));
  };
  return {
    folder,
    name,
    path: clean,
    refuseReserved,
    assertInPlace,
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  };
}

/** The innermost root above a path, compared as text. */
function rootOf(path: string, roots: readonly string[]): string | null {
  const around = roots.map((root) => resolve(root)).filter((root) => root !== path && isWithin(path, root));
  return around.sort((a, b) => b.length - a.length)[0] ?? null;
}

function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith(sep) ? folder : folder + sep);
}

/** By identity, since a bind mount or a hard link leads to the same file by another path. */
async function lookAtReserved(places: readonly string[]): Promise<{ identities: Set<string>; paths: string[] }> {
  const identities = new Set<string>();
  const paths: string[] = [];
  for (const place of places) {
    const missing = (error: unknown): undefined => {
      if (!["ENOENT", "ENOTDIR"].includes(errnoOf(error))) throw error;
    };
    const status = await guardStorage(`look at ${place}`, () => stat(place, { bigint: true }).catch(missing));
    if (status === undefined) continue;
    identities.add(identityOf(status));
    paths.push(await guardStorage(`look at ${place}`, () => realpath(place)));
  }
  return { identities, paths };
}
