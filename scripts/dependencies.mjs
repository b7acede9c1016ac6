// Checks on the installed packages: where they come from, which scripts they may run, and whether they have known vulnerabilities.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** Timeout of the single registry request; without an answer nothing is known, which is not an error. */
const askMs = 60_000;

/**
 * Problems in a lock file: a resolved URL ties every installation to one registry or bypasses all of them; without a digest, any server's
 * content is accepted; an install script has not been reviewed.
 * @param {{ packages: Record<string, { resolved?: string, integrity?: string, link?: boolean, inBundle?: boolean, hasInstallScript?: boolean }> }} lock
 * @param {Record<string, boolean>} scripts packages with such a script, and whether it is run
 * @returns {string[]}
 */
export function lockFileProblems(lock, scripts) {
  /** @type {string[]} */
  const problems = [];
  for (const [path, entry] of Object.entries(lock.packages)) {
    // Workspaces, and links to them, belong to this project.
    if (!path.includes("node_modules/") || entry.link) continue;
    const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
    if (/^[a-z+]+:/.test(entry.resolved ?? "")) problems.push(`${path} names an address: ${entry.resolved}`);
    if (!entry.integrity && !entry.inBundle) problems.push(`${path} has no digest`);
    if (entry.hasInstallScript && !Object.hasOwn(scripts, name)) {
      problems.push(`${path} runs a script when it is installed, and allowScripts does not know it`);
    }
  }
  return problems;
}

/**
 * High or critical vulnerabilities of packages that the product uses, from a report of `npm audit --json`.
 * @param {string} report
 * @returns {string[] | null} null when the registry could not answer
 */
export function knownWeaknesses(report) {
  /** @type {{ vulnerabilities?: Record<string, { severity: string, via: (string | { title: string, url: string })[] }> }} */
  let parsed;
  try {
    parsed = JSON.parse(report);
  } catch {
    return null;
  }
  if (parsed.vulnerabilities === undefined) return null;
  return Object.entries(parsed.vulnerabilities)
    .filter(([, { severity }]) => severity === "high" || severity === "critical")
    .map(([name, { severity, via }]) => {
      const why = via.map((cause) => (typeof cause === "string" ? `by ${cause}` : `${cause.title} ${cause.url}`));
      return `${name} (${severity}): ${why.join("; ")}`;
    });
}

/**
 * Queries the registry and reports what it knows.
 * @param {string} folder
 * @param {(line: string) => void} say
 * @param {string[]} [options] additional npm options
 * @returns {Promise<boolean>} whether no vulnerability is known; also true when the registry could not be reached
 */
export async function auditDependencies(folder, say, options = []) {
  const args = [
    "audit",
    "--json",
    "--omit=dev",
    "--package-lock-only",
    "--fetch-retries=0",
    `--fetch-timeout=${askMs / 2}`,
  ];
  const found = knownWeaknesses(await outputOf("npm", [...args, ...options], folder));
  if (found === null) say("audit: the registry does not say what it knows; nothing was looked at");
  else if (found.length === 0) say("audit: no high or critical weakness is known of what the product uses");
  else for (const weakness of found) say(`audit: ${weakness}`);
  return found === null || found.length === 0;
}

/** @param {string} folder */
export const readLockFile = (folder) => JSON.parse(readFileSync(join(folder, "package-lock.json"), "utf8"));

/** @param {string} folder */
export const allowedScripts = (folder) => JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).allowScripts;

/**
 * The output of a program; empty when it cannot be started or takes too long.
 * @param {string} command
 * @param {string[]} args
 * @param {string} cwd
 * @returns {Promise<string>}
 */
function outputOf(command, args, cwd) {
  return new Promise((done) => {
    const child = spawn(command, args, { cwd, stdio: ["ignore", "pipe", "ignore"], timeout: askMs });
    let output = "";
    child.stdout.on("data", (/** @type {Buffer} */ chunk) => {
      output += chunk.toString();
    });
    child.on("error", () => done(""));
    child.on("close", () => done(output));
  });
}
