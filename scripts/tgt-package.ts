import { dirname } from "node:path";
import { packageFile, unpackPackages } from "./debian-packages.ts";

/**
 * Debian's tgtd, an iSCSI target that needs nothing of the kernel, and tgtadm; see unpackPackages.
 *
 * @returns what to set in the environment of a program that runs them
 */
export async function provideTgt(say: (line: string) => void): Promise<Record<string, string>> {
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name: "tgt", packages: ["tgt"] }, say);
  return { LD_LIBRARY_PATH, PATH: `${dirname(packageFile("tgt", "usr/sbin/tgtd"))}:${process.env["PATH"]}` };
}
