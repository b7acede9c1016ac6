import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's strace, see unpackPackages. @returns its path, and what to add to its environment */
export async function provideStrace(
  say: (line: string) => void,
): Promise<{ command: string; environment: Record<string, string> }> {
  const environment = await unpackPackages({ name: "strace", packages: ["strace"] }, say);
  return { command: packageFile("strace", "usr/bin/strace"), environment };
}
