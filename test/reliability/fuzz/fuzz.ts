// npm run fuzz [-- INPUTS [SEED]]: every parser of foreign text, with inputs made from valid ones. Status 1 after a crash or a hang.
import { randomBytes } from "node:crypto";
import { parsers } from "./parsers.ts";
import { fuzz } from "./run-fuzz.ts";

const inputs = Number(process.argv[2] ?? 100_000);
const seed = Number(process.argv[3] ?? randomBytes(4).readUInt32LE());
/** No input is longer than some hundred kilobytes; what takes longer than this hangs. */
const hangMs = 5000;
/** More than this cannot come from parsing such inputs one by one. */
const memoryMibMax = 600;

process.stdout.write(`seed ${seed}, ${inputs} inputs each\n`);
let failed = false;
for (const parser of parsers) {
  const started = performance.now();
  const { accepted, slowestMs, crash } = await fuzz(parser, { seed, inputs });
  const memoryMib = Math.round(process.resourceUsage().maxRSS / 1024);
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const verdict = crash !== null ? "CRASH" : slowestMs > hangMs ? "HANG" : memoryMib > memoryMibMax ? "MEMORY" : "ok";
  if (verdict !== "ok") failed = true;
  process.stdout.write(
    `${verdict.padEnd(6)} ${parser.name}: ${accepted} accepted, slowest ${slowestMs.toFixed(0)} ms, peak ${memoryMib} MiB, ${seconds} s\n`,
  );
  if (crash !== null)
    process.stdout.write(`  input ${crash.index}: ${crash.input}\n  ${(crash.error as Error).stack}\n`);
}
process.exitCode = failed ? 1 : 0;
