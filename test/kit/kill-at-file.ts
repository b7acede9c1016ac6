// Loaded before a program (--import): dies as in a power cut right after the program's n-th call (KILL_AT_FILE) that creates or names a
// file or folder. Prints `calls N` when the program ends before.
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";

const at = Number(process.env["KILL_AT_FILE"]);
let calls = 0;
const count = (): void => {
  calls += 1;
  if (calls === at) process.kill(process.pid, "SIGKILL");
};
const makes = (flags: unknown): boolean => typeof flags === "number" && (flags & fs.constants.O_CREAT) !== 0;

const functions = fs.promises as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
for (const name of ["open", "mkdir", "link", "rename", "copyFile", "symlink"]) {
  const original = functions[name] as (...args: unknown[]) => Promise<unknown>;
  functions[name] = async (...args) => {
    const made = await original.apply(fs.promises, args);
    if (name !== "open" || makes(args[1])) count();
    return made;
  };
}
syncBuiltinESMExports();
process.on("exit", () => process.stdout.write(`calls ${calls}\n`));
