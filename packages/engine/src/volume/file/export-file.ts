import { constants } from "node:fs";
import { link, lstat, open, readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, PathNotAllowedError, PathTakenError } from "../../errors.ts";
import { identityOf } from "../../folder.ts";
import { idsIn } from "../../format/ids-in.ts";
import type { RunContext } from "../../run/run-context.ts";
import type { ExportOptions, ExportRun, UserPlaces, VolumeBackend } from "../backend.ts";
import { guardStorage } from "../storage-error.ts";
import { type CopySource, copyToNewFile, unlinkIfThere } from "./copy-file.ts";
import { syncFolder } from "./sync-folder.ts";
import { openUserPath, type UserPath } from "./user-path.ts";

/** A draft that an export has left in a user's folder. */
export interface ExportLeftover {
  name: string;
  operationId: string;
  modifiedAt: Date;
  remove(): Promise<void>;
}

const draftStart = ".tephra-export-";
const draftOf = ({ operationId, claim }: ExportRun): string => `${draftStart}${operationId}-${claim}`;

/**
 * Writes a source to a file named by a user, which appears completely or not at all. PathTakenError when the name exists, unless it is a
 * regular file and may be replaced. Can be run again after a crash at any point, with the next claim. Where nothing was replaced, the
 * draft remains as a second name of the file, by which a later run recognizes the file as its own; call `removeExportDrafts` when the
 * success has been recorded.
 */
export async function exportToFile(
  source: CopySource,
  path: string,
  { places, run, overwrite }: ExportOptions,
  ctx: RunContext,
): Promise<{ sizeBytes: number }> {
  await using named = await openUserPath(path, places);
  const done = await sizeIfWritten(named, run);
  if (done !== null) return { sizeBytes: done };
  await refuseTaken(named, overwrite);
  await removeDraftsOf(named, run);
  const draft = named.folder.at(draftOf(run));
  let published = false;
  try {
    await named.assertInPlace();
    const copied = await copyToNewFile(source, draft, ctx);
    await refuseTaken(named, overwrite);
    await named.assertInPlace();
    ctx.signal.throwIfAborted();
    ctx.fence();
    await guardStorage(`create ${named.path}`, () => publish(named, draft, overwrite));
    published = true;
    await syncFolder(named.folder.self);
    return copied;
  } finally {
    if (!published) await unlinkIfThere(draft);
  }
}

/** As exportToFile, of a volume by its id: the file is raw, whatever the driver stores. */
export async function exportVolume(
  backend: Pick<VolumeBackend, "openSource">,
  volumeId: string,
  { path, ...options }: ExportOptions & { path: string },
  ctx: RunContext,
): Promise<{ sizeBytes: number }> {
  await using source = await backend.openSource({ volumeId });
  return await exportToFile(Object.assign(source, { path: `volume-${volumeId}` }), path, options, ctx);
}

/** Removes the drafts of an operation's exports to `path` up to this claim. A folder that is gone, or no longer allowed, is success. */
export async function removeExportDrafts(path: string, places: UserPlaces, run: ExportRun): Promise<void> {
  try {
    await using named = await openUserPath(path, places);
    await removeDraftsOf(named, run);
  } catch (error) {
    if (!(error instanceof PathNotAllowedError)) throw error;
  }
}

/** Drafts in a folder that was used for exports. A missing folder has none. */
export async function* exportLeftovers(folder: string, places: UserPlaces): AsyncGenerator<ExportLeftover> {
  const named = await openUserPath(join(folder, draftStart), places).catch((error: unknown): undefined => {
    if (!(error instanceof PathNotAllowedError)) throw error;
  });
  if (named === undefined) return;
  await using opened = named;
  for (const name of await guardStorage(`list ${folder}`, () => readdir(opened.folder.self))) {
    const [operationId] = name.startsWith(draftStart) ? idsIn(name) : [];
    if (operationId === undefined) continue;
    const status = await lstat(opened.folder.at(name)).catch(() => undefined);
    if (!status?.isFile()) continue;
    const remove = () => guardStorage(`remove ${join(folder, name)}`, () => unlinkIfThere(opened.folder.at(name)));
    yield { name, operationId, modifiedAt: status.mtime, remove };
  }
}

/** The file's length if an earlier run of the same operation has already published it; otherwise null. */
async function sizeIfWritten({ folder, name }: UserPath, { operationId, claim }: ExportRun): Promise<number | null> {
  const look = (entry: string) => lstat(folder.at(entry), { bigint: true }).catch(() => undefined);
  const target = await look(name);
  if (target === undefined) return null;
  for (let earlier = 0; earlier < claim; earlier++) {
    const draft = await look(draftOf({ operationId, claim: earlier }));
    if (draft !== undefined && identityOf(draft) === identityOf(target)) return Number(target.size);
  }
  return null;
}

async function removeDraftsOf({ folder }: UserPath, { operationId, claim }: ExportRun): Promise<void> {
  for (let each = 0; each <= claim; each++) await unlinkIfThere(folder.at(draftOf({ operationId, claim: each })));
}

async function refuseTaken(named: UserPath, overwrite: boolean): Promise<void> {
  const status = await lstat(named.folder.at(named.name), { bigint: true }).catch(() => undefined);
  if (status === undefined) return;
  if (!status.isFile()) throw new PathNotAllowedError(`${named.path} exists and is not a regular file.`);
  named.refuseReserved(identityOf(status));
  if (!overwrite) throw taken(named);
}

const taken = ({ path }: UserPath): PathTakenError =>
  new PathTakenError(`There is a file ${path} already, and it was not asked to be replaced (overwrite).`);

/** Gives the draft its name. Without `overwrite`, a file that has taken the name meanwhile is kept. */
async function publish(named: UserPath, draft: string, overwrite: boolean): Promise<void> {
  const target = named.folder.at(named.name);
  if (overwrite) return rename(draft, target);
  try {
    await link(draft, target);
  } catch (error) {
    if (errnoOf(error) === "EEXIST") throw taken(named);
    // Without hard links, an empty file reserves the name until it is replaced.
    if (!["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK"].includes(errnoOf(error))) throw error;
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    const placeholder = await open(target, flags, 0o660).catch((cause: unknown) => {
      throw errnoOf(cause) === "EEXIST" ? taken(named) : cause;
    });
    await placeholder.close();
    await rename(draft, target);
  }
}
