// Opens the images that are named on standard input, `FORMAT PATH` a line, one after another, as tephra-engine does with a source, reads a
// little of each, and prints one line of JSON for each. Run as a program of its own, so that its system calls can be traced.
import { readdirSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { EngineError, openNamedSource } from "@tephra/engine";

/** What came of one image. */
export interface OpenedImage {
  path: string;
  /** `read`, or the code of the engine's error; anything else that was thrown is `crash`, with its text. */
  outcome: string;
  text: string;
  ms: number;
  /** The most memory that qemu-nbd has had while the image was open. */
  serverBytes: number;
}

const readBytesMax = 1024 * 1024;
const piecesMax = 16;

async function openImage(format: string, path: string): Promise<OpenedImage> {
  const started = performance.now();
  const opened = { path, outcome: "read", text: "", ms: 0, serverBytes: 0 };
  try {
    await using source = await openNamedSource(`${format}:${path}`);
    const range = { offset: 0, length: source.sizeBytes };
    let pieces = 0;
    for await (const { offset, length } of source.dataExtents(range)) {
      await source.read(new Uint8Array(Math.min(length, readBytesMax)), offset);
      pieces += 1;
      if (pieces === piecesMax) break;
    }
    opened.serverBytes = Math.max(0, ...children().map(peakBytes));
    await source.fingerprint();
  } catch (error) {
    opened.outcome = error instanceof EngineError ? error.code : "crash";
    opened.text = String(error);
  }
  return { ...opened, ms: performance.now() - started };
}

const children = (): number[] =>
  readdirSync("/proc/self/task")
    .flatMap((task) => readFileSync(`/proc/self/task/${task}/children`, "utf8").split(" "))
    .filter((pid) => pid !== "")
    .map(Number);

function peakBytes(pid: number): number {
  try {
    return Number(/^VmHWM:\s+([0-9]+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const [format = "", path = ""] = line.split(" ");
  process.stdout.write(`${JSON.stringify(await openImage(format, path))}\n`);
}
