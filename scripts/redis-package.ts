import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { root } from "./bootstrap.mjs";

const packages = ["redis-server", "redis-tools", "libjemalloc2", "liblua5.1-0", "liblzf1", "libatomic1"];
const execute = promisify(execFile);

/**
 * Debian's Redis, downloaded and unpacked without being installed: the system stays as it is, and no root is needed.
 * Done once; kept in `var/redis-pkg`, or in a folder that several checkouts share (TEPHRA_CACHE_DIR).
 *
 * @throws with the command to run when this is no Debian or its packages cannot be reached
 */
export async function unpackRedis(
  say: (line: string) => void,
): Promise<{ command: string; env: Record<string, string> }> {
  const target = join(resolve(process.env["TEPHRA_CACHE_DIR"] ?? join(root, "var")), "redis-pkg");
  if (!existsSync(target)) {
    say("downloading Redis (Debian's packages, nothing is installed)");
    const unfinished = `${target}.${process.pid}`;
    try {
      await download(unfinished);
      if (!existsSync(target)) renameSync(join(unfinished, "root"), target);
    } catch (cause) {
      const advice = 'set REDIS_URL, or run "apt-get install redis-server" as root, and start again';
      throw new Error(`no Redis was found, and Debian's packages could not be had: ${advice}`, { cause });
    } finally {
      rmSync(unfinished, { recursive: true, force: true });
    }
  }
  return { command: join(target, "usr/bin/redis-server"), env: { LD_LIBRARY_PATH: libraryFolders(target).join(":") } };
}

/** apt with lists, cache and archives of its own, since those of the system may be old, or not ours to write. */
async function download(folder: string): Promise<void> {
  for (const path of ["lists/partial", "cache/archives/partial", "root"]) {
    mkdirSync(join(folder, path), { recursive: true });
  }
  const settings = [
    `Dir::State::lists=${folder}/lists`,
    `Dir::Cache=${folder}/cache`,
    "Dir::State::status=/var/lib/dpkg/status",
    "APT::Sandbox::User=", // As root apt would download as a user who cannot write here.
    "Acquire::Languages=none",
    "Acquire::Retries=3",
  ].flatMap((setting) => ["-o", setting]);
  const options = { cwd: folder, timeout: 180_000, maxBuffer: 2 ** 24 };
  await execute("apt-get", [...settings, "-q", "update"], options);
  await execute("apt-get", [...settings, "-q", "download", ...packages], options);
  for (const name of readdirSync(folder).filter((entry) => entry.endsWith(".deb"))) {
    await execute("dpkg", ["-x", join(folder, name), join(folder, "root")], options);
  }
}

function libraryFolders(target: string): string[] {
  return ["usr/lib", "lib"]
    .map((name) => join(target, name))
    .filter((folder) => existsSync(folder))
    .flatMap((folder) => readdirSync(folder).map((name) => join(folder, name)))
    .filter((folder) => folder.endsWith("-linux-gnu"));
}
