import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's nginx, unpacked (see unpackPackages) if it is not installed: its program, and the environment to run it in. */
export async function unpackNginx(
  say: (line: string) => void,
): Promise<{ command: string; env: Record<string, string> }> {
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name: "nginx", packages: ["nginx"] }, say);
  return { command: packageFile("nginx", "usr/sbin/nginx"), env: { LD_LIBRARY_PATH } };
}
