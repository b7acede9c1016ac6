import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { link, open, rename, stat, unlink } from "node:fs/promises";
import { constants as osConstants } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { errnoOf } from "../errors.ts";
import { fileMode, ignoreMissing } from "./posix-files.ts";

/**
 * How a file gets a name that must not be taken yet, best first: by a hard link; by renameat2(2) with RENAME_NOREPLACE, where a file system
 * has no hard links; or, where it has neither, by creating the name exclusively and empty, and renaming the file onto it. A writer that dies
 * between the two leaves an empty file, which the next one takes over after `claimMs`.
 */
export type Publishing = "link" | "rename" | "claim";

/** What file systems without hard links answer: vfat and exFAT EPERM, FUSE ENOSYS, others the rest. */
const noLinks = ["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK", "EINVAL"];
/** How long a name that was claimed may stay empty before its writer counts as dead. Renaming takes microseconds. */
const claimMs = 5_000;
const claimPollMs = 20;

/** Finds out in a folder of the file system, with files of names of their own that are gone afterwards. */
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
    // Some pass the flag over, and replace what is there.
    await createEmpty(other);
    if ((await renameAbsent(one, other)) !== "EEXIST") return "claim";
    await unlink(other);
    return (await renameAbsent(one, other)) === null ? "rename" : "claim";
  } finally {
    for (const path of [one, other]) await unlink(path).catch(ignoreMissing);
  }
}

/** Gives a whole, durable file its name unless the name is taken; the name it had before may stay, too. */
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

/** Whether a name that somebody has claimed gets its file in time; what is as empty as the file to be published is full. */
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

/** `AT_FDCWD` and `RENAME_NOREPLACE` of Linux. */
const [workingFolder, noReplace] = [-100, 1];
let loaded: Promise<{ call: RenameAt; errno: () => number } | null> | null = null;

/** The name of the error, or null for success. Where the call is not to be had it is the one of a kernel without it. */
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
