// Compiles the engine's native hashing with the system's C compiler, if there is one. Never required: without it the engine uses OpenSSL.
// Plain JavaScript, like the rest of the set-up.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { delimiter, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const sources = join(root, "packages/engine/native");
const output = join(root, "packages/engine/dist/native/hashing.node");
const stamp = join(root, "node_modules/.cache/tephra/native");
const headers = join(root, "node_modules/node-api-headers/include");
const flags = ["-std=c11", "-O3", "-Wall", "-Wextra", "-shared", "-fPIC", `-I${headers}`];
const compileTimeoutMs = 120_000;

/**
 * Builds what is missing or out of date. Idempotent; a second call costs reading a few files. A failure is reported once, in one line,
 * and the build is retried when the sources or the compiler change.
 * @param {(line: string) => void} say
 * @returns {"built" | "current" | "unavailable"}
 */
export function buildNative(say) {
  if (process.platform !== "linux" || process.arch !== "x64" || !existsSync(sources)) return "unavailable";
  const compiler = findCompiler();
  const fingerprint = fingerprintOf(compiler);
  const [known, outcome] = readOrEmpty(stamp).split(" ");
  if (known === fingerprint && (outcome === "failed" || existsSync(output))) {
    return outcome === "failed" ? "unavailable" : "current";
  }
  const problem = compiler === null ? "no C compiler (cc or gcc) was found" : compile(compiler);
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, `${fingerprint} ${problem === null ? "built" : "failed"}`);
  if (problem === null) return "built";
  rmSync(output, { force: true });
  say(`hashing uses OpenSSL alone, which is slower: ${problem}`);
  return "unavailable";
}

/** @returns {string | null} the path of the first compiler on the PATH */
function findCompiler() {
  for (const name of ["cc", "gcc", "clang"]) {
    for (const folder of (process.env["PATH"] ?? "").split(delimiter)) {
      const path = join(folder, name);
      try {
        accessSync(path, constants.X_OK);
        return path;
      } catch {
        // Not in this folder.
      }
    }
  }
  return null;
}

/**
 * @param {string} compiler
 * @returns {string | null} what went wrong
 */
function compile(compiler) {
  const draft = `${output}.${process.pid}`;
  mkdirSync(dirname(output), { recursive: true });
  const units = readdirSync(sources).filter((name) => name.endsWith(".c"));
  const args = [...flags, ...units.map((name) => join(sources, name)), "-o", draft];
  const { status, error, stderr } = spawnSync(compiler, args, { encoding: "utf8", timeout: compileTimeoutMs });
  if (error === undefined && status === 0) {
    renameSync(draft, output);
    return null;
  }
  rmSync(draft, { force: true });
  const line = stderr?.split("\n").find((each) => /error/i.test(each)) ?? error?.message ?? `exit status ${status}`;
  return `${compiler} failed (${line.trim().slice(0, 200)})`;
}

/** @param {string | null} compiler */
function fingerprintOf(compiler) {
  const hash = createHash("sha256").update(JSON.stringify([compiler, flags, existsSync(headers)]));
  for (const name of readdirSync(sources).sort()) hash.update(name).update(readFileSync(join(sources, name)));
  return hash.digest("hex");
}

/** @param {string} path */
function readOrEmpty(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
