import { readdirSync, readFileSync } from "node:fs";

/** Processes of that program that a process has started. */
export function childrenOf(parent: number, program: string): number[] {
  return readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const isChild = readFileSync(`/proc/${name}/status`, "utf8").includes(`\nPPid:\t${parent}\n`);
      return isChild && readFileSync(`/proc/${name}/cmdline`, "utf8").includes(program) ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}
