// The npm scripts: `node scripts/run.mjs NAME [ARGUMENT…]`. Each first sets up what it needs.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import {
  BootstrapError,
  ensureBuilt,
  ensureDependencies,
  generateClient,
  orFail,
  productProjects,
  projectNode,
  root,
  say,
} from "./bootstrap.mjs";
import { buildNative } from "./build-native.mjs";
import { allowedScripts, auditDependencies, lockFileProblems, readLockFile } from "./dependencies.mjs";

const bin = (/** @type {string} */ name) => join(root, "node_modules", name);
const biome = bin("@biomejs/biome/bin/biome");
const typescript = bin("typescript/bin/tsc");
// With fewer modules, the import-direction check has not seen the sources, and its verdict means nothing.
const modulesMin = 150;

/** @type {Record<string, (args: string[]) => Promise<boolean>>} */
const scripts = {
  build: async (args) => {
    await generateClient();
    buildNative(say);
    return succeeds([bin("turbo/bin/turbo"), "run", "build", ...args], { TURBO_TELEMETRY_DISABLED: "1" });
  },
  check: async () => {
    await generateClient();
    return checkAll();
  },
  audit: () => auditDependencies(root, (line) => process.stdout.write(`${line}\n`)),
  fix: (args) => succeeds([biome, "check", "--write", ...args, "."]),
  test: async (args) => {
    await ensureBuilt();
    return succeeds([bin("vitest/vitest.mjs"), "run", ...args]);
  },
  "test:image": async () => {
    await ensureBuilt();
    return succeeds([join(root, "test/install/image/image.ts")]);
  },
  "test:long": async (args) => {
    await ensureBuilt();
    return inSurroundings(args);
  },
  "test:interop": (args) => suites("format/interop", args),
  "test:sources": (args) => suites("format/sources", args),
  "test:openstack": (args) => suites("openstack", args),
  "test:clients": (args) => suites("clients", args),
  "test:tempest": (args) => suites("clients/tempest", args),
  fuzz: async (args) => {
    await ensureBuilt();
    const requests = { TEPHRA_FUZZ_REQUESTS: args[0] ?? "20000", ...(args[1] && { TEPHRA_TEST_SEED: args[1] }) };
    return (
      (await succeeds([join(root, "test/reliability/fuzz/fuzz.ts"), ...args])) &&
      (await succeeds(
        [
          bin("vitest/vitest.mjs"),
          "run",
          ...["test/dialects/fuzz-requests.test.ts", "test/dialects/ovirt/fuzz.test.ts"],
        ],
        requests,
      ))
    );
  },
  "test:fault": async (args) => {
    await ensureBuilt();
    return succeeds([join(root, "test/reliability/fault/fault.ts"), ...args]);
  },
  "test:model": async (args) => {
    const options = /** @type {const} */ ({ seed: { type: "string" }, runs: { type: "string" } });
    const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
    const [what = "state"] = positionals;
    if (what !== "state" && what !== "histories") {
      throw new BootstrapError("usage: npm run test:model -- [state | histories] [--seed S] [--runs N]");
    }
    const count = what === "state" ? "TEPHRA_MODEL_RUNS" : "TEPHRA_MODEL_HISTORIES";
    const runs = values.runs ?? (what === "state" ? "10000" : "1000");
    await ensureBuilt();
    return succeeds([bin("vitest/vitest.mjs"), "run", `test/reliability/model/${what}.test.ts`], {
      [count]: runs,
      ...(values.seed !== undefined && { TEPHRA_TEST_SEED: values.seed }),
    });
  },
  chaos: async (args) => {
    await ensureBuilt();
    return succeeds([join(root, "test/reliability/fault/chaos.ts"), ...args]);
  },
  "test:mutations": async (args) => {
    await ensureBuilt();
    return succeeds([join(root, "test/reliability/mutations/run-mutations.ts"), ...args]);
  },
  demo: async (args) => {
    await ensureBuilt();
    return succeeds([join(root, "demo/demo.ts"), ...args]);
  },
  bench: async (args) => {
    await ensureBuilt();
    return succeeds([join(root, "bench/bench.ts"), ...args]);
  },
};

await orFail(async () => {
  const [name = "", ...args] = process.argv.slice(2);
  const script = scripts[name];
  if (script === undefined)
    throw new BootstrapError(`there is no script "${name}": ${Object.keys(scripts).join(", ")}`);
  await ensureDependencies();
  process.exitCode = (await script(args)) ? 0 : 1;
});

/** Whose random and repeated tests have a longer form; see test/kit/long.ts. */
const longForms = [
  "test/contract",
  "test/format",
  "test/control/election",
  "test/reliability/model",
  "test/reliability/fault/hung-places",
  "test/reliability/fault/redis-refusals",
  "test/reliability/fault/runs",
  "test/reliability/fault/rolling-upgrade",
  "test/reliability/fault/worker-loss",
  "test/system/machines/machine-backup",
];
const onServers = ["test/dialects", "test/system"];

/** What stands between the programs and their servers there takes time of its own. */
const patience = { TEPHRA_TEST_PATIENCE: process.env["TEPHRA_TEST_PATIENCE"] ?? "3" };

/**
 * The long forms, and server set-ups found in practice (test/kit/global-setup.ts). Several at once, since a run of all suites takes half an
 * hour; what fails in one is run again with one variable at a time.
 */
const surroundings = [
  { env: { TEPHRA_TEST_LONG: "1" }, files: longForms },
  {
    env: {
      TEPHRA_TEST_TIMEZONE: "Asia/Kolkata",
      TEPHRA_TEST_DATABASE: "pgbouncer",
      TEPHRA_TEST_REDIS: "user-tls",
    },
    files: onServers,
  },
  { env: { TEPHRA_TEST_TIMEZONE: "America/St_Johns", TEPHRA_TEST_DATABASE: "tls" }, files: onServers },
];

/**
 * Runs the suites of each set-up, or those named, even if others fail.
 * @param {string[]} named
 */
async function inSurroundings(named) {
  const failed = [];
  for (const { env, files } of surroundings) {
    const name = Object.entries(env)
      .map(([key, value]) => `${key}=${value}`)
      .join(" ");
    process.stdout.write(`test:long: ${name}\n`);
    const passed = await succeeds([bin("vitest/vitest.mjs"), "run", ...(named.length > 0 ? named : files)], {
      ...patience,
      ...env,
    });
    if (!passed) failed.push(name);
  }
  process.stdout.write(failed.length === 0 ? "test:long: all passed\n" : `test:long: failed: ${failed.join(", ")}\n`);
  return failed.length === 0;
}

/**
 * Runs the suites of a folder of `test` that has its own configuration.
 * @param {string} folder
 * @param {string[]} args
 */
async function suites(folder, args) {
  await ensureBuilt();
  const config = join(root, "test", folder, "vitest.config.ts");
  return succeeds([bin("vitest/vitest.mjs"), "run", "--config", config, ...args]);
}

/** Runs every check even if others fail, so that one run shows everything that needs fixing. */
async function checkAll() {
  const checks = {
    "format and lint": () => succeeds([biome, "check", "--error-on-warnings", "."]),
    types: () => succeeds([typescript, "-b"]),
    "import direction": checkImports,
    "dead code": () => succeeds([bin("knip/bin/knip.js")]),
    "lock file": async () => checkLockFile(),
  };
  const failed = [];
  for (const [name, check] of Object.entries(checks)) {
    const started = performance.now();
    const passed = await check();
    if (!passed) failed.push(name);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    process.stdout.write(`${passed ? "ok    " : "FAILED"} ${name} (${seconds} s)\n`);
  }
  process.stdout.write(failed.length === 0 ? "check: all passed\n" : `check: failed: ${failed.join(", ")}\n`);
  return failed.length === 0;
}

async function checkImports() {
  // Sources only: imports between workspaces resolve to dist, where the traversal ends.
  const product = [...productProjects, "apps/console"].map((project) => `${project}/src`);
  const files = await cruise(".dependency-cruiser.cjs", [...product, "scripts", "test", "demo", "bench"]);
  const folders = await cruise(".dependency-cruiser.folders.cjs", product);
  return files && folders;
}

/**
 * @param {string} config
 * @param {string[]} places
 */
async function cruise(config, places) {
  const cruiser = bin("dependency-cruiser/bin/dependency-cruiser.mjs");
  const present = places.filter((place) => existsSync(join(root, place)));
  const { code, output } = await capture([cruiser, "--config", config, "-T", "json", ...present]);
  /** @type {{totalCruised: number, violations: {from: string, to: string, rule: {name: string, severity: string}}[]}} */
  let summary;
  try {
    summary = JSON.parse(output).summary;
  } catch {
    process.stderr.write(output);
    return false;
  }
  for (const { from, to, rule } of summary.violations) process.stdout.write(`  ${rule.name}: ${from} → ${to}\n`);
  process.stdout.write(`  ${summary.totalCruised} modules\n`);
  return code === 0 && summary.violations.length === 0 && summary.totalCruised >= modulesMin;
}

function checkLockFile() {
  const problems = lockFileProblems(readLockFile(root), allowedScripts(root));
  for (const problem of problems) process.stdout.write(`  ${problem}\n`);
  return problems.length === 0;
}

/**
 * Runs a program on the project's Node, with this process's stdio; Ctrl-C and SIGTERM reach it too.
 * @param {string[]} command
 * @param {Record<string, string>} [env]
 * @returns {Promise<boolean>} whether its exit status was 0
 */
function succeeds(command, env = {}) {
  return new Promise((done) => {
    const child = spawn(projectNode(), command, { cwd: root, stdio: "inherit", env: environment(env) });
    const forward = (/** @type {NodeJS.Signals} */ signal) => {
      // A terminal sends Ctrl-C to the child as well; forwarding it would make one press look like two.
      if (signal !== "SIGINT" || !process.stdin.isTTY) child.kill(signal);
    };
    process.on("SIGTERM", forward).on("SIGINT", forward);
    child.on("error", () => done(false));
    child.on("exit", (code) => {
      process.off("SIGTERM", forward).off("SIGINT", forward);
      done(code === 0);
    });
  });
}

/**
 * @param {string[]} command
 * @returns {Promise<{code: number | null, output: string}>}
 */
function capture(command) {
  return new Promise((done) => {
    const child = spawn(projectNode(), command, {
      cwd: root,
      stdio: ["ignore", "pipe", "inherit"],
      env: environment({}),
    });
    let output = "";
    child.stdout.on("data", (/** @type {Buffer} */ chunk) => {
      output += chunk.toString();
    });
    child.on("close", (code) => done({ code, output }));
  });
}

/**
 * Puts the project's Node first on the PATH, for processes that the tools start themselves.
 * @param {Record<string, string>} more
 */
function environment(more) {
  return { ...process.env, ...more, PATH: `${dirname(projectNode())}:${bin(".bin")}:${process.env["PATH"]}` };
}
