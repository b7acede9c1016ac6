import { packageFile, unpackPackages } from "./debian-packages.ts";

/** The storage daemon, which needs no machine, and the guest agent. */
const packages = ["qemu-system-common", "qemu-guest-agent"];

/**
 * A program of Debian's QEMU that runs without a machine, see unpackPackages.
 *
 * @returns its path, and what to add to its environment
 */
export async function provideQemu(
  name: "qemu-storage-daemon" | "qemu-ga",
  say: (line: string) => void,
): Promise<{ command: string; environment: Record<string, string> }> {
  const environment = await unpackPackages({ name: "qemu", packages }, say);
  return { command: packageFile("qemu", `usr/{bin,sbin}/${name}`), environment };
}
