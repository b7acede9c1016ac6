import type { AcceptedGroupOperation } from "@tephra/control";
import type { Context } from "../context.ts";
import { endOf } from "../http/operation-end.ts";
import { badRequest } from "../http/refusals.ts";
import type { Answer, Call } from "../openstack/call.ts";

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
  const limitMs = context.config.instance_groups.sync_wait_timeout_ms;
  const end = async ? null : await endOf(context, accepted.operationId, limitMs, call.gone);
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
