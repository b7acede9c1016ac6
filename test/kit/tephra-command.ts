import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { dirname, join } from "node:path";
import { projectNode, root } from "../../scripts/bootstrap.mjs";

export const tephraBinary = join(root, "node_modules/.bin/tephra");

export interface Finished {
  status: number | null;
  stdout: string;
  stderr: string;
  /** Stdout as the one JSON document that it must be. */
  // biome-ignore lint/suspicious/noExplicitAny: tests reach into documents whose shape is what they check
  json: any;
}

/** Starts the command line as users do. */
export function startTephra(
  args: readonly string[],
  env: Record<string, string> = {},
): ChildProcess & { finished: Promise<Finished> } {
  const path = `${dirname(projectNode())}:${process.env["PATH"]}`;
  const child = spawn(tephraBinary, args, { env: { PATH: path, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8").on("data", (chunk: string) => {
      output[name] += chunk;
    });
  }
  const finished = once(child, "close").then(([status]): Finished => {
    const { stdout, stderr } = output;
    return { status, stdout, stderr, json: args.includes("--json") ? JSON.parse(stdout) : undefined };
  });
  return Object.assign(child, { finished });
}
