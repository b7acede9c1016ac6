import { type KnownWorker, listWorkers } from "@tephra/control";
import type { AnswerOf, WorkerCard } from "@tephra/wire";
import { defineOps } from "./serve.ts";

function rateOf({ tasks }: KnownWorker): number | null {
  const rates = tasks.flatMap(({ rate }) => (rate === null ? [] : [rate]));
  return rates.length === 0 ? null : rates.reduce((sum, rate) => sum + rate, 0);
}

const view = (row: KnownWorker): WorkerCard => ({
  id: row.id,
  host: row.host,
  pid: row.pid,
  version: row.version,
  state: row.state,
  disabled_reason: row.disabledReason,
  started_at: row.startedAt.toISOString(),
  heartbeat_at: row.heartbeatAt.toISOString(),
  queue: row.queue,
  slots: row.slots,
  tasks: row.tasks.map((task) => ({
    operation_id: task.operationId,
    operation_kind: task.operationKind,
    kind: task.kind,
    ordinal: task.ordinal,
    project_id: task.projectId,
    volume_id: task.volumeId,
    backup_id: task.backupId,
    bytes_done: task.bytesDone,
    rate_bytes_per_second: task.rate,
    started_at: task.startedAt?.toISOString() ?? null,
  })),
  reaches: row.reaches,
  unreachable: row.unreachable,
  free_bytes: row.freeBytes,
  places: row.places as WorkerCard["places"],
  rate_bytes_per_second: rateOf(row),
  rss_bytes: row.rssBytes === null ? null : Number(row.rssBytes),
});

export const workers = {
  /** Worker processes that were heard of within the last hour, and what they do. */
  list: defineOps({
    handle: async ({ database, config }) => {
      const body = { workers: (await listWorkers(database, config)).map(view) };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/workers"> };
    },
  }),
};
