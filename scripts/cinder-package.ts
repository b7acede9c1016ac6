import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { systemPython, unpackPackages } from "./debian-packages.ts";

/** The drivers, and what they import: for zstd, for S3 and for Swift. */
const packages = ["python3-cinder", "python3-zstd", "python3-boto3", "python3-swiftclient", "python3-pkg-resources"];
const probe = "import cinder.backup.chunkeddriver, zstd, boto3, swiftclient";
const execute = promisify(execFile);

/**
 * A real Cinder's backup drivers: those that are installed; else root installs Debian's, and anybody else unpacks them.
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
