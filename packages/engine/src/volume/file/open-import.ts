import { lstat } from "node:fs/promises";
import { PathNotAllowedError, SourceMissingError } from "../../errors.ts";
import type { UserPlaces } from "../backend.ts";
import { type FileSource, openFileSource } from "./file-source.ts";
import { openUserPath } from "./user-path.ts";

/** Opens a file named by a user; the checks use the same descriptor that is then read. */
export async function openImport(path: string, places: UserPlaces): Promise<FileSource> {
  await using named = await openUserPath(path, places);
  const entry = named.folder.at(named.name);
  const status = await lstat(entry).catch((error: unknown) => {
    throw new SourceMissingError(`There is no file ${path}.`, { cause: error });
  });
  const refused = new PathNotAllowedError(`${path} is not a regular file inside an allowed folder.`);
  if (!status.isFile()) throw refused;
  const source = await openFileSource(entry, named.path);
  try {
    if (!(await source.isRegular())) throw refused;
    named.refuseReserved(await source.identity());
    await named.assertInPlace();
    return source;
  } catch (error) {
    await source[Symbol.asyncDispose]();
    throw error;
  }
}
