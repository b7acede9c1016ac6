// `npm run release -- VERSION [--dry-run]`: makes a release of what is committed. It checks that the tree is clean and that every package has
// that version, gives the changes in CHANGELOG.md their version and date, commits and tags that, and writes to `var/release` the sources, the
// build file of the images, and their checksums. `--dry-run` changes neither files nor the repository, and says what would be done.
// Nothing is published: push the branch and the tag, and attach the files.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { BootstrapError, orFail, root, say } from "./bootstrap.mjs";

const usage = "usage: npm run release -- VERSION [--dry-run]";
const unreleased = "## Unreleased\n";

const git = (/** @type {string[]} */ ...args) => execFileSync("git", args, { cwd: root, encoding: "utf8" }).trim();
const read = (/** @type {string} */ path) => readFileSync(join(root, path), "utf8");
const versionIn = (/** @type {string} */ path) => JSON.parse(read(path)).version;

/**
 * Everything that stands in the way, at once.
 * @param {string} version
 * @param {string} changes
 */
function findProblems(version, changes) {
  const problems = [];
  if (git("status", "--porcelain") !== "") problems.push("the tree has changes that are not committed");
  if (git("tag", "--list", `v${version}`) !== "") problems.push(`there is a tag v${version} already`);
  const manifests = ["packages", "apps"].flatMap((folder) =>
    readdirSync(join(root, folder)).map((name) => `${folder}/${name}/package.json`),
  );
  for (const path of ["package.json", ...manifests]) {
    const own = versionIn(path);
    if (own !== version) problems.push(`${path} has version ${own}`);
  }
  if (changes === "") problems.push("CHANGELOG.md tells of no change under Unreleased");
  return problems;
}

/** @param {string} changelog */
function changesIn(changelog) {
  const [, after = ""] = changelog.split(unreleased);
  return (after.split(/^## /m)[0] ?? "").trim();
}

/**
 * The files of a release, and their checksums as `sha256sum --check` reads them.
 * @param {string} version
 * @param {string} ref
 */
function writeFiles(version, ref) {
  const folder = join(root, "var/release");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const name = `tephra-${version}`;
  git("archive", "--format=tar.gz", `--prefix=${name}/`, `--output=${join(folder, `${name}.tar.gz`)}`, ref);
  writeFileSync(join(folder, `${name}.Dockerfile`), `${git("show", `${ref}:Dockerfile`)}\n`);
  const lines = readdirSync(folder)
    .sort()
    .map(
      (file) =>
        `${createHash("sha256")
          .update(readFileSync(join(folder, file)))
          .digest("hex")}  ${file}\n`,
    );
  writeFileSync(join(folder, "SHA256SUMS"), lines.join(""));
  say(`var/release has ${readdirSync(folder).sort().join(", ")}`);
}

await orFail(async () => {
  const options = /** @type {const} */ ({ "dry-run": { type: "boolean", default: false } });
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const [version = "", ...more] = positionals;
  if (!/^\d+\.\d+\.\d+(-[a-z0-9.]+)?$/.test(version) || more.length > 0) throw new BootstrapError(usage);
  const changelog = read("CHANGELOG.md");
  const changes = changesIn(changelog);
  const problems = findProblems(version, changes);
  if (problems.length > 0) throw new BootstrapError(`no release ${version}:\n  ${problems.join("\n  ")}`);
  const count = changes.split(/^- /m).length - 1;
  if (values["dry-run"]) {
    writeFiles(version, "HEAD");
    say(`would give ${count} changes the version ${version}, commit that, and tag it v${version}`);
    return;
  }
  const date = new Date().toISOString().slice(0, 10);
  const released = changelog.replace(unreleased, `${unreleased}\n## ${version} (${date})\n`);
  writeFileSync(join(root, "CHANGELOG.md"), released);
  git("commit", "--quiet", "--message", `Release ${version}`, "--", "CHANGELOG.md");
  git("tag", "--annotate", `v${version}`, "--message", `Tephra ${version}\n\n${changes}`);
  writeFiles(version, `v${version}`);
  say(`tagged v${version}: ${count} changes. Push the branch and the tag, and attach the files.`);
});
