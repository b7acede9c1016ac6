import {
  cancelOperation,
  changePriority,
  explainOperation,
  getOperation,
  listOperations,
  readRanges,
  retryOperation,
  whyNotCancelled,
  whyNotRetried,
} from "@tephra/control";
import { type AnswerOf, type OperationDetails, requests } from "@tephra/wire";
import { may } from "../http/policy.ts";
import { defineOps } from "./serve.ts";
import { viewOperation } from "./views.ts";

export const operations = {
  list: defineOps({
    ...requests["GET /ops/operations"],
    handle: async ({ database }, { principal, query }) => {
      const rows = await listOperations(database, principal, {
        limit: query.limit,
        ...(query.backup_id !== undefined && { backupId: query.backup_id }),
        ...(query.volume_id !== undefined && { volumeId: query.volume_id }),
        ...(query.group_id !== undefined && { groupId: query.group_id }),
        ...(query.state !== undefined && { state: query.state }),
      });
      return { status: 200, body: { operations: rows.map(viewOperation) } satisfies AnswerOf<"GET /ops/operations"> };
    },
  }),

  show: defineOps({
    handle: async ({ config, database }, { principal, params }) => {
      const row = await getOperation(database, principal, params["id"] ?? "");
      const whyNot = may(principal, "ops:operation:cancel")
        ? await whyNotCancelled(database, principal, row)
        : "Your role may not cancel operations.";
      const whyNotAgain = may(principal, "ops:operation:retry")
        ? whyNotRetried(principal, row)
        : "Your role may not retry operations.";
      const actions: OperationDetails["actions"] = [
        { name: "cancel", allowed: whyNot === null, why: whyNot },
        { name: "retry", allowed: whyNotAgain === null, why: whyNotAgain },
      ];
      const why = await explainOperation(database, config, principal, row);
      const operation = {
        ...viewOperation(row),
        why: why && { ...why, since: why.since?.toISOString() ?? null },
        actions,
      };
      return { status: 200, body: { operation } satisfies AnswerOf<"GET /ops/operations/:id"> };
    },
  }),

  /** How far each range of it is. */
  ranges: defineOps({
    handle: async ({ database }, { principal, params }) => {
      const row = await readRanges(database, principal, params["id"] ?? "");
      const body: AnswerOf<"GET /ops/operations/:id/ranges"> = {
        length_bytes: row.lengthBytes,
        range_bytes: row.rangeBytes,
        states: row.states,
        density: row.density.toString("base64"),
        running: row.running.map(({ ordinal, workerId, bytesDone, claim }) => {
          return { ordinal, worker_id: workerId, bytes_done: bytesDone, try: claim };
        }),
      };
      return { status: 200, body };
    },
  }),

  /** It has ended when this is answered; a worker that is at work on it stops at its next heartbeat. */
  cancel: defineOps({
    handle: async ({ database }, { principal, params }) => {
      const id = params["id"] ?? "";
      await cancelOperation(database, principal, id);
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/operations/:id/cancel"> };
    },
  }),

  /** From now on its work goes before or after that of others. */
  prioritize: defineOps({
    ...requests["PUT /ops/operations/:id/priority"],
    handle: async ({ database }, { principal, params, body }) => {
      const row = await changePriority(database, principal, params["id"] ?? "", body.priority);
      const answer: AnswerOf<"PUT /ops/operations/:id/priority"> = { operation: viewOperation(row) };
      return { status: 200, body: answer };
    },
  }),

  /** What a failed one did not is done again, by an operation of its own. */
  retry: defineOps({
    handle: async ({ config, database }, { principal, params }) => {
      const { id } = await retryOperation(database, config, principal, params["id"] ?? "");
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/operations/:id/retry"> };
    },
  }),
};
