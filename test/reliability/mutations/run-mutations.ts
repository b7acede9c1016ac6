import { spawn } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { productProjects, projectNode, root } from "../../../scripts/bootstrap.mjs";
import { type Mutation, mutations } from "./mutations.ts";

// Names of breaks, or parts of them; none: all.
const { positionals: wanted } = parseArgs({ allowPositionals: true });
const say = (line: string): void => void process.stdout.write(`${line}\n`);

/** A break may make a loop endless: that is no red test. */
const suiteMaxMs = 240_000;

interface Ended {
  /** Null: it ran out of time. */
  code: number | null;
  output: string;
}

/**
 * Runs a tool on the project's Node in `folder`. Out of time, it is killed with all that it started: a test that never ends runs in a process
 * of its own, which would keep the output open.
 */
function run(folder: string, command: readonly string[]): Promise<Ended> {
  return new Promise((done) => {
    const env = { ...process.env, NO_COLOR: "1", TEPHRA_TEST_LONG: "1" };
    const child = spawn(projectNode(), command, {
      cwd: folder,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const timer = setTimeout(() => {
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    }, suiteMaxMs);
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        output = (output + text).slice(-200_000);
      });
    }
    child.on("close", (code) => {
      clearTimeout(timer);
      done({ code, output });
    });
  });
}

/** A copy of the project to be broken; what it installed is shared file by file. */
async function copyProject(): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "tephra-mutations-"));
  for (const name of readdirSync(root)) {
    if (["node_modules", ".git", "var"].includes(name)) continue;
    cpSync(join(root, name), join(folder, name), { recursive: true, verbatimSymlinks: true });
  }
  await new Promise<void>((done, failed) => {
    const copy = spawn("cp", ["-al", join(root, "node_modules"), folder], { stdio: "inherit" });
    copy.on("close", (code) => (code === 0 ? done() : failed(new Error("node_modules cannot be copied"))));
  });
  // What was built from other sources is known by stamps, and they are files that both folders share.
  rmSync(join(folder, "node_modules/.cache"), { recursive: true, force: true });
  // Names that nothing uses any more are no errors here: a break leaves some.
  const settings = join(folder, "tsconfig.base.json");
  const text = readFileSync(settings, "utf8");
  writeFileSync(settings, text.replaceAll(/"(noUnused(?:Locals|Parameters))": true/g, '"$1": false'));
  return folder;
}

type Verdict = "killed" | "SURVIVED" | "NEVER ENDED" | "DOES NOT APPLY" | "DOES NOT COMPILE";

async function tryOne(folder: string, { file, from, to, suite, test }: Mutation): Promise<Verdict> {
  const path = join(folder, file);
  const text = readFileSync(path, "utf8");
  if (text.split(from).length !== 2) return "DOES NOT APPLY";
  writeFileSync(
    path,
    text.replace(from, () => to),
  );
  try {
    const compiler = join(folder, "node_modules/typescript/bin/tsc");
    const built = await run(folder, [compiler, "-b", ...productProjects]);
    if (built.code !== 0) return "DOES NOT COMPILE";
    const named = test === "" ? [] : ["-t", test];
    const vitest = join(folder, "node_modules/vitest/vitest.mjs");
    const { code, output } = await run(folder, [vitest, "run", suite, "--bail", "1", ...named]);
    if (code === null) return "NEVER ENDED";
    // The test itself must be red: a suite that does not start says nothing.
    const isRed = output
      .split("\n")
      .some((line) => line.includes("FAIL") && line.includes(" > ") && line.includes(test));
    return code !== 0 && isRed ? "killed" : "SURVIVED";
  } finally {
    writeFileSync(path, text);
  }
}

const chosen = mutations.filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)));
const folder = await copyProject();
const survivors: string[] = [];
try {
  for (const mutation of chosen) {
    const started = performance.now();
    const verdict = await tryOne(folder, mutation);
    if (verdict !== "killed") survivors.push(mutation.name);
    say(`${verdict.padEnd(16)} ${mutation.name} (${((performance.now() - started) / 1000).toFixed(0)} s)`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
say(`mutations: ${chosen.length - survivors.length} of ${chosen.length} killed`);
process.exitCode = survivors.length === 0 ? 0 : 1;
