import { realpath } from "node:fs/promises";
import { basename, dirname, join, resolve, sep } from "node:path";
import { errnoOf, PathNotAllowedError } from "../errors.ts";

/**
 * Resolves every link in the folders of a path that a user named, and checks that the result lies in one of the roots.
 * The last part stays as it is: open it with O_NOFOLLOW. PathNotAllowedError for everything else, missing folders included,
 * so that nothing outside the roots can be probed.
 */
export async function allowedPath(path: string, roots: readonly string[]): Promise<string> {
  const refuse = (cause?: unknown): PathNotAllowedError =>
    new PathNotAllowedError(`The path ${JSON.stringify(path.slice(0, 500))} is not inside an allowed folder.`, {
      cause,
    });
  if (path.includes("\0") || path === "" || path.endsWith("/")) throw refuse();
  const name = basename(path);
  if (["", ".", ".."].includes(name)) throw refuse();
  const folder = await realpath(dirname(resolve(path))).catch((error: unknown) => {
    throw refuse(error);
  });
  for (const root of roots) {
    const realRoot = await realpath(resolve(root)).catch((error: unknown) => {
      if (errnoOf(error) !== "ENOENT") throw error;
    });
    if (realRoot === undefined) continue;
    const start = realRoot.endsWith(sep) ? realRoot : realRoot + sep;
    if (folder === realRoot || folder.startsWith(start)) return join(folder, name);
  }
  throw refuse();
}
