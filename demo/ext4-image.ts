import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { constants, existsSync } from "node:fs";
import { copyFile, mkdir, open, readdir, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** Many small files cost time without adding bytes. */
const filesMax = 12_000;
const fileBytesMax = 48 * 1024 * 1024;

/** The two programs of e2fsprogs, which are often in a folder that is on root's PATH only. */
export interface Ext4Tools {
  mkfs: string;
  debugfs: string;
}

/** @returns null when the machine has no e2fsprogs */
export function findExt4Tools(): Ext4Tools | null {
  const folders = [...(process.env["PATH"] ?? "").split(":"), "/usr/sbin", "/sbin", "/usr/local/sbin"];
  const find = (name: string): string | undefined =>
    folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
  const mkfs = find("mkfs.ext4");
  const debugfs = find("debugfs");
  return mkfs === undefined || debugfs === undefined ? null : { mkfs, debugfs };
}

/**
 * Makes an ext4 file system with copies of files of this machine, `dataBytes` of them at most. Needs no privilege.
 *
 * @param options.sources folders, the most wanted first; whatever cannot be read is left out
 * @returns paths and sizes of the files inside the image
 */
export async function makeExt4Image(
  tools: Ext4Tools,
  options: { path: string; sizeBytes: number; dataBytes: number; sources: readonly string[] },
): Promise<{ path: string; bytes: number }[]> {
  const staging = `${options.path}.files`;
  const files: { path: string; bytes: number }[] = [];
  try {
    await mkdir(staging);
    const share = options.dataBytes / 2;
    let left = options.dataBytes;
    for (const source of options.sources) {
      const copied = await copyFiles(source, staging, {
        bytesMax: Math.min(share, left),
        filesMax: filesMax - files.length,
      });
      files.push(...copied);
      left -= copied.reduce((sum, file) => sum + file.bytes, 0);
    }
    await run(tools.mkfs, ["-q", "-F", "-b", "4096", "-d", staging, options.path, `${options.sizeBytes / 1024}k`]);
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
  return files;
}

async function copyFiles(
  source: string,
  staging: string,
  { bytesMax, filesMax: countMax }: { bytesMax: number; filesMax: number },
): Promise<{ path: string; bytes: number }[]> {
  const copied: { path: string; bytes: number }[] = [];
  let bytes = 0;
  for await (const path of filesBelow(source)) {
    if (bytes >= bytesMax || copied.length >= countMax) break;
    const { size } = await stat(path);
    if (size === 0 || size > fileBytesMax || bytes + size > bytesMax) continue;
    const inside = relative("/", path);
    const target = join(staging, inside);
    try {
      await mkdir(dirname(target), { recursive: true });
      await copyFile(path, target, constants.COPYFILE_FICLONE);
    } catch {
      continue; // Not for this user to read.
    }
    bytes += size;
    copied.push({ path: `/${inside}`, bytes: size });
  }
  return copied;
}

/** Regular files, folders in the order of their names; links are not followed. */
async function* filesBelow(folder: string): AsyncGenerator<string> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path);
    else if (entry.isFile()) yield path;
  }
}

/** Whether the file holds an ext2, ext3 or ext4 file system: the magic number of its superblock. */
export async function isExt4(path: string): Promise<boolean> {
  await using file = await open(path);
  const { buffer, bytesRead } = await file.read(Buffer.alloc(2), 0, 2, 1024 + 56);
  return bytesRead === 2 && buffer.readUInt16LE() === 0xef53;
}

/**
 * Changes about `bytes` of the image through its file system: some of `files` are replaced by others of the same size,
 * one is removed, and new ones are added.
 *
 * @throws when debugfs does not write to it (a journal to be replayed, no space)
 */
export async function changeExt4Image(
  { debugfs }: Ext4Tools,
  options: { path: string; bytes: number; files: readonly { path: string; bytes: number }[]; scratchDir: string },
): Promise<void> {
  const scratch = join(options.scratchDir, "changes");
  await mkdir(scratch);
  try {
    const commands: string[] = [];
    let left = options.bytes;
    // debugfs splits its commands at blanks.
    const plain = options.files.filter((file) => /^[\w./+-]+$/.test(file.path) && file.bytes < options.bytes / 4);
    const [gone, ...others] = plain.filter((_, i) => i % 97 === 0);
    if (gone !== undefined) commands.push(`rm ${gone.path}`);
    const put = async (bytes: number, path: string): Promise<void> => {
      const content = join(scratch, String(commands.length));
      await writeFile(content, randomBytes(bytes));
      commands.push(`write ${content} ${path}`);
      left -= bytes;
    };
    for (const file of others) {
      if (left < options.bytes / 4) break;
      commands.push(`rm ${file.path}`);
      await put(file.bytes, file.path);
    }
    while (left > 0) await put(Math.min(left, 1024 * 1024), `/added-${commands.length}`);
    const script = join(scratch, "commands");
    await writeFile(script, `${commands.join("\n")}\n`);
    const { stderr } = await run(debugfs, ["-w", "-f", script, options.path], { maxBuffer: 64 * 1024 * 1024 });
    const faults = stderr.split("\n").filter((line) => line !== "" && !line.startsWith("debugfs "));
    if (faults.length > 0) throw new Error(`debugfs: ${faults.slice(0, 3).join("; ")}`);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}
