import {
  cancelOperation,
  getOperation,
  listOperations,
  type OperationProgress,
  whyNotCancelled,
} from "@tephra/control";
import { type AnswerOf, type Operation, type OperationDetails, type OperationResult, requests } from "@tephra/wire";
import { may } from "../http/policy.ts";
import { defineOps } from "./serve.ts";

const isoOrNull = (time: Date | null): string | null => time?.toISOString() ?? null;

/** Sizes are in bytes. */
export function viewOperation(row: OperationProgress): Operation {
  return {
    id: row.id,
    kind: row.kind,
    state: row.state,
    project_id: row.projectId,
    backup_id: row.backupId,
    volume_id: row.volumeId,
    tasks_total: row.tasksTotal,
    tasks_done: row.tasksDone,
    bytes_total: Number(row.bytesTotal),
    bytes_done: row.bytesDone,
    bytes_stored: Number(row.bytesStored),
    bytes_copied_twice: row.bytesCopiedTwice,
    rate_bytes_per_second: row.rateBytesPerSecond,
    seconds_left: row.secondsLeft,
    queue_position: row.queuePosition,
    attempts: row.attempts,
    fail_reason: row.failReason,
    ...(row.result !== null && { result: row.result as OperationResult }),
    created_at: row.createdAt.toISOString(),
    updated_at: isoOrNull(row.updatedAt),
  };
}

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
    handle: async ({ database }, { principal, params }) => {
      const row = await getOperation(database, principal, params["id"] ?? "");
      const why = may(principal, "ops:operation:cancel")
        ? await whyNotCancelled(database, principal, row)
        : "Your role may not cancel operations.";
      const actions: OperationDetails["actions"] = [{ name: "cancel", allowed: why === null, why }];
      const operation = { ...viewOperation(row), actions };
      return { status: 200, body: { operation } satisfies AnswerOf<"GET /ops/operations/:id"> };
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
};
