import { dirname } from "node:path";
import { packageFile, unpackPackages } from "./debian-packages.ts";

/**
 * Debian's qemu-img, qemu-nbd and qemu-io, see unpackPackages.
 *
 * @param path the PATH that theirs goes before
 * @returns what to set in the environment of a program that runs them
 */
export async function provideQemuUtils(path: string, say: (line: string) => void): Promise<Record<string, string>> {
  const environment = await unpackPackages({ name: "qemu-utils", packages: ["qemu-utils"] }, say);
  return { ...environment, PATH: `${dirname(packageFile("qemu-utils", "usr/bin/qemu-nbd"))}:${path}` };
}
