import { execFile } from "node:child_process";
import { cpSync, existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";

const execute = promisify(execFile);
const base = "docker.io/library/node:24-bookworm-slim";
/** What buildah needs where no container engine runs, and where there is no overlay to be had. */
const isolation = { BUILDAH_ISOLATION: "chroot", STORAGE_DRIVER: "vfs" };
const minutes = 60_000;

/** The unpacked file systems of the two images. */
export interface Images {
  service: string;
  migrate: string;
}

/**
 * Builds both images of the Dockerfile, as it is, with buildah and without a registry: the image that it begins with is made of
 * Debian's packages and of the Node and npm of this machine.
 *
 * @throws with what to install, or with the end of what a failed step printed
 */
export async function buildImages(say: (line: string) => void): Promise<Images> {
  if (process.getuid?.() !== 0) throw new Error("images are built by root here: buildah's chroot isolation needs it");
  await provideTools(say);
  if (!(await hasImage(base))) await makeBase(say);
  for (const target of ["migrate", "service"]) {
    say(`building the image "${target}"`);
    await buildah(["bud", "--layers", "--pull-never", "--target", target, "--tag", `tephra-test-${target}`, root]);
  }
  return { service: await unpacked("service"), migrate: await unpacked("migrate") };
}

/** Removes what buildImages unpacked, and the images; the one that they begin with stays. */
export async function removeImages(): Promise<void> {
  for (const target of ["migrate", "service"]) {
    await buildah(["rm", `tephra-test-${target}`]).catch(() => {});
    await buildah(["rmi", "--force", `tephra-test-${target}`]).catch(() => {});
  }
}

async function provideTools(say: (line: string) => void): Promise<void> {
  const missing = ["buildah", "mmdebstrap"].filter((name) => !existsSync(join("/usr/bin", name)));
  if (missing.length === 0) return;
  say(`installing ${missing.join(" and ")} (Debian's packages)`);
  const options = { env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" }, timeout: 10 * minutes };
  await execute("apt-get", ["-q", "update"], options);
  await execute("apt-get", ["-q", "--yes", "--no-install-recommends", "install", ...missing], options);
}

/** Debian's smallest system with Node, npm, the user `node`, and this machine's way to its registries. */
async function makeBase(say: (line: string) => void): Promise<void> {
  const cache = resolve(process.env["TEPHRA_CACHE_DIR"] ?? join(root, "var"));
  const archive = join(cache, "bookworm-base.tar");
  mkdirSync(cache, { recursive: true });
  if (!existsSync(archive)) {
    say("making the system that the images begin with (Debian's packages)");
    const draft = `${archive}.${process.pid}`;
    const words = ["--variant=minbase", "--include=ca-certificates", "--format=tar", "bookworm", draft];
    await execute("mmdebstrap", words, { timeout: 30 * minutes, maxBuffer: 2 ** 26 });
    renameSync(draft, archive);
  }
  const container = (await buildah(["from", "scratch"])).trim();
  try {
    await buildah(["add", container, archive, "/"]);
    const folder = (await buildah(["mount", container])).trim();
    cpSync(projectNode(), join(folder, "usr/local/bin/node"), { dereference: true });
    const { stdout: npm } = await execute("npm", ["root", "--global"]);
    cpSync(join(npm.trim(), "npm"), join(folder, "usr/local/lib/node_modules/npm"), { recursive: true });
    for (const name of ["npm", "npx"]) {
      await execute("ln", ["-s", `../lib/node_modules/npm/bin/${name}-cli.js`, join(folder, "usr/local/bin", name)]);
    }
    for (const path of ["/etc/ssl/certs", "/etc/apt/sources.list.d/debian.sources", join(homedir(), ".npmrc")]) {
      if (existsSync(path)) {
        const target = join(folder, path === join(homedir(), ".npmrc") ? "/root/.npmrc" : path);
        rmSync(target, { recursive: true, force: true });
        mkdirSync(dirname(target), { recursive: true });
        cpSync(path, target, { recursive: true, dereference: true });
      }
    }
    await execute("chroot", [folder, "useradd", "--uid", "1000", "--create-home", "node"]);
    await buildah(["umount", container]);
    await buildah(["config", "--env", "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt", container]);
    await buildah(["commit", container, base]);
  } finally {
    await buildah(["rm", container]);
  }
  rmSync(archive);
}

async function hasImage(name: string): Promise<boolean> {
  return buildah(["inspect", "--type", "image", name]).then(
    () => true,
    () => false,
  );
}

async function unpacked(target: string): Promise<string> {
  await buildah(["rm", `tephra-test-${target}`]).catch(() => {});
  await buildah(["from", "--pull-never", "--name", `tephra-test-${target}`, `tephra-test-${target}`]);
  return (await buildah(["mount", `tephra-test-${target}`])).trim();
}

async function buildah(args: readonly string[]): Promise<string> {
  const options = { env: { ...process.env, ...isolation }, timeout: 30 * minutes, maxBuffer: 2 ** 26 };
  try {
    return (await execute("buildah", args, options)).stdout;
  } catch (cause) {
    const { stderr = "" } = cause as { stderr?: string };
    throw new Error(`buildah ${args[0]} failed:\n${stderr.slice(-4000)}`, { cause });
  }
}
