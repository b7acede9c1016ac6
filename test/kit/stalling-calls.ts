import { execFile } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { root } from "../../scripts/bootstrap.mjs";

const execute = promisify(execFile);

export interface StallingCalls {
  /** Environment of the program whose calls stall. */
  env: Record<string, string>;
  /** Calls block from now on. */
  stall(): void;
  /** All blocked calls continue. */
  release(): void;
  /** Number of calls that have stalled so far. */
  stalled(): number;
}

/** Makes calls of one name on files whose path begins with `dir` and `path` block on demand, as if in the kernel. Needs a C compiler. */
export async function stallingCalls(
  dir: string,
  what: { call: "open" | "link" | "fsync" | "pread" | "pwrite"; path: string },
): Promise<StallingCalls> {
  const library = join(dir, "stalling-calls.so");
  if (!existsSync(library)) {
    const source = join(root, "test/kit/stalling-calls.c");
    await execute("cc", ["-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]);
  }
  const file = join(dir, "stalls");
  return {
    env: { LD_PRELOAD: library, STALL_CALL: what.call, STALL_PATH: `${dir}${what.path}`, STALL_WHILE: file },
    stall: () => writeFileSync(file, ""),
    release: () => rmSync(file, { force: true }),
    stalled: () => (existsSync(`${file}.hit`) ? readFileSync(`${file}.hit`, "utf8").trim().split("\n").length : 0),
  };
}
