import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { systemPython, unpackPackages } from "./debian-packages.ts";

/** The drivers and their imports: for zstd, S3 and Swift. */
const packages = ["python3-cinder", "python3-zstd", "python3-boto3", "python3-swiftclient", "python3-pkg-resources"];
const probe = "import cinder.backup.chunkeddriver, zstd, boto3, swiftclient";
const execute = promisify(execFile);

/**
 * Cinder's own backup drivers: the installed ones; otherwise root installs Debian's packages, and other users unpack them.
 *
 * @returns what to add to the environment of `systemPython`
 */
export async function provideCinder(say: (line: string) => void): Promise<Record<string, string>> {
  if (await isInstalled()) return {};
  if (process.getuid?.() !== 0) return unpackPackages({ name: "cinder", packages }, say);
  say("installing python3-cinder (Debian's packages)");
  const options = { env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" }, timeout: 600_000, maxBuffer: 2 ** 24 };
  await execute("apt-get", ["-q", "update"], options);
  await execute("apt-get", ["-q", "--yes", "--no-install-recommends", "install", ...packages], options);
  return {};
}

async function isInstalled(): Promise<boolean> {
  return execute(systemPython, ["-c", probe]).then(
    () => true,
    () => false,
  );
}
