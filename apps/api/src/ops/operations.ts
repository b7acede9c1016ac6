import {
  cancelOperation,
  changePriority,
  explainOperation,
  getOperation,
  listOperations,
  readOperationTasks,
  readRanges,
  retryOperation,
  type TaskRow,
  whyNotCancelled,
  whyNotRetried,
} from "@tephra/control";
import { type AnswerOf, type OperationDetails, requests } from "@tephra/wire";
import { may } from "../http/policy.ts";
import { defineOps } from "./serve.ts";
import { viewOperation } from "./views.ts";

const viewTask = (row: TaskRow): OperationDetails["tries"][number] => ({
  kind: row.kind,
  ordinal: row.ordinal,
  state: row.state,
  range_offset: row.offset,
  range_length: row.length,
  worker_id: row.workerId,
  try: row.claim,
  bytes_done: row.bytesDone,
  bytes_stored: row.bytesStored,
  rate_bytes_per_second: row.rate,
  started_at: row.startedAt?.toISOString() ?? null,
  finished_at: row.finishedAt?.toISOString() ?? null,
  reason: row.failReason,
});

export const operations = {
  list: defineOps({
    ...requests["GET /ops/operations"],
    handle: async ({ database }, { principal, query }) => {
      const { limit } = query;
      // One more than is shown tells whether there is a next page.
      const rows = await listOperations(database, principal, {
        backupId: query.backup_id,
        volumeId: query.volume_id,
        groupId: query.group_id,
        parentId: query.parent_id,
        kinds: query.kind,
        states: query.state,
        projectId: query.project_id,
        repository: query.repository,
        workerId: query.worker_id,
        requestId: query.request_id,
        isStuck: query.stuck,
        from: query.from,
        to: query.to,
        marker: query.marker,
        limit: limit + 1,
      });
      const shown = rows.slice(0, limit);
      const body = {
        operations: shown.map((row) => viewOperation(row, principal)),
        next: rows.length > limit ? (shown.at(-1)?.id ?? null) : null,
      };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/operations"> };
    },
  }),

  show: defineOps({
    ...requests["GET /ops/operations/:id"],
    handle: async ({ config, database }, { principal, params, query }) => {
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
      const { phases, tries, tasks } = await readOperationTasks(database, principal, row, { withTasks: query.tasks });
      const operation = {
        ...viewOperation(row, principal),
        why: why && { ...why, since: why.since?.toISOString() ?? null },
        actions,
        phases: phases.map(({ name, startedAt, finishedAt }) => ({
          name,
          started_at: startedAt?.toISOString() ?? null,
          finished_at: finishedAt?.toISOString() ?? null,
        })),
        tries: tries.map(viewTask),
        ...(tasks !== null && { tasks: tasks.map(viewTask) }),
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
      const answer: AnswerOf<"PUT /ops/operations/:id/priority"> = { operation: viewOperation(row, principal) };
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
