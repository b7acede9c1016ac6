import { execFile } from "node:child_process";
import { existsSync, globSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { root } from "./bootstrap.mjs";

const execute = promisify(execFile);

/** The interpreter for Debian's packages: any other python3 lacks their modules. */
export const systemPython = "/usr/bin/python3";

/**
 * Downloads and unpacks, without installing, those Debian packages and dependencies that this system lacks: no root is needed, and
 * installed packages are used where they are (packageFile). Done once; kept in `var/<name>-pkg`, or in a folder that several checkouts
 * share (TEPHRA_CACHE_DIR).
 *
 * @returns what to add to the environment of `systemPython`
 * @throws with instructions when this is not Debian or its packages cannot be downloaded
 */
export async function unpackPackages(
  wanted: { name: string; packages: readonly string[] },
  say: (line: string) => void,
): Promise<Record<string, string>> {
  const { name, packages } = wanted;
  const target = unpackedFolder(name);
  if (!existsSync(target)) {
    say(`downloading ${packages[0]} (Debian's packages, nothing is installed)`);
    const unfinished = `${target}.${process.pid}`;
    try {
      await download(unfinished, packages);
      if (!existsSync(target)) renameSync(join(unfinished, "root"), target);
    } catch (cause) {
      const advice = `these suites need Debian's ${packages[0]}; they can be left out by naming others`;
      throw new Error(`Debian's packages could not be had: ${advice}`, { cause });
    } finally {
      rmSync(unfinished, { recursive: true, force: true });
    }
  }
  return {
    PYTHONPATH: join(target, "usr/lib/python3/dist-packages"),
    LD_LIBRARY_PATH: libraryFolders(target).join(":"),
  };
}

/**
 * A file from packages requested of unpackPackages: where they were unpacked, or the system's copy, since installed packages are not
 * unpacked again.
 *
 * @param pattern relative to the file system root, such as `usr/bin/redis-server`; may contain wildcards
 * @throws when it is in neither place
 */
export function packageFile(name: string, pattern: string): string {
  const places = [unpackedFolder(name), "/"].map((place) => join(place, pattern));
  const [found] = places.flatMap((place) => globSync(place));
  if (found === undefined) throw new Error(`Debian's packages "${name}" have no file at ${places.join(" or ")}`);
  return found;
}

function unpackedFolder(name: string): string {
  return join(resolve(process.env["TEPHRA_CACHE_DIR"] ?? join(root, "var")), `${name}-pkg`);
}

/** apt with its own lists, cache and archives: it determines what is missing here, and downloads without installing. */
async function download(folder: string, packages: readonly string[]): Promise<void> {
  for (const path of ["lists/partial", "cache/archives/partial", "root"]) {
    mkdirSync(join(folder, path), { recursive: true });
  }
  const settings = [
    `Dir::State::lists=${folder}/lists`,
    `Dir::Cache=${folder}/cache`,
    "Dir::State::status=/var/lib/dpkg/status",
    "APT::Sandbox::User=", // As root, apt would download as a user who cannot write here.
    "Acquire::Languages=none",
    "Acquire::Retries=3",
    "Debug::NoLocking=true", // dpkg's lock belongs to root, and nothing of dpkg's is written.
  ].flatMap((setting) => ["-o", setting]);
  const options = { cwd: folder, timeout: 300_000, maxBuffer: 2 ** 24 };
  const missing = ["--yes", "--no-install-recommends", "--no-upgrade", "--download-only", "install", ...packages];
  await execute("apt-get", [...settings, "-q", "update"], options);
  await execute("apt-get", [...settings, "-q", ...missing], options);
  const archives = join(folder, "cache/archives");
  for (const name of readdirSync(archives).filter((entry) => entry.endsWith(".deb"))) {
    await execute("dpkg", ["-x", join(archives, name), join(folder, "root")], options);
  }
}

function libraryFolders(target: string): string[] {
  return ["usr/lib", "lib"]
    .map((name) => join(target, name))
    .filter((folder) => existsSync(folder))
    .flatMap((folder) => readdirSync(folder).map((name) => join(folder, name)))
    .filter((folder) => folder.endsWith("-linux-gnu"));
}
