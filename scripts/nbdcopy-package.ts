import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's nbdcopy, see unpackPackages. @returns its path, and what to add to its environment */
export async function provideNbdcopy(
  say: (line: string) => void,
): Promise<{ command: string; environment: Record<string, string> }> {
  const environment = await unpackPackages({ name: "libnbd", packages: ["libnbd-bin"] }, say);
  return { command: packageFile("libnbd", "usr/bin/nbdcopy"), environment };
}
