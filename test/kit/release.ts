import { execFile } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { projectNode, root } from "../../scripts/bootstrap.mjs";

const run = promisify(execFile);
const buildMs = 5 * 60_000;

/** The release that this one follows cannot be had here, and why. */
export class NoReleaseError extends Error {}

/** The ref in TEPHRA_UPGRADE_FROM, else the last tag before HEAD, else the last merge. */
async function lastRelease(): Promise<{ commit: string; hasOurDependencies: boolean }> {
  const git = async (...args: string[]): Promise<string> => (await run("git", ["-C", root, ...args])).stdout.trim();
  try {
    await git("rev-parse", "HEAD");
  } catch (cause) {
    throw new NoReleaseError("there is no git, or no history, to build the last release from", { cause });
  }
  const named = process.env["TEPHRA_UPGRADE_FROM"];
  const tag = await git("describe", "--tags", "--abbrev=0", "HEAD^").catch(() => "");
  const ref = named ?? (tag || (await git("log", "--merges", "-1", "--format=%H")));
  if (ref === "")
    throw new NoReleaseError("no tag and no merge in the history: name the release in TEPHRA_UPGRADE_FROM");
  const commit = await git("rev-parse", "--verify", "--quiet", `${ref}^{commit}`).catch(() => "");
  if (commit === "") throw new NoReleaseError(`the history does not have ${ref}`);
  const locks = await git("diff", "--name-only", commit, "--", "package-lock.json");
  return { commit, hasOurDependencies: locks === "" };
}

/**
 * Builds the last release in a folder of its own, with the dependencies of this checkout where they are the same, else with its own.
 *
 * @returns the folder, which is removed with the stack
 * @throws NoReleaseError
 */
export async function buildLastRelease(dir: string, stack: AsyncDisposableStack): Promise<string> {
  const { commit, hasOurDependencies } = await lastRelease();
  const checkout = join(dir, `release-${commit.slice(0, 12)}`);
  stack.defer(() => rmSync(checkout, { recursive: true, force: true }));
  mkdirSync(checkout);
  await run("sh", ["-c", 'git -C "$1" archive "$2" | tar -x -C "$3"', "sh", root, commit, checkout]);
  if (hasOurDependencies) linkAllModules(checkout);
  else await run("npm", ["ci", "--no-audit", "--no-fund"], { cwd: checkout, timeout: buildMs, maxBuffer: 1 << 26 });
  const build = 'import("./scripts/bootstrap.mjs").then(({ ensureBuilt }) => ensureBuilt())';
  await run(projectNode(), ["-e", build], { cwd: checkout, timeout: buildMs, maxBuffer: 1 << 26 });
  return checkout;
}

function linkAllModules(checkout: string): void {
  linkModules(join(root, "node_modules"), join(checkout, "node_modules"));
  for (const app of readdirSync(join(checkout, "apps"))) {
    linkModules(join(root, "apps", app, "node_modules"), join(checkout, "apps", app, "node_modules"));
  }
}

/** Dependencies are shared; the project's own workspaces are those of the checkout. */
function linkModules(from: string, to: string): void {
  let names: string[];
  try {
    names = readdirSync(from);
  } catch {
    return; // The workspace has no dependencies of its own.
  }
  mkdirSync(to, { recursive: true });
  for (const name of names.filter((each) => !each.startsWith(".") && each !== "@tephra")) {
    symlinkSync(join(from, name), join(to, name));
  }
  if (!names.includes("@tephra")) return;
  mkdirSync(join(to, "@tephra"));
  for (const folder of ["packages", "apps"]) {
    for (const name of readdirSync(join(dirname(to), folder))) {
      symlinkSync(join("../..", folder, name), join(to, "@tephra", name));
    }
  }
}
