import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { packageFile, unpackPackages } from "./debian-packages.ts";

/**
 * Debian's qemu-img, qemu-nbd and qemu-io with what they need for iSCSI and Ceph, see unpackPackages.
 *
 * @param path the PATH that theirs goes before
 * @returns what to set in the environment of a program that runs them
 */
export async function provideQemuBlock(path: string, say: (line: string) => void): Promise<Record<string, string>> {
  const name = "qemu-block";
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name, packages: ["qemu-utils", "qemu-block-extra"] }, say);
  // Ceph's libraries find their own part by a path in the system.
  const libraries = LD_LIBRARY_PATH.split(":").flatMap((folder) => [folder, join(folder, "ceph")]);
  return {
    LD_LIBRARY_PATH: libraries.filter((folder) => existsSync(folder)).join(":"),
    QEMU_MODULE_DIR: dirname(packageFile(name, "usr/lib/*-linux-gnu/qemu/block-iscsi.so")),
    PATH: `${dirname(packageFile(name, "usr/bin/qemu-nbd"))}:${path}`,
  };
}
