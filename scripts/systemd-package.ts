import { dirname } from "node:path";
import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's systemd, unpacked (see unpackPackages) if it is not installed: the program that checks units, and the environment to run it in. */
export async function unpackSystemd(
  say: (line: string) => void,
): Promise<{ analyze: string; env: Record<string, string> }> {
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name: "systemd", packages: ["systemd"] }, say);
  const shared = dirname(packageFile("systemd", "{usr/,}lib/*-linux-gnu/systemd/libsystemd-shared-*.so"));
  return {
    analyze: packageFile("systemd", "{usr/,}bin/systemd-analyze"),
    env: { LD_LIBRARY_PATH: `${shared}:${LD_LIBRARY_PATH}` },
  };
}
