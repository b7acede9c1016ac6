import { unpackedFolder, unpackPackages } from "./debian-packages.ts";

/** The storage daemon, for which no machine is needed, and the agent that runs in guests. */
const packages = ["qemu-system-common", "qemu-guest-agent"];

/**
 * Debian's QEMU as far as it runs without a machine, see unpackPackages.
 *
 * @returns the folder above its `usr`, and what to add to the environment of its programs
 */
export async function unpackQemu(
  say: (line: string) => void,
): Promise<{ folder: string; environment: Record<string, string> }> {
  const environment = await unpackPackages({ name: "qemu", packages }, say);
  return { folder: unpackedFolder("qemu"), environment };
}
