import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's HAProxy, unpacked (see unpackPackages) if it is not installed: its program, and the environment to run it in. */
export async function unpackHaproxy(
  say: (line: string) => void,
): Promise<{ command: string; env: Record<string, string> }> {
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name: "haproxy", packages: ["haproxy"] }, say);
  return { command: packageFile("haproxy", "usr/sbin/haproxy"), env: { LD_LIBRARY_PATH } };
}
