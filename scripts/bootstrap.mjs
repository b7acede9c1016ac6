// Everything that must happen before the product can run: dependencies, generated client, build. Plain JavaScript without a single
// dependency, because it runs on whatever Node the system has (20 or newer) and before node_modules exists. It writes to stderr only:
// stdout belongs to the program that follows.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, unlinkSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { buildNative } from "./build-native.mjs";
import { bundlesPresent } from "./bundle.mjs";

/** The root folder of the checkout. */
export const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");

/** The projects whose `dist` the product runs from, in dependency order. */
export const productProjects = [
  "packages/format",
  "packages/wire",
  "packages/openstack",
  "packages/engine",
  "packages/control",
  "apps/api",
  "apps/worker",
  "apps/transfer",
  "apps/cli",
];

const cacheDir = join(root, "node_modules/.cache/tephra");
const nodeMajorMin = 24;

/**
 * Node flags of every program of the product. By default, V8's young generation grows to 128 MiB in a busy process and stays that large.
 * The launchers of the command lines set the same in their first line. CAs trusted by the machine are accepted; the command lines do that
 * themselves, since a system's Node may not know the flag.
 */
export const nodeFlags = ["--max-semi-space-size=8", "--use-system-ca"];

/** A failure that the user can fix: printed as one sentence, without a stack. */
export class BootstrapError extends Error {}

/**
 * The Node that comes with the project (an npm package), or the running one if it is new enough.
 * @returns {string} the path of the executable
 * @throws {BootstrapError} when neither exists
 */
export function projectNode() {
  const own = join(root, "node_modules/node/bin/node");
  if (existsSync(own)) return own;
  if (Number(process.versions.node.split(".")[0]) >= nodeMajorMin) return process.execPath;
  throw new BootstrapError(
    `Node ${nodeMajorMin} is missing: the package "node" was installed without its install script; run "npm ci" in ${root}`,
  );
}

/**
 * Installs what package-lock.json asks for, unless it is installed already. Idempotent; a second call costs one hash.
 * @returns {Promise<void>}
 * @throws {BootstrapError} when npm is missing or the registry cannot be reached
 */
export async function ensureDependencies() {
  if (dependenciesPresent()) return;
  await withLock(async () => {
    if (dependenciesPresent()) return;
    say("installing dependencies (npm ci), about a minute the first time");
    const result = await run("npm", ["ci", "--include=dev", "--loglevel=error", "--no-progress"], "installing");
    if (result.missing) throw new BootstrapError("npm was not found: install Node.js 20 or newer together with npm");
    if (result.code !== 0) throw new BootstrapError(installFailure(result.output));
    noteInstalled();
  });
}

/**
 * Generates the database client when the schema changed and compiles when any source changed; for the engine also its native part, if
 * there is a C compiler. Silent when there is nothing to do. Concurrent callers do not collide: the second waits for the first.
 * @param {string[]} [projects] folders with a tsconfig.json; projects that they reference are included
 * @param {{typeErrors?: "fail" | "warn"}} [options] whether code that does not type-check may still run
 * @returns {Promise<void>}
 * @throws {BootstrapError} when generating or compiling fails
 */
export async function ensureBuilt(projects = productProjects, { typeErrors = "fail" } = {}) {
  const wanted = withReferences(projects);
  if (wanted.includes("packages/engine")) buildNative(say);
  if (isBuilt(wanted)) return;
  await withLock(async () => {
    if (isBuilt(wanted)) return;
    if (wanted.includes("packages/control")) await generateClient();
    const fingerprint = sourcesFingerprint(wanted);
    say(`compiling ${wanted.join(", ")}`);
    const result = await run(projectNode(), ["node_modules/typescript/bin/tsc", "-b", ...wanted], "compiling");
    if (wanted.includes("apps/cli") && (result.code === 0 || outputsPresent(wanted))) await bundle();
    if (result.code === 0) {
      writeStamp(buildStamp(wanted), fingerprint);
      return;
    }
    process.stderr.write(result.output);
    // The compiler emits its output despite type errors, unless it could not run at all.
    if (typeErrors === "fail" || !outputsPresent(wanted)) throw new BootstrapError("the sources do not compile");
    say("the sources have type errors (above); going on with what the compiler wrote");
  });
}

async function bundle() {
  const { code, output } = await run(projectNode(), ["scripts/bundle.mjs"], "bundling");
  if (code !== 0) throw new BootstrapError(`the command lines could not be bundled:\n${output.trim()}`);
}

/**
 * Builds the console when any of its sources changed. Without it the API says that it is not built; everything else works.
 * @returns {Promise<void>}
 * @throws {BootstrapError} when the build fails
 */
export async function ensureConsole() {
  const folder = join(root, "apps/console");
  const stamp = join(cacheDir, "built-console");
  const isCurrent = () =>
    existsSync(join(folder, "dist/index.html")) && readOrEmpty(stamp) === consoleFingerprint(folder);
  if (isCurrent()) return;
  await withLock(async () => {
    if (isCurrent()) return;
    const fingerprint = consoleFingerprint(folder);
    say("building the console");
    const vite = join(root, "node_modules/vite/bin/vite.js");
    const build = [vite, "build", "--logLevel", "warn", folder];
    // Under a test's, React would be the much larger one for development.
    const result = await run(projectNode(), build, "building the console", { NODE_ENV: "production" });
    if (result.code !== 0) {
      process.stderr.write(result.output);
      throw new BootstrapError("the console does not build");
    }
    writeStamp(stamp, fingerprint);
  });
}

/**
 * Names, sizes and times of the console's sources.
 * @param {string} folder
 */
function consoleFingerprint(folder) {
  const lines = [statLine(join(root, "package-lock.json"))];
  for (const name of ["index.html", "package.json", "vite.config.ts"]) lines.push(statLine(join(folder, name)));
  for (const place of ["src", "public"]) {
    for (const entry of readdirSync(join(folder, place), { recursive: true, withFileTypes: true })) {
      if (entry.isFile()) lines.push(statLine(join(entry.parentPath, entry.name)));
    }
  }
  return hash(lines.sort().join("\n"));
}

/**
 * Generates the Prisma client when prisma/schema.prisma is newer than the generated code. Idempotent.
 * @returns {Promise<void>}
 */
export async function generateClient() {
  if (isGenerated()) return;
  say("generating the database client");
  const result = await run(projectNode(), ["node_modules/prisma/build/index.js", "generate"], "generating", {
    CHECKPOINT_DISABLE: "1",
    PRISMA_HIDE_UPDATE_MESSAGE: "1",
  });
  if (result.code !== 0) {
    process.stderr.write(result.output);
    throw new BootstrapError("the database client could not be generated from prisma/schema.prisma");
  }
  writeStamp(generatedStamp, schemaFingerprint());
}

/**
 * Runs a program on the project's Node: in this process if it already is that Node, otherwise in a child with the same stdio and working
 * directory, whose signals and exit status become those of this process.
 * @param {string} entry path of the program
 * @param {string[]} args
 * @returns {Promise<void>} never settles when a child was started: this process exits with it
 */
export async function reexec(entry, args) {
  if (Number(process.versions.node.split(".")[0]) >= nodeMajorMin) {
    process.argv = [process.execPath, entry, ...args];
    await import(pathToFileURL(entry).href);
    return;
  }
  const child = spawn(projectNode(), [...nodeFlags, entry, ...args], { stdio: "inherit" });
  const onTerminal = process.stdin.isTTY === true;
  for (const signal of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])) {
    // A terminal sends Ctrl-C to the whole group: forwarding it as well would make one press look like two.
    process.on(signal, () => {
      if (signal !== "SIGINT" || !onTerminal) child.kill(signal);
    });
  }
  child.on("error", (error) => fail(new BootstrapError(`the project's Node could not be started: ${error.message}`)));
  child.on("exit", (code, signal) => process.exit(code ?? 128 + (signal ? (constants.signals[signal] ?? 1) : 1)));
  await new Promise(() => {});
}

/**
 * Runs a launcher from start to end: sets up what is missing, then starts the program. Without sources beside it (an installed image that
 * contains only `dist`) the program just runs.
 * @param {{entry: string, args: string[], projects: string[], withConsole?: boolean}} what
 * @returns {Promise<void>}
 */
export async function launch({ entry, args, projects, withConsole = false }) {
  await orFail(async () => {
    await ensureDependencies();
    await ensureBuilt(projects);
    if (withConsole) await ensureConsole();
    await reexec(entry, args);
  });
}

/**
 * Runs `work`; a BootstrapError ends the process with one sentence and status 1.
 * @param {() => Promise<void>} work
 */
export async function orFail(work) {
  try {
    await work();
  } catch (error) {
    fail(error);
  }
}

/** @param {unknown} error */
function fail(error) {
  if (!(error instanceof BootstrapError)) throw error;
  process.stderr.write(`tephra: ${error.message}\n`);
  process.exit(1);
}

/** @param {string} line */
export function say(line) {
  process.stderr.write(`tephra: ${line}\n`);
}

const installedStamp = join(cacheDir, "installed");
const generatedStamp = join(cacheDir, "generated");

function dependenciesPresent() {
  const lock = readOrEmpty(join(root, "package-lock.json"));
  if (!existsSync(join(root, "node_modules/.package-lock.json"))) return false;
  if (readOrEmpty(installedStamp) === hash(lock)) return true;
  // If node_modules was installed by hand: npm's own record of it must agree with the lock file.
  const installed = JSON.parse(readFileSync(join(root, "node_modules/.package-lock.json"), "utf8")).packages;
  for (const [path, entry] of Object.entries(JSON.parse(lock).packages)) {
    if (!path.includes("node_modules/") || entry.optional) continue;
    if (entry.link && !existsSync(join(root, path))) return false;
    if (entry.link) continue;
    if (installed[path]?.version !== entry.version) return false;
  }
  noteInstalled();
  return true;
}

function noteInstalled() {
  writeStamp(installedStamp, hash(readFileSync(join(root, "package-lock.json"), "utf8")));
}

/** @param {string} output */
function installFailure(output) {
  const tail = output.trim().split("\n").slice(-6).join("\n");
  if (/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|network/i.test(output)) {
    return `the npm registry cannot be reached; check the network or npm's registry setting, then run "npm ci" in ${root}`;
  }
  return `"npm ci" failed in ${root}:\n${tail}`;
}

function schemaFingerprint() {
  return hash(readOrEmpty(join(root, "prisma/schema.prisma")) + readOrEmpty(join(root, "package-lock.json")));
}

function isGenerated() {
  return (
    existsSync(join(root, "packages/control/src/generated/client.ts")) &&
    readOrEmpty(generatedStamp) === schemaFingerprint()
  );
}

/** @param {string[]} projects */
function isBuilt(projects) {
  if (projects.includes("packages/control") && !isGenerated()) return false;
  if (projects.includes("apps/cli") && !bundlesPresent()) return false;
  return outputsPresent(projects) && readOrEmpty(buildStamp(projects)) === sourcesFingerprint(projects);
}

/** @param {string[]} projects */
function outputsPresent(projects) {
  return projects.every((project) => existsSync(join(root, project, "dist/.tsbuildinfo")));
}

/** @param {string[]} projects */
function buildStamp(projects) {
  return join(cacheDir, `built-${hash(projects.join()).slice(0, 12)}`);
}

/**
 * Names, sizes and times of all sources: reading them would cost more than skipping the compiler saves.
 * @param {string[]} projects
 */
function sourcesFingerprint(projects) {
  const all = ["tsconfig.base.json", "package-lock.json", "scripts/bundle.mjs"];
  const lines = all.map((name) => statLine(join(root, name)));
  for (const project of projects) {
    lines.push(statLine(join(root, project, "tsconfig.json")));
    for (const name of readdirSync(join(root, project, "src"), { recursive: true, encoding: "utf8" })) {
      if (name.endsWith(".ts") && !name.endsWith(".test.ts")) lines.push(statLine(join(root, project, "src", name)));
    }
  }
  return hash(lines.sort().join("\n"));
}

/** @param {string} path */
function statLine(path) {
  const { size, mtimeMs } = statSync(path);
  return `${relative(root, path)} ${size} ${mtimeMs}`;
}

/**
 * @param {string[]} projects
 * @returns {string[]} the projects and everything they reference, sorted, without duplicates
 */
function withReferences(projects) {
  const found = new Set();
  const visit = (/** @type {string} */ project) => {
    if (found.has(project)) return;
    found.add(project);
    const config = JSON.parse(readFileSync(join(root, project, "tsconfig.json"), "utf8"));
    for (const { path } of config.references ?? []) visit(relative(root, resolve(root, project, path)));
  };
  for (const project of projects) visit(project);
  return [...found].sort();
}

/**
 * Runs a command in the checkout and reports every ten seconds that it is still running.
 * @param {string} command
 * @param {string[]} args
 * @param {string} doing
 * @param {Record<string, string>} [env]
 * @returns {Promise<{code: number, output: string, missing: boolean}>}
 */
function run(command, args, doing, env = {}) {
  return new Promise((done) => {
    const started = Date.now();
    const child = spawn(command, args, {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...env },
    });
    let output = "";
    const collect = (/** @type {Buffer} */ chunk) => {
      output = (output + chunk.toString()).slice(-200_000);
    };
    child.stdout.on("data", collect);
    child.stderr.on("data", collect);
    const ticker = setInterval(() => say(`still ${doing} (${Math.round((Date.now() - started) / 1000)} s)`), 10_000);
    const settle = (/** @type {{code: number, missing: boolean}} */ result) => {
      clearInterval(ticker);
      done({ ...result, output });
    };
    child.on("error", (error) => settle({ code: 1, missing: "code" in error && error.code === "ENOENT" }));
    child.on("close", (code) => settle({ code: code ?? 1, missing: false }));
  });
}

/**
 * Allows one set-up at a time per checkout. The lock is a file with its holder's pid: a dead holder does not block.
 * @param {() => Promise<void>} work
 */
async function withLock(work) {
  const path = join(root, "var/bootstrap.lock");
  mkdirSync(dirname(path), { recursive: true });
  const deadline = Date.now() + 10 * 60_000;
  while (!tryLock(path)) {
    if (Date.now() > deadline) throw new BootstrapError(`another set-up has held ${path} for ten minutes; remove it`);
    await new Promise((resume) => setTimeout(resume, 100));
  }
  try {
    await work();
  } finally {
    rmSync(path, { force: true });
  }
}

/** @param {string} path */
function tryLock(path) {
  try {
    writeFileSync(path, String(process.pid), { flag: "wx" });
    return true;
  } catch {
    const holder = Number(readOrEmpty(path));
    const ageMs = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
    // An empty lock means that its holder has not written its pid yet, unless it stays empty.
    if (holder > 0 ? !isAlive(holder) : ageMs > 5000) {
      try {
        unlinkSync(path);
      } catch {
        // Another process removed it first.
      }
    }
    return false;
  }
}

/** @param {number} pid */
function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/**
 * @param {string} path
 * @param {string} text
 */
function writeStamp(path, text) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

/** @param {string} path */
function readOrEmpty(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

/** @param {string} text */
function hash(text) {
  return createHash("sha256").update(text).digest("hex");
}
