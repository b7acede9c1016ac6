import { setTimeout as sleep } from "node:timers/promises";
import { type AcceptedGroupOperation, readOperationEnd } from "@tephra/control";
import type { Context } from "../context.ts";
import { badRequest } from "../http/refusals.ts";
import type { Answer, Call } from "../openstack/call.ts";

/** Polling interval while an operation runs: short at first, then longer. */
const pauseMsMin = 50;
const pauseMsMax = 1_000;

/** @returns how the operation ended; null when it has not within the time limit, or when the caller has disconnected */
async function endOf({ database, config }: Context, operationId: string, gone: AbortSignal) {
  const until = performance.now() + config.instance_groups.sync_wait_timeout_ms;
  for (let pauseMs = pauseMsMin; !gone.aborted; pauseMs = Math.min(pauseMs * 1.5, pauseMsMax)) {
    const end = await readOperationEnd(database, operationId);
    if (end !== null) return end;
    const leftMs = until - performance.now();
    if (leftMs <= 0) return null;
    await sleep(Math.min(pauseMs, leftMs));
  }
  return null;
}

/**
 * Responds to an accepted request: at once with `async`, otherwise when the operation has ended or the maximum hold time is over; in that
 * case the response is as with `async`, and the operation continues.
 *
 * @throws Refusal 400 when the operation failed
 */
export async function answerWhenDone(
  context: Context,
  call: Call,
  accepted: AcceptedGroupOperation,
  { async, submitted, view }: { async: boolean; submitted: string; view: (done: AcceptedGroupOperation) => unknown },
): Promise<Answer> {
  const end = async ? null : await endOf(context, accepted.operationId, call.gone);
  if (end?.state === "succeeded") return { status: 201, body: view(accepted) };
  if (end) throw badRequest(end.failReason ?? "The operation was cancelled.");
  const project = call.place.project === null ? "" : `/${call.place.project}`;
  return {
    status: context.config.instance_groups.async_status_code,
    body: { msg: submitted },
    headers: {
      location: `/v3${project}/instance-groups/${accepted.groupId}`,
      ...(!async && { "retry-after": "60" }),
    },
  };
}
