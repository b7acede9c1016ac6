import { delimiter, dirname } from "node:path";
import { packageFile, unpackPackages } from "./debian-packages.ts";

const name = "file-systems";

/**
 * Debian's programs that make file systems in images: mke2fs and debugfs, mkfs.xfs, mkfs.vfat and mcopy, sfdisk; see unpackPackages.
 *
 * @returns what to put over the environment of a process that runs them by name
 */
export async function provideFileSystems(path: string, say: (line: string) => void): Promise<Record<string, string>> {
  const packages = ["xfsprogs", "dosfstools", "mtools", "e2fsprogs", "fdisk"];
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name, packages }, say);
  const programs = ["sbin/mke2fs", "sbin/mkfs.xfs", "sbin/mkfs.fat", "usr/bin/mcopy", "sbin/sfdisk"];
  const folders = new Set(programs.map((program) => dirname(packageFile(name, program))));
  return { PATH: [...folders, path].join(delimiter), LD_LIBRARY_PATH };
}
