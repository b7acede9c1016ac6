import type { Tally } from "./runs.ts";

const MiB = 1024 * 1024;

/** What runs came to, line by line; the last line is the verdict. */
export function reportOf(tally: Tally, options: { seed: number; runs: number; name?: string }): string[] {
  const { seed, runs, name = "fault" } = options;
  const { findings, losses } = tally;
  const sorted = losses.resumedMs.toSorted((a, b) => a - b);
  const at = (part: number): string => {
    const value = sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
    return value === undefined ? "-" : `${(value / 1000).toFixed(1)} s`;
  };
  const faults = Object.entries(tally.faults).toSorted(([a], [b]) => a.localeCompare(b));
  const twice = losses.kills === 0 ? 0 : tally.bytesTwice / losses.kills / MiB;
  const { lost, corrupt, stuck, orphans } = findings;
  return [
    ...Object.entries(findings).flatMap(([kind, all]) => (all as string[]).map((what) => `${kind}: ${what}`)),
    `faults: ${faults.map(([fault, count]) => `${count} × ${fault}`).join(", ")}`,
    `backups: ${tally.asked} asked for, ${tally.exact} restored exactly, ${tally.failed} ended in error with a reason`,
    `workers lost: ${losses.kills}; tasks resumed after p50 ${at(0.5)}, p95 ${at(0.95)}, max ${at(1)}; ${twice.toFixed(2)} MiB copied twice per loss`,
    `${name}: seed ${seed}, ${runs} runs: ${lost.length} lost, ${corrupt.length} corrupt, ${stuck.length} stuck, ${orphans.length} orphans`,
  ];
}

export const isClean = ({ findings }: Tally): boolean => Object.values(findings).every((all) => all.length === 0);
