import { EngineError } from "@tephra/engine";
import { openProgressBar } from "../progress-bar.ts";

/** The options contradict each other or name something that does not exist; the exit status means "wrong usage". */
export class UsageError extends Error {
  readonly code = "usage";
}

/** The result, already printed, reports damage; it only remains to set the exit status. */
export class DamageFoundError extends Error {}

/** Where a command writes: one result on stdout, everything else on stderr. */
export interface Output {
  readonly json: boolean;
  /** Prints the result: the object as JSON, or the lines for people. */
  result(object: Record<string, unknown>, lines: readonly string[]): void;
  /** From now on stdout carries data: the result goes to stderr. */
  resultAside(): void;
  note(line: string): void;
  /** A progress bar on a terminal, otherwise nothing. Stop it before writing anything else. */
  progress(label: string, totalBytes: number): { update(bytesDone: number): void; stop(): void };
}

const mebibyte = 1024 * 1024;

export function createOutput(options: { json: boolean }): Output {
  let results: NodeJS.WriteStream = process.stdout;
  return {
    json: options.json,
    resultAside() {
      results = process.stderr;
    },
    result(object, lines) {
      results.write(options.json ? `${JSON.stringify(object)}\n` : lines.map((line) => `${line}\n`).join(""));
    },
    note(line) {
      process.stderr.write(`${line}\n`);
    },
    progress(label, totalBytes) {
      if (!process.stderr.isTTY) return { update: () => {}, stop: () => {} };
      const bar = openProgressBar(process.stderr, label);
      const begunAt = performance.now();
      const mebibytes = (bytes: number): number => Math.ceil(bytes / mebibyte);
      const update = (bytesDone: number): void => {
        const share = totalBytes === 0 ? 0 : Math.min(1, bytesDone / totalBytes);
        const leftMs = ((performance.now() - begunAt) * (1 - share)) / share;
        const left = Number.isFinite(leftMs) ? `  ${Math.ceil(leftMs / 1000)} s left` : "";
        bar.draw(share, `${mebibytes(bytesDone)} of ${mebibytes(totalBytes)} MiB${left}`);
      };
      update(0);
      return { update, stop: bar.close };
    },
  };
}

/** Reports a failure: the message on stderr, and with --json an error object on stdout. */
export function reportFailure(output: Output, error: unknown, options: { silent: boolean }): void {
  const message = error instanceof Error ? error.message : String(error);
  const code = error instanceof EngineError || error instanceof UsageError ? error.code : "failed";
  if (!options.silent) output.note(`tephra-engine: ${message}`);
  if (output.json) output.result({ error: { code: options.silent ? "usage" : code, message } }, []);
}
