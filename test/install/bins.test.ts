import { execFileSync } from "node:child_process";
import { mkdtempSync, realpathSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, inject, test } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";

interface Outcome {
  status: number;
  stdout: string;
  stderr: string;
}

/** The system's own Node first on the PATH, as in a user's shell, where npm has put nothing in front of it. */
function userPath(): string {
  const ours = [dirname(projectNode()), join(root, "node_modules/.bin")];
  return (process.env["PATH"] ?? "")
    .split(":")
    .filter((folder) => !ours.includes(folder) && !folder.endsWith("node_modules/.bin"))
    .join(":");
}

function run(command: string, args: readonly string[], cwd: string): Outcome {
  const script = '"$@" 2>stderr.txt; echo "$?" >status.txt';
  const env = { PATH: userPath(), HOME: cwd };
  const stdout = execFileSync("sh", ["-c", script, "sh", command, ...args], { cwd, env, encoding: "utf8" });
  const read = (name: string): string => execFileSync("cat", [join(cwd, name)], { encoding: "utf8" });
  return { status: Number(read("status.txt")), stdout, stderr: read("stderr.txt") };
}

function folder(): string {
  return realpathSync(mkdtempSync(join(inject("servers").dir, "bins-")));
}

const bins = ["tephra", "tephra-engine"];

test.each(bins)("%s runs by the path of its link, and stdout carries its own output alone", (name) => {
  const { status, stdout, stderr } = run(join(root, "node_modules/.bin", name), ["--help"], folder());
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  expect(stdout).toMatch(new RegExp(`^Usage: ${name} `));
});

test.each(bins)("%s runs through npx", (name) => {
  const { status, stdout } = run("npm", ["--prefix", root, "exec", "--no", "--", name, "--help"], folder());
  expect(status).toBe(0);
  expect(stdout).toMatch(new RegExp(`^Usage: ${name} `));
});

test.each(bins)("%s ends with status 2 on wrong usage", (name) => {
  expect(run(join(root, "node_modules/.bin", name), ["no-such-command"], folder()).status).toBe(2);
});

test("paths are relative to the folder that the command was typed in", () => {
  const cwd = folder();
  writeFileSync(join(cwd, "disk.img"), "some bytes");
  const engine = join(root, "apps/cli/bin/tephra-engine.mjs");
  const made = run(engine, ["backup", "--source", "disk.img", "--repository", "posix:backups", "--json"], cwd);
  expect(made.status, made.stderr).toBe(0);
  const { backup } = JSON.parse(made.stdout);
  const restore = ["restore", "--repository", "posix:backups", "--backup", backup.id, "--target", "out.img"];
  expect(run(engine, restore, cwd).status).toBe(0);
  expect(execFileSync("cat", [join(cwd, "out.img")], { encoding: "utf8" })).toBe("some bytes");
  const missing = run(engine, ["backup", "--source", "missing.img", "--repository", "posix:backups"], cwd);
  expect(missing.status).toBe(1);
});
