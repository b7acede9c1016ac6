import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { unpackPackages } from "./debian-packages.ts";

const execute = promisify(execFile);

/**
 * ISA-L and its header: the installed ones, otherwise Debian's, see unpackPackages.
 *
 * @returns what to add to the environment of a process that loads the library, or of a compiler
 */
export async function provideIsal(say: (line: string) => void): Promise<Record<string, string>> {
  if ((await isInstalled()) && existsSync("/usr/include/isa-l/igzip_lib.h")) return {};
  const packages = ["libisal2", "libisal-dev"];
  const { LD_LIBRARY_PATH: libraries = "" } = await unpackPackages({ name: "isal", packages }, say);
  const folder = libraries.split(":").find((each) => each.includes("/usr/lib/")) ?? "";
  return { LD_LIBRARY_PATH: libraries, CPATH: join(folder, "../../include") };
}

async function isInstalled(): Promise<boolean> {
  return execute("/sbin/ldconfig", ["-p"]).then(
    ({ stdout }) => stdout.includes("libisal.so.2"),
    () => false,
  );
}
