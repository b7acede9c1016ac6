// `npm run test:fresh`: proves that nothing but the checkout is needed. Clones HEAD into a new folder and runs what a newcomer would run,
// with an empty HOME and an empty npm cache, as root and as an ordinary user created for it. Options: `--user root|ordinary|current` and
// `--step start|demo|test` (each may be repeated) run only those.
import { execFileSync, spawn } from "node:child_process";
import { createWriteStream, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { root } from "./bootstrap.mjs";

const minute = 60_000;
/** Time limits of the steps on two cores; a hanging step is killed a little later. */
const limitsMs = { start: 4 * minute, "second start": 15_000, demo: 4 * minute, test: 10 * minute };
const ordinaryUser = "tephra-fresh";

/** @typedef {{name: string, uid: number, gid: number}} User */
/** @typedef {{user: string, step: string, seconds: number, limitSeconds: number, passed: boolean, note: string}} Row */

const { values: options } = parseArgs({
  options: { user: { type: "string", multiple: true }, step: { type: "string", multiple: true } },
});
const steps = options.step ?? ["start", "demo", "test"];
/** @type {Row[]} */
const rows = [];
/** @type {Set<import("node:child_process").ChildProcess>} */
const running = new Set();

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.on(signal, () => {
    for (const child of running) endGroup(child, "SIGKILL");
    removeOrdinaryUser();
    process.exit(130);
  });
}

mkdirSync(join(root, "var"), { recursive: true });
const isRoot = process.getuid?.() === 0;
if (!isRoot) process.stdout.write("not root: only the current user is tried\n");
try {
  for (const name of isRoot ? (options.user ?? ["root", "ordinary"]) : ["current"]) await tryAs(userNamed(name));
} finally {
  removeOrdinaryUser();
}
report();
process.exitCode = rows.length > 0 && rows.every((row) => row.passed) ? 0 : 1;

/** @param {User} user */
async function tryAs(user) {
  // Not below a private folder: when run as root, PostgreSQL runs as another user, who needs access.
  const folder = mkdtempSync("/var/tmp/tephra-fresh-");
  try {
    const home = join(folder, "home");
    mkdirSync(home);
    execFileSync("git", ["clone", "--quiet", root, join(folder, "checkout")], { stdio: "inherit" });
    execFileSync("chmod", ["755", folder]);
    if (isRoot) execFileSync("chown", ["-R", `${user.uid}:${user.gid}`, folder]);
    for (const step of ["start", "demo", "test"]) {
      if (!steps.includes(step)) continue;
      if (step === "start") await tryStart(user, folder);
      else await tryScript(user, folder, step);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * Runs `npm start` until it is ready, stops it with Ctrl-C, and repeats.
 * @param {User} user
 * @param {string} folder
 */
async function tryStart(user, folder) {
  const port = await freePort();
  for (const step of /** @type {const} */ (["start", "second start"])) {
    const program = run(user, folder, ["start"], { TEPHRA_PORT: String(port) }, step);
    const line = `ready http://127.0.0.1:${port}`;
    const ready = await program.until(line, limitsMs[step] + minute);
    const seconds = program.seconds();
    endGroup(program.child, "SIGINT");
    const status = await program.ended(minute);
    const note = ready ? (status === 0 ? "" : `Ctrl-C ended with ${status}`) : program.tail();
    record(user, step, seconds, ready && status === 0, note);
  }
}

/**
 * @param {User} user
 * @param {string} folder
 * @param {string} step
 */
async function tryScript(user, folder, step) {
  const limitMs = limitsMs[/** @type {"demo" | "test"} */ (step)];
  const program = run(user, folder, step === "test" ? ["test"] : ["run", step], {}, step);
  const status = await program.ended(limitMs + minute);
  record(user, step, program.seconds(), status === 0, status === 0 ? program.lastLine() : program.tail());
}

/**
 * Runs npm in the clone, with nothing of this process's environment but what every login has.
 * @param {User} user
 * @param {string} folder
 * @param {string[]} args
 * @param {Record<string, string>} env
 * @param {string} step
 */
function run(user, folder, args, env, step) {
  const home = join(folder, "home");
  process.stdout.write(`${user.name}: npm ${args.join(" ")}\n`);
  const kept = Object.entries(process.env).filter(([name]) => keptVariable(name));
  const child = spawn("npm", args, {
    cwd: join(folder, "checkout"),
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...Object.fromEntries(kept), PATH: systemPath(), HOME: home, npm_config_cache: join(home, "npm"), ...env },
    ...(isRoot ? { uid: user.uid, gid: user.gid } : {}),
  });
  running.add(child);
  const started = performance.now();
  let output = "";
  const log = createWriteStream(join(root, "var", `fresh-${user.name}-${step.replace(" ", "-")}.log`));
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (/** @type {Buffer} */ chunk) => {
      log.write(chunk);
      output = (output + chunk.toString()).slice(-100_000);
    });
  }
  /** @type {Promise<number | null>} */
  const exit = new Promise((done) => {
    child.on("error", () => done(null));
    child.on("close", (code) => done(code));
  });
  void exit.then(() => {
    running.delete(child);
    log.end();
  });
  return {
    child,
    seconds: () => (performance.now() - started) / 1000,
    tail: () => output.trimEnd().split("\n").slice(-15).join("\n"),
    lastLine: () => output.trimEnd().split("\n").at(-1) ?? "",
    /** Whether the text appeared before the program ended and within the timeout. */
    until: async (/** @type {string} */ text, /** @type {number} */ timeoutMs) => {
      const deadline = performance.now() + timeoutMs;
      while (!output.includes(text)) {
        if (!running.has(child) || performance.now() > deadline) return false;
        await new Promise((resume) => setTimeout(resume, 50));
      }
      return true;
    },
    ended: async (/** @type {number} */ timeoutMs) => {
      const timer = setTimeout(() => endGroup(child, "SIGKILL"), timeoutMs);
      const status = await exit;
      clearTimeout(timer);
      return status;
    },
  };
}

/**
 * How to reach package servers depends on the machine, not on the user: proxies and certificates are kept.
 * @param {string} name
 */
function keptVariable(name) {
  return /^(LANG|TERM|.*_proxy|.*_PROXY|SSL_CERT_.*|NODE_EXTRA_CA_CERTS|npm_config_(registry|cafile|proxy|https_proxy))$/.test(
    name,
  );
}

/** PATH entries that npm has prepended belong to this checkout, not to the clone. */
function systemPath() {
  return (process.env["PATH"] ?? "")
    .split(":")
    .filter((folder) => !folder.includes("node_modules") && !folder.startsWith("/root/"))
    .join(":");
}

/**
 * @param {import("node:child_process").ChildProcess} child
 * @param {NodeJS.Signals} signal
 */
function endGroup(child, signal) {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, signal);
  } catch {
    // It has already exited.
  }
}

/**
 * @param {string} name
 * @returns {User}
 */
function userNamed(name) {
  if (name !== "ordinary") return { name, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
  removeOrdinaryUser();
  execFileSync("useradd", ["--no-create-home", "--home-dir", "/nonexistent", ordinaryUser]);
  const id = (/** @type {string} */ flag) => Number(execFileSync("id", [flag, ordinaryUser], { encoding: "utf8" }));
  return { name, uid: id("-u"), gid: id("-g") };
}

function removeOrdinaryUser() {
  if (!isRoot) return;
  try {
    execFileSync("userdel", [ordinaryUser], { stdio: "ignore" });
  } catch {
    // It does not exist.
  }
}

/** @returns {Promise<number>} */
function freePort() {
  return new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => done(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

/**
 * @param {User} user
 * @param {keyof typeof limitsMs | string} step
 * @param {number} seconds
 * @param {boolean} succeeded
 * @param {string} note
 */
function record(user, step, seconds, succeeded, note) {
  const limitSeconds = limitsMs[/** @type {keyof typeof limitsMs} */ (step)] / 1000;
  const passed = succeeded && seconds < limitSeconds;
  rows.push({ user: user.name, step, seconds, limitSeconds, passed, note });
  process.stdout.write(`${user.name}: ${step}: ${passed ? "passed" : "FAILED"} after ${seconds.toFixed(1)} s\n`);
  if (!succeeded) process.stdout.write(`${note.replace(/^/gm, "    ")}\n`);
}

function report() {
  const header = ["user", "step", "seconds", "limit", "verdict"];
  const lines = rows.map((row) => [
    row.user,
    row.step,
    row.seconds.toFixed(1),
    `${row.limitSeconds}`,
    row.passed ? `passed ${row.note}` : "FAILED",
  ]);
  const widths = header.map((_, column) => Math.max(...[header, ...lines].map((line) => (line[column] ?? "").length)));
  for (const line of [header, ...lines]) {
    process.stdout.write(
      `${line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd()}\n`,
    );
  }
}
