import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  symlink,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { provideFileSystems } from "../../scripts/file-systems-package.ts";
import { randomBytesOf } from "./bytes.ts";

const MiB = 1024 * 1024;

/** Puts Debian's programs that make file systems on this process's PATH. */
export async function installFileSystems(): Promise<void> {
  const say = (line: string) => process.stderr.write(`${line}\n`);
  Object.assign(process.env, await provideFileSystems(process.env["PATH"] ?? "", say));
}

/** Runs one of them. @throws unless it ends with 0 */
export async function run(command: string, ...args: string[]): Promise<string> {
  const options = { timeout: 300_000, maxBuffer: 64 * MiB };
  return (await promisify(execFile)(command, args, options)).stdout;
}

/** Fed to its standard input. */
export function runWith(input: string, command: string, ...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = execFile(command, args, { timeout: 60_000 }, (error, out) => (error ? reject(error) : resolve(out)));
    child.stdin?.end(input);
  });
}

export const manyNames = 10_000;
/** No name has more bytes; that of four letters has the most that one can have in UTF-8. */
const longName = "n".repeat(255);
const wideName = "\u{1f30b}".repeat(60);

/**
 * A folder with all that is hard: a directory of that many names, long ones and such of Unicode, files of some bytes and of none, sparse files
 * with many stretches and without any byte, links.
 */
export async function makeTree(dir: string, names = manyNames): Promise<void> {
  for (const name of ["etc/ssh", "many", "names", "sparse", "empty"]) await mkdir(join(dir, name), { recursive: true });
  await writeFile(join(dir, "etc/hostname"), "tephra\n");
  await writeFile(join(dir, "etc/ssh/key"), "k".repeat(140), { mode: 0o600 });
  await writeFile(join(dir, "etc/large"), randomBytesOf("large", 3 * MiB + 77));
  await writeFile(join(dir, "etc/nothing"), "");
  await utimes(join(dir, "etc/hostname"), 1_000_000_000, 1_000_000_000);
  for (const [at, name] of [longName, wideName, "Käse und Brot", "火山", "a b\tc", "-rf"].entries())
    await writeFile(join(dir, "names", name), `name ${at}`);
  for (let each = 0; each < names; each++)
    await writeFile(join(dir, "many", nameOf(each)), each % 100 === 0 ? `${each}` : "");
  await writeComb(join(dir, "sparse/comb"), 1_500);
  await writeFile(join(dir, "sparse/hole"), "");
  await truncate(join(dir, "sparse/hole"), 5 * 1024 * MiB);
  await symlink("../etc/hostname", join(dir, "names/short-link"));
  await symlink(`/${"far/".repeat(80)}away`, join(dir, "names/long-link"));
  await symlink("/etc", join(dir, "link-to-folder"));
}

export const nameOf = (each: number): string => `file-${String(each).padStart(5, "0")}-of-a-large-directory`;

/** A file of that many stretches of 4 KiB, with holes of as many bytes between them. */
async function writeComb(path: string, teeth: number): Promise<void> {
  await using file = await open(path, "w");
  const bytes = randomBytesOf("comb", teeth * 4096);
  for (let each = 0; each < teeth; each++) await file.write(bytes, each * 4096, 4096, (each * 2 + 1) * 4096);
}

export interface TreeEntry {
  path: string;
  type: "file" | "directory" | "link";
  size: number | null;
  mode: number;
  target: string | null;
  sha256: string | null;
}

/** Everything below a folder; the bytes of files of at most 16 MiB are hashed. */
export async function treeOf(dir: string, path = ""): Promise<TreeEntry[]> {
  const entries: TreeEntry[] = [];
  for (const name of await readdir(join(dir, path))) {
    const each = `${path}/${name}`;
    const stat = await lstat(join(dir, each));
    const type = stat.isSymbolicLink() ? "link" : stat.isDirectory() ? "directory" : "file";
    entries.push({
      path: each,
      type,
      size: type === "directory" ? null : stat.size,
      mode: stat.mode % 4096,
      target: type === "link" ? await readlink(join(dir, each)) : null,
      sha256: type === "file" && stat.size <= 16 * MiB ? sha256(await readFile(join(dir, each))) : null,
    });
    if (type === "directory") entries.push(...(await treeOf(dir, each)));
  }
  return entries;
}

export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** An ext file system of a folder's files. `options`: further arguments of mke2fs. */
export async function makeExt(path: string, dir: string | null, size: string, ...options: string[]): Promise<void> {
  await run("mke2fs", "-q", "-F", ...(dir === null ? [] : ["-d", dir]), ...options, path, size);
}

/** An XFS of a folder's files, without those whose names have white space, which its description cannot say, and without holes. */
export async function makeXfs(path: string, dir: string, sizeMib: number, ...options: string[]): Promise<void> {
  const lines = ["/dev/null", "0 0", "d--755 0 0", ...(await protoOf(dir)), "$"];
  await writeFile(`${path}.proto`, `${lines.join("\n")}\n`);
  await writeFile(path, "");
  await truncate(path, sizeMib * MiB);
  await run("mkfs.xfs", "-q", "-f", ...options, "-p", `${path}.proto`, path);
}

async function protoOf(dir: string): Promise<string[]> {
  const lines: string[] = [];
  for (const name of (await readdir(dir)).filter((each) => !/\s/.test(each))) {
    const path = join(dir, name);
    const stat = await lstat(path);
    const mode = (stat.mode % 512).toString(8).padStart(3, "0");
    if (stat.isSymbolicLink()) lines.push(`${name} l--777 0 0 ${await readlink(path)}`);
    else if (stat.isDirectory()) lines.push(`${name} d--${mode} 0 0`, ...(await protoOf(path)), "$");
    else if (stat.size < 1024 * MiB) lines.push(`${name} ---${mode} 0 0 ${path}`);
  }
  return lines;
}

/** Runs `work` with a folder where the kernel has mounted an image. False where it does not, as in most containers. */
export async function whileMounted(path: string, work: (dir: string) => Promise<void>): Promise<boolean> {
  const dir = `${path}.mount`;
  await mkdir(dir);
  const isMounted = await run("mount", "-o", "loop", path, dir).then(
    () => true,
    () => false,
  );
  if (!isMounted) return false;
  try {
    await work(dir);
  } finally {
    await run("umount", dir);
  }
  return true;
}

/** A FAT of a folder's files, without links. `bits`: 12, 16 or 32. */
export async function makeFat(path: string, dir: string, sizeMib: number, bits: 12 | 16 | 32): Promise<void> {
  await writeFile(path, "");
  await truncate(path, sizeMib * MiB);
  await run("mkfs.fat", "-F", String(bits), "-n", "VOLCANO", path);
  const names = (await readdir(dir)).map((name) => join(dir, name));
  await run("mcopy", "-i", path, "-s", "-m", ...names, "::/");
}

/** A disk of a table that sfdisk understands. `parts`: files that go to byte offsets. */
export async function makeDisk(
  path: string,
  table: string,
  { sizeMib, parts }: { sizeMib: number; parts: readonly { file: string; atMib: number }[] },
): Promise<void> {
  await writeFile(path, "");
  await truncate(path, sizeMib * MiB);
  await runWith(table, "sfdisk", "-q", path);
  for (const { file, atMib } of parts)
    await run("dd", `if=${file}`, `of=${path}`, "bs=1M", `seek=${atMib}`, "conv=notrunc,sparse", "status=none");
}
