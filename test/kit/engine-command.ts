import { type ChildProcess, execFile, spawn } from "node:child_process";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";

/** The built program. */
export const entry = join(import.meta.dirname, "../../apps/cli/dist/bundle/tephra-engine.js");
const MiB = 1024 * 1024;

export interface Run {
  status: number;
  stdout: string;
  stderr: string;
}

/** `tephra-engine` and other programs in a folder, with one repository in it. */
export interface EngineCommand {
  run(command: string, ...args: string[]): Promise<Run>;
  /** @throws with its own words unless it succeeds */
  mustRun(command: string, ...args: string[]): Promise<string>;
  engine(...args: string[]): Promise<Run>;
  /** Started, with everything that it prints. */
  start(...args: string[]): { child: ChildProcess; done: Promise<Run> };
  /** @returns the id of the backup, which must succeed */
  backUp(source: string, ...more: string[]): Promise<string>;
  tryBackUp(source: string, ...more: string[]): Promise<Run>;
  restore(backup: string, target: string): Promise<Run>;
  /** The child of a started command that runs this program, if there is one by now. */
  childOf(parent: ChildProcess, program: string): Promise<number | null>;
}

/** `environment`: beside this process's own. */
export function engineIn(home: string, environment: Record<string, string>): EngineCommand {
  const env = { ...process.env, ...environment };
  const repository = ["--repository", `posix:${join(home, "repository")}`];
  const run = (command: string, ...args: string[]): Promise<Run> =>
    new Promise((resolve) => {
      execFile(command, args, { cwd: home, env, timeout: 240_000 }, (error, stdout, stderr) => {
        resolve({ status: error === null ? 0 : typeof error.code === "number" ? error.code : -1, stdout, stderr });
      });
    });
  const engine = (...args: string[]): Promise<Run> => run(process.execPath, entry, ...args);
  const tryBackUp = (source: string, ...more: string[]): Promise<Run> =>
    engine("backup", ...repository, "--source", source, "--json", ...more);
  return {
    run,
    engine,
    tryBackUp,
    mustRun: async (command, ...args) => {
      const { status, stdout, stderr } = await run(command, ...args);
      if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stdout}${stderr}`);
      return stdout;
    },
    start: (command = "", ...args) => {
      const child = spawn(process.execPath, [entry, command, ...repository, ...args], { cwd: home, env });
      const done = new Promise<Run>((resolve) => {
        const said = { stdout: "", stderr: "" };
        child.stdout.setEncoding("utf8").on("data", (text: string) => (said.stdout += text));
        child.stderr.setEncoding("utf8").on("data", (text: string) => (said.stderr += text));
        child.on("close", (code) => resolve({ status: code ?? -1, ...said }));
      });
      return { child, done };
    },
    backUp: async (source, ...more) => {
      const { status, stdout, stderr } = await tryBackUp(source, ...more);
      expect(status, stdout + stderr).toBe(0);
      return JSON.parse(stdout).backup.id;
    },
    restore: (backup, target) => engine("restore", ...repository, "--backup", backup, "--target", target),
    childOf: async (parent, program) => {
      const { stdout } = await run("pgrep", "-P", String(parent.pid), program);
      return Number.parseInt(stdout, 10) || null;
    },
  };
}

/** A raw disk: data, holes, and zeros that are written. */
export async function writeDisk(path: string, sizeBytes = 24 * MiB): Promise<void> {
  await using file = await open(path, "w");
  await file.truncate(sizeBytes);
  for (const [at, byte] of [
    [0, 1],
    [5 * MiB + 4096, 2],
    [17 * MiB, 3],
  ] as const) {
    const block = Buffer.alloc(700_000, byte);
    for (let i = 0; i < block.length; i += 512) block.writeUInt32LE(at + i, i);
    await file.write(block, 0, block.length, at);
  }
  await file.write(Buffer.alloc(MiB), 0, MiB, 10 * MiB);
}
