import { setTimeout as delay } from "node:timers/promises";
import { type AnswerOf, type Operation, queuePlaces } from "@tephra/wire";
import { openProgressBar, type ProgressBar } from "../progress-bar.ts";
import { ApiError, type Client } from "./client.ts";
import { formatBytes, formatSeconds } from "./output.ts";

/** The operation failed or was cancelled. */
export class OperationFailedError extends Error {
  readonly code = "operation_failed";
  readonly operation: Operation | null;

  constructor(message: string, operation: Operation | null) {
    super(message);
    this.operation = operation;
  }
}

/** `--timeout` has expired. The operation continues. */
export class WaitTimeoutError extends Error {
  readonly code = "timeout";
}

export interface WaitOptions {
  /** Undefined: no limit. */
  timeoutSeconds?: number | undefined;
  /** Where the progress bar is drawn; null: none. */
  terminal: NodeJS.WriteStream | null;
}

/** How to find an operation: by its id, or the newest of a kind on a backup, a volume or a group. */
export type OperationQuery =
  | { id: string }
  | { kind: string; backup_id?: string; volume_id?: string; group_id?: string };

const pollMinMs = 100;
const pollMaxMs = 1_000;

/**
 * Polls until the operation has ended, also through restarts of the service.
 *
 * @throws OperationFailedError when it failed or was cancelled; WaitTimeoutError
 */
export async function waitForOperation(
  client: Client,
  query: OperationQuery,
  options: WaitOptions,
): Promise<Operation> {
  const signal = timeoutSignal(options);
  const bar = openBar(options.terminal);
  try {
    let id = "id" in query ? query.id : undefined;
    for (let pauseMs = pollMinMs; ; pauseMs = Math.min(pollMaxMs, pauseMs * 1.5)) {
      const operation = await readOperation(client, id === undefined ? query : { id }, signal);
      id = operation.id;
      bar.show(operation);
      if (operation.state === "succeeded") return operation;
      if (operation.state === "failed" || operation.state === "cancelled") throw endedBadly(operation);
      await delay(pauseMs, undefined, { signal });
    }
  } catch (error) {
    throw signal.aborted ? timedOut(options) : error;
  } finally {
    bar.close();
  }
}

/**
 * Polls a resource without an operation of its own, until its status is none of `pending`.
 *
 * @returns null when the resource no longer exists
 * @throws OperationFailedError when the status begins with `error`; WaitTimeoutError
 */
export async function waitForStatus<T extends { status: string }>(
  read: (signal: AbortSignal) => Promise<T>,
  { pending, ...options }: WaitOptions & { pending: readonly string[] },
): Promise<T | null> {
  const signal = timeoutSignal(options);
  try {
    for (let pauseMs = pollMinMs; ; pauseMs = Math.min(pollMaxMs, pauseMs * 1.5)) {
      const resource = await read(signal);
      if (resource.status.startsWith("error"))
        throw new OperationFailedError(`ended with status ${resource.status}`, null);
      if (!pending.includes(resource.status)) return resource;
      await delay(pauseMs, undefined, { signal });
    }
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null;
    throw signal.aborted ? timedOut(options) : error;
  }
}

async function readOperation(client: Client, query: OperationQuery, signal: AbortSignal): Promise<Operation> {
  if ("id" in query)
    return (await client.getPatiently<AnswerOf<"GET /ops/operations/:id">>(`/ops/operations/${query.id}`, signal))
      .operation;
  const { kind, ...of } = query;
  const search = new URLSearchParams(of);
  const { operations } = await client.getPatiently<AnswerOf<"GET /ops/operations">>(
    `/ops/operations?${search}`,
    signal,
  );
  const newest = operations.find((operation) => operation.kind === kind);
  // The operation is committed together with its resource: if it is not visible by now, it never will be.
  if (newest === undefined) throw new OperationFailedError(`the service shows no ${kind} for ${search}`, null);
  return newest;
}

function endedBadly(operation: Operation): OperationFailedError {
  const why = operation.fail_reason ?? "no reason was given";
  return new OperationFailedError(`${operation.kind} ${operation.state}: ${why}`, operation);
}

function timeoutSignal({ timeoutSeconds }: Pick<WaitOptions, "timeoutSeconds">): AbortSignal {
  return timeoutSeconds === undefined ? new AbortController().signal : AbortSignal.timeout(timeoutSeconds * 1000);
}

function timedOut({ timeoutSeconds }: Pick<WaitOptions, "timeoutSeconds">): WaitTimeoutError {
  return new WaitTimeoutError(`not finished within ${timeoutSeconds} s; the operation continues`);
}

interface Bar {
  show(operation: Operation): void;
  close(): void;
}

function openBar(terminal: NodeJS.WriteStream | null): Bar {
  if (terminal === null) return { show: () => {}, close: () => {} };
  let bar: ProgressBar | null = null;
  return {
    show: (operation) => {
      // An operation with no bytes to move (an empty volume) goes from 0 to 100 % at its end.
      const total = Math.max(1, operation.bytes_total);
      const done = operation.state === "succeeded" ? total : Math.min(operation.bytes_done, total);
      bar ??= openProgressBar(terminal, operation.kind);
      bar.draw(done / total, progressText(operation));
    },
    close: () => bar?.close(),
  };
}

function progressText(operation: Operation): string {
  const {
    state,
    queue_position: position,
    bytes_total: total,
    rate_bytes_per_second: rate,
    seconds_left: left,
  } = operation;
  if (state === "queued") {
    if (position === null) return "queued";
    return position > queuePlaces ? `queued, more than ${queuePlaces} ahead` : `queued, position ${position}`;
  }
  if (state === "failed" || state === "cancelled") return state;
  const done = state === "succeeded" ? total : operation.bytes_done;
  const parts = [`${formatBytes(done)} of ${formatBytes(total)}`];
  if (rate !== null) parts.push(`${formatBytes(rate)}/s`);
  if (left !== null && state === "running") parts.push(`${formatSeconds(left)} left`);
  return parts.join("  ");
}
