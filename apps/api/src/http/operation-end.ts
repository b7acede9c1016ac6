import { setTimeout as sleep } from "node:timers/promises";
import { readOperationEnd } from "@tephra/control";
import type { Context } from "../context.ts";

/** Polling interval while an operation runs: short at first, then longer. */
const pauseMsMin = 50;
const pauseMsMax = 1_000;

/** @returns how the operation ended; null when it has not within the time limit, or when the caller has disconnected */
export async function endOf({ database }: Context, operationId: string, limitMs: number, gone: AbortSignal) {
  const until = performance.now() + limitMs;
  for (let pauseMs = pauseMsMin; !gone.aborted; pauseMs = Math.min(pauseMs * 1.5, pauseMsMax)) {
    const end = await readOperationEnd(database, operationId);
    if (end !== null) return end;
    const leftMs = until - performance.now();
    if (leftMs <= 0) return null;
    await sleep(Math.min(pauseMs, leftMs));
  }
  return null;
}
