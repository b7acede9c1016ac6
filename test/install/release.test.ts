import { execFileSync, spawnSync } from "node:child_process";
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";

let dir = "";
const git = (...args: string[]): string => execFileSync("git", args, { cwd: dir, encoding: "utf8" }).trim();
const commit = (): string => git("commit", "--quiet", "--all", "--message", "Changes");
const release = (...args: string[]) => {
  const { status, stdout, stderr } = spawnSync(projectNode(), [join(dir, "scripts/release.mjs"), ...args], {
    encoding: "utf8",
  });
  return { status, text: `${stdout}${stderr}` };
};
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

/** What a release is made of, in a repository of its own. */
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "tephra-release-"));
  for (const name of ["package.json", "Dockerfile", "scripts", ".gitignore"]) {
    cpSync(join(root, name), join(dir, name), { recursive: true });
  }
  for (const folder of ["packages", "apps"]) {
    for (const name of readdirSync(join(root, folder))) {
      cpSync(join(root, folder, name, "package.json"), join(dir, folder, name, "package.json"));
    }
  }
  writeFileSync(join(dir, "CHANGELOG.md"), "# Changelog\n\n## Unreleased\n\n- One.\n- Another.\n");
  git("init", "--quiet", "--initial-branch=main");
  git("config", "user.name", "Releaser");
  git("config", "user.email", "releaser@example.com");
  git("add", "--all");
  git("commit", "--quiet", "--message", "Everything");
});
afterAll(() => rmSync(dir, { recursive: true }));

test("a dry run writes the files and their checksums, and changes nothing", () => {
  const before = git("rev-parse", "HEAD");
  const { status, text } = release(version, "--dry-run");
  expect(text).toMatch(new RegExp(`would give 2 changes the version ${version}`));
  expect(status).toBe(0);
  const files = readdirSync(join(dir, "var/release")).sort();
  expect(files).toEqual(["SHA256SUMS", `tephra-${version}.Dockerfile`, `tephra-${version}.tar.gz`]);
  execFileSync("sha256sum", ["--check", "--strict", "SHA256SUMS"], { cwd: join(dir, "var/release") });
  const archive = execFileSync("tar", ["tzf", join(dir, "var/release", `tephra-${version}.tar.gz`)], {
    encoding: "utf8",
  });
  expect(archive.split("\n")).toContain(`tephra-${version}/Dockerfile`);
  expect([git("rev-parse", "HEAD"), git("tag"), git("status", "--porcelain")]).toEqual([before, "", ""]);
});

test("what stands in the way is told at once, and nothing is done", () => {
  expect(release("next").status).not.toBe(0);
  appendFileSync(join(dir, "Dockerfile"), "# changed\n");
  const { status, text } = release("99.0.0");
  expect(status).not.toBe(0);
  expect(text).toContain("not committed");
  expect(text).toContain(`apps/api/package.json has version ${version}`);
  expect(git("tag")).toBe("");
  git("checkout", "--quiet", "Dockerfile");
});

test("a release gives the changes their version, commits, tags, and is not made twice", () => {
  expect(release(version)).toMatchObject({ status: 0 });
  const today = new Date().toISOString().slice(0, 4);
  const changelog = readFileSync(join(dir, "CHANGELOG.md"), "utf8");
  expect(changelog).toMatch(
    new RegExp(`^## Unreleased\\n\\n## ${version.replaceAll(".", "\\.")} \\(${today}-\\d\\d-\\d\\d\\)\\n\\n- `, "m"),
  );
  expect(git("log", "-1", "--format=%s")).toBe(`Release ${version}`);
  expect(git("rev-parse", `v${version}^{commit}`)).toBe(git("rev-parse", "HEAD"));
  expect(git("status", "--porcelain")).toBe("");
  expect(existsSync(join(dir, "var/release/SHA256SUMS"))).toBe(true);
  const again = release(version);
  expect(again.status).not.toBe(0);
  expect(again.text).toContain(`there is a tag v${version} already`);
  expect(again.text).toContain("no change under Unreleased");
  writeFileSync(join(dir, "CHANGELOG.md"), changelog.replace("## Unreleased\n", "## Unreleased\n\n- More.\n"));
  commit();
  expect(release(version).text).not.toContain("no change under Unreleased");
});
