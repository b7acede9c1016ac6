import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { link, lstat, open, rename, stat, unlink, utimes } from "node:fs/promises";
import { constants as osConstants } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { errnoOf } from "../errors.ts";
import { fileMode, ignoreMissing } from "./posix-files.ts";

/**
 * How a file is given a name that must not be taken yet, best first: by a hard link; by renameat2(2) with RENAME_NOREPLACE, where a file
 * system has no hard links; or, with neither, by exclusively creating an empty file of that name and renaming over it. A writer that dies
 * between the two leaves an empty file, which the next one takes over after `claimMs`.
 */
export type Publishing = "link" | "rename" | "claim";

/** Error codes of file systems without hard links: EPERM from vfat and exFAT, ENOSYS from FUSE, the rest from others. */
const noLinks = ["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK", "EINVAL"];
/** How long a claimed name may stay empty before its writer is presumed dead. Renaming takes microseconds. */
const claimMs = 5_000;
const claimPollMs = 20;

/** Probes the file system with uniquely named files in a folder, which are removed afterwards. */
export async function probePublishing(folder: string): Promise<Publishing> {
  const [one, other] = [join(folder, randomUUID()), join(folder, randomUUID())];
  try {
    await createEmpty(one);
    try {
      await link(one, other);
      return "link";
    } catch (error) {
      if (!noLinks.includes(errnoOf(error))) throw error;
    }
    // Some file systems ignore the flag and replace the target.
    await createEmpty(other);
    if ((await renameAbsent(one, other)) !== "EEXIST") return "claim";
    await unlink(other);
    return (await renameAbsent(one, other)) === null ? "rename" : "claim";
  } finally {
    for (const path of [one, other]) await unlink(path).catch(ignoreMissing);
  }
}

/**
 * Gives a file one more name unless that is taken, and the present as the time of its last change. Null where that cannot be done: another
 * file system, a file of somebody else, or too many names.
 */
export async function linkFile(file: string, path: string): Promise<"linked" | "taken" | null> {
  try {
    await link(file, path);
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return "taken";
    if ([...noLinks, "EXDEV", "EACCES"].includes(errnoOf(error))) return null;
    throw error;
  }
  const now = new Date();
  // Who does not own it may not.
  await utimes(path, now, now).catch(() => {});
  return "linked";
}

/** Whether two names are those of one file. */
export async function isSameFile(one: string, other: string): Promise<boolean> {
  const [first, second] = [await lstat(one), await lstat(other)];
  return first.ino === second.ino && first.dev === second.dev;
}

/** Gives a complete, durable file its name unless the name is taken; its previous name may remain. */
export async function publishFile(way: Publishing, file: string, path: string): Promise<"stored" | "taken"> {
  try {
    if (way === "link") await link(file, path);
    if (way === "rename") await renameOrThrow(file, path);
    if (way === "claim") await createEmpty(path);
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
    if (way !== "claim" || (await becomesFull(path, (await stat(file)).size))) return "taken";
  }
  if (way === "claim") await rename(file, path);
  return "stored";
}

/** Whether a claimed name gets its file in time; when the file to publish is empty itself, the name already holds it. */
async function becomesFull(path: string, sizeBytes: number): Promise<boolean> {
  const end = performance.now() + claimMs;
  for (;;) {
    const found = await stat(path).catch(ignoreMissing);
    if (found === undefined || found.size > 0 || sizeBytes === 0) return found !== undefined;
    if (performance.now() > end) return false;
    await delay(claimPollMs);
  }
}

async function createEmpty(path: string): Promise<void> {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
  await (await open(path, flags, fileMode)).close();
}

async function renameOrThrow(from: string, to: string): Promise<void> {
  const errno = await renameAbsent(from, to);
  if (errno !== null) throw Object.assign(new Error(`renameat2: ${errno}`), { code: errno });
}

type RenameAt = (fromFolder: number, from: string, toFolder: number, to: string, flags: number) => number;

/** Linux's `AT_FDCWD` and `RENAME_NOREPLACE`. */
const [workingFolder, noReplace] = [-100, 1];
let loaded: Promise<{ call: RenameAt; errno: () => number } | null> | null = null;

/** The errno name, or null for success. Where the call is unavailable, the error of a kernel without it. */
async function renameAbsent(from: string, to: string): Promise<string | null> {
  loaded ??= loadRename();
  const native = await loaded;
  if (native === null) return "ENOSYS";
  if (native.call(workingFolder, from, workingFolder, to, noReplace) === 0) return null;
  const number = native.errno();
  const [name] = Object.entries(osConstants.errno).find(([, value]) => value === number) ?? ["EIO"];
  return name;
}

async function loadRename() {
  try {
    const { default: koffi } = await import("koffi");
    const prototype = "int renameat2(int fromFolder, str from, int toFolder, str to, uint flags)";
    return { call: koffi.load("libc.so.6").func(prototype) as RenameAt, errno: () => koffi.errno() };
  } catch {
    return null;
  }
}
