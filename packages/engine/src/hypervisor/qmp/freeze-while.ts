import { setTimeout as delay } from "node:timers/promises";
import { EngineError, HypervisorUnavailableError } from "../../errors.ts";
import type { GuestAgent } from "./guest-agent.ts";

export interface FrozenRun<Result> {
  result: Result;
  frozenMs: number | null;
  /** Why the result was not obtained within a frozen guest; null when it was. */
  notFrozenBecause: string | null;
}

const thawTriesMax = 3;

/**
 * Runs `act` with the guest frozen for at most `limitMs`: then the guest is thawed and `act` continues unfrozen. The guest is thawed in
 * every case, also when `act` throws; a guest that cannot be thawed is HypervisorUnavailableError, whatever `act` did. A guest that
 * cannot be frozen is no error: `act` runs anyway.
 */
export async function freezeWhile<Result>(
  agent: GuestAgent | null,
  { mountpoints, limitMs }: { mountpoints: readonly string[] | null; limitMs: number },
  act: () => Promise<Result>,
): Promise<FrozenRun<Result>> {
  if (agent === null) return { result: await act(), frozenMs: null, notFrozenBecause: "no guest agent answers" };
  const start = performance.now();
  const refusal = await freeze(agent, mountpoints, limitMs);
  const left = Math.max(0, limitMs - (performance.now() - start));
  const acting = refusal === null ? act() : null;
  const outcome = acting === null ? null : await settledWithin(acting, left);
  // Thaw before anything else; a failure to thaw takes precedence over any result.
  const wasFrozen = await thaw(agent);
  const frozenMs = Math.round(performance.now() - start);
  if (acting === null) return { result: await act(), frozenMs: null, notFrozenBecause: refusal };
  const result = await acting;
  if (outcome === "late") return { result, frozenMs, notFrozenBecause: `it took longer than ${limitMs / 1000} s` };
  const reason = wasFrozen ? null : "the guest thawed by itself before they were taken";
  return { result, frozenMs, notFrozenBecause: reason };
}

/** @returns why the guest could not be frozen; null when it is */
export async function freeze(
  agent: GuestAgent,
  mountpoints: readonly string[] | null,
  limitMs: number,
): Promise<string | null> {
  try {
    const count = await agent.freeze(mountpoints, limitMs);
    return count > 0 ? null : "the guest agent found no file system to freeze";
  } catch (error) {
    if (error instanceof EngineError) return error.message.replace(/\.$/, "");
    throw error;
  }
}

async function settledWithin(promise: Promise<unknown>, ms: number): Promise<"settled" | "late"> {
  const stop = new AbortController();
  try {
    const settled = promise.then(
      () => "settled" as const,
      () => "settled" as const,
    );
    return await Promise.race([settled, delay(ms, "late" as const, { signal: stop.signal })]);
  } finally {
    stop.abort();
  }
}

/**
 * Thaws a guest and verifies it, with three attempts.
 *
 * @returns whether the guest was frozen before
 */
export async function thaw(agent: GuestAgent): Promise<boolean> {
  let wasFrozen = false;
  for (let tries = 1; ; tries++) {
    try {
      // The reply of an abandoned freeze may still arrive.
      await agent.sync();
      const frozen = await agent.isFrozen();
      wasFrozen ||= frozen;
      // Even when it reports "thawed": an abandoned freeze may have left some file systems frozen.
      await agent.thaw();
      if (!(await agent.isFrozen())) return wasFrozen;
    } catch (error) {
      if (tries < thawTriesMax) continue;
      throw stillFrozen(error);
    }
    if (tries === thawTriesMax) throw stillFrozen();
  }
}

function stillFrozen(cause?: unknown): HypervisorUnavailableError {
  const message =
    "The guest was asked three times to thaw and may still be frozen: run `guest-fsfreeze-thaw` on its agent, or restart it.";
  return new HypervisorUnavailableError(message, { cause });
}
