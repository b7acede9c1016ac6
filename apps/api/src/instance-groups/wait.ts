import { setTimeout as sleep } from "node:timers/promises";
import { type AcceptedGroupOperation, readOperationEnd } from "@tephra/control";
import type { Context } from "../context.ts";
import { badRequest } from "../http/refusals.ts";
import type { Answer, Call } from "../openstack/call.ts";

/** How often it is looked whether an operation has ended: often at first, then not so often. */
const pauseMsMin = 50;
const pauseMsMax = 1_000;

/** @returns how the operation ended; null when it has not within the time, or nobody waits for it any more */
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
 * The answer to an accepted request: at once with `async`, else when the operation has ended, or after the longest time that a request is
 * held: then as with `async`, and the work goes on.
 *
 * @throws Refusal 400 when the operation came to nothing
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
