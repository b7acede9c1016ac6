import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { expect, inject, test } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";

/** Files of the bundle that belong to a driver, whatever hash their names end with. */
const driverFiles =
  /^(?:s3|swift|nbd-client|nbd-volume|iscsi|rbd|serve-rbd|qemu|new-image|image-source|event-streams|files-thread)\b/;
/** Packages that a backup into a folder may load: the calls of the C library, and the native hashing. */
const packagesForFolders = ["koffi", "@koromix/koffi-linux-x64", "@tephra/engine"];
const modulesMax = 24;

function folder(): string {
  return realpathSync(mkdtempSync(join(inject("servers").dir, "start-up-")));
}

/** Runs the program and says which files its threads have loaded, in the order of loading. */
function loadedBy(program: string, args: readonly string[], cwd: string): string[] {
  const list = join(cwd, "loaded.txt");
  const hook = join(cwd, "hook.mjs");
  writeFileSync(
    hook,
    `import { appendFileSync } from "node:fs";
    import { registerHooks } from "node:module";
    registerHooks({ load: (url, context, next) => {
      if (url.startsWith("file:")) appendFileSync(${JSON.stringify(list)}, new URL(url).pathname + "\\n");
      return next(url, context);
    } });
    const load = process.dlopen;
    process.dlopen = (...args) => {
      appendFileSync(${JSON.stringify(list)}, args[1] + "\\n");
      return load.apply(process, args);
    };`,
  );
  const entry = join(root, "apps/cli/dist/bundle", `${program}.js`);
  spawnSync(projectNode(), ["--import", hook, entry, ...args], { cwd, encoding: "utf8", timeout: 60_000 });
  return readFileSync(list, "utf8").trim().split("\n");
}

const inBundle = (path: string): boolean => path.includes("/apps/cli/dist/bundle/");
const packageOf = (path: string): string | undefined => /\/node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1];

test("a backup of a file into a folder loads no driver of anything else", () => {
  const cwd = folder();
  writeFileSync(join(cwd, "disk.img"), Buffer.alloc(200_000, "data"));
  const args = ["backup", "--repository", "posix:repository", "--source", "disk.img", "--compression", "none"];
  const loaded = loadedBy("tephra-engine", args, cwd);
  const bundled = loaded.filter(inBundle).map((path) => basename(path));
  expect(bundled.filter((name) => driverFiles.test(name))).toEqual([]);
  expect(bundled).toContain("cpu-thread.js");
  const others = loaded.filter((path) => !inBundle(path)).map(packageOf);
  expect(others.filter((name) => name !== undefined && !packagesForFolders.includes(name))).toEqual([]);
  expect(loaded.length).toBeLessThanOrEqual(modulesMax);
  // The rule would hold of a bundle that has swallowed the drivers, too.
  const text = bundled.map((name) => readFileSync(join(root, "apps/cli/dist/bundle", name), "utf8")).join("\n");
  expect(text).not.toMatch(
    /\b(?:S3Client|S3Store|SwiftStore|NbdClient) = class|class (?:S3Client|S3Store|SwiftStore|NbdClient) /,
  );
});

test("the driver of S3 is loaded for S3 alone, and its client with it", () => {
  const url = "s3://bucket?endpoint=http%3A%2F%2F127.0.0.1%3A9&access_key=a&secret_key=b&retries=1";
  const loaded = loadedBy("tephra-engine", ["list", "--repository", url], folder());
  const text = loaded
    .filter(inBundle)
    .map((path) => readFileSync(path, "utf8"))
    .join("\n");
  expect(loaded.map((path) => basename(path)).filter((name) => driverFiles.test(name))).not.toEqual([]);
  expect(text).toMatch(/class S3Client |S3Client = class/);
  expect(text).not.toMatch(/class SwiftStore |SwiftStore = class/);
});

test("the service's command line loads no package but those in its bundle", () => {
  const loaded = loadedBy("tephra", ["--help"], folder());
  expect(
    loaded
      .filter((path) => !inBundle(path))
      .map(packageOf)
      .filter((name) => name !== undefined),
  ).toEqual([]);
  expect(loaded.length).toBeLessThanOrEqual(8);
});

test.each(["tephra", "tephra-engine"])("%s starts the project's own Node, and no other before it", (name) => {
  const cwd = folder();
  const programs = join(cwd, "programs");
  mkdirSync(programs);
  writeFileSync(join(programs, "node"), "#!/bin/sh\necho another Node >&2\nexit 99\n");
  chmodSync(join(programs, "node"), 0o755);
  const env = { PATH: `${programs}:/usr/bin:/bin`, HOME: cwd };
  const stdout = execFileSync(join(root, "node_modules/.bin", name), ["--help"], { cwd, env, encoding: "utf8" });
  expect(stdout).toMatch(new RegExp(`^Usage: ${name} `));
});

test("the bundle finds the native hashing and the C library's calls from where it lies", () => {
  const cwd = folder();
  writeFileSync(join(cwd, "disk.img"), Buffer.alloc(200_000, "data"));
  const args = ["backup", "--repository", "posix:repository", "--source", "disk.img", "--compression", "bz2"];
  const loaded = loadedBy("tephra-engine", args, cwd);
  expect(loaded).toContain(join(root, "packages/engine/dist/native/hashing.node"));
  expect(loaded.map(packageOf)).toContain("koffi");
});
