import { subscribe } from "node:diagnostics_channel";
import { isMainThread } from "node:worker_threads";
import pg from "pg";

/**
 * The environment of a program that dies, as in a power cut, the n-th time it is at a point (`POINT:N`). Points are what the product
 * publishes on the channel `tephra:point`, and of every transaction: `transaction.begin`, `transaction.statement-<k>` before its k-th
 * statement, `transaction.commit` before it commits and `transaction.committed` when it has; of every statement outside of one that changes
 * rows, `change.begin` and `change.committed`.
 */
export function crashAt(point: string): Record<string, string> {
  if (!/^[a-z0-9.-]+:[1-9]\d*$/.test(point)) throw new Error(`${point} is not POINT:N`);
  return { TEPHRA_TEST_CRASH_AT: point, NODE_OPTIONS: `--import=${import.meta.url}` };
}

// In such a program this file is loaded before everything else.
const [point, count] = process.env["TEPHRA_TEST_CRASH_AT"]?.split(":") ?? [];
if (point !== undefined && isMainThread) {
  let left = Number(count);
  const reach = (here: unknown): void => {
    if (here !== point) return;
    left -= 1;
    if (left === 0) process.kill(process.pid, "SIGKILL");
  };
  subscribe("tephra:point", reach);
  if (/^(transaction|change)\./.test(point)) reportTransactions(reach);
}

/** Reports how far every connection is in its transactions. */
function reportTransactions(reach: (point: string) => void): void {
  const query = pg.Client.prototype.query as (this: pg.Client, ...args: unknown[]) => unknown;
  const statements = new WeakMap<pg.Client, number>();
  pg.Client.prototype.query = function (this: pg.Client, ...args: unknown[]) {
    const [asked] = args;
    const text = typeof asked === "string" ? asked : (asked as { text: string }).text;
    const made = statements.get(this);
    const alone = made === undefined && /\b(INSERT|UPDATE|DELETE)\b/.test(text);
    if (alone) reach("change.begin");
    // Settings of the transaction may follow it.
    const begins = text.startsWith("BEGIN");
    if (begins) reach("transaction.begin");
    else if (text === "COMMIT") reach("transaction.commit");
    else if (text !== "ROLLBACK" && made !== undefined) reach(`transaction.statement-${made + 1}`);
    if (text === "COMMIT" || text === "ROLLBACK") statements.delete(this);
    else if (begins) statements.set(this, 0);
    else if (made !== undefined) statements.set(this, made + 1);
    const answer = query.apply(this, args);
    if (alone || text === "COMMIT") {
      Promise.resolve(answer).then(
        () => reach(alone ? "change.committed" : "transaction.committed"),
        () => {},
      );
    }
    return answer;
  } as typeof query & typeof pg.Client.prototype.query;
}
