/**
 * Named points that a process reports when it reaches them: a no-op, except under test. Of a task: `<kind>.claimed`, `<kind>` before each
 * of its writes, `<kind>.reporting` before its report commits, `<kind>.done` after. Of the API: `request.received` and `request.answered`.
 * Of every transaction: `transaction.begin`, `transaction.statement-<k>` before its k-th statement, `transaction.commit` before it commits
 * and `transaction.committed` when it has.
 */
export interface Hooks {
  reached(point: string): void;
}

/** Kills the process at once, as a power cut would, the n-th time the configured point (`POINT:N`) is reached. */
export function hooksOf(crashAt: string | null): Hooks {
  if (crashAt === null) return { reached: () => {} };
  const [point, count] = crashAt.split(":");
  let left = Number(count);
  return {
    reached(here) {
      if (here !== point) return;
      left -= 1;
      if (left === 0) process.kill(process.pid, "SIGKILL");
    },
  };
}
