import { type AuditRow, listAudit } from "@tephra/control";
import { type AnswerOf, type AuditEntry, requests } from "@tephra/wire";
import type { Context } from "../context.ts";
import { linesOf } from "./lines.ts";
import { defineOps } from "./serve.ts";

const view = (row: AuditRow): AuditEntry => ({
  id: String(row.id),
  at: row.at.toISOString(),
  resource: row.resource,
  resource_id: row.resourceId,
  project_id: row.projectId,
  from: row.fromStatus,
  to: row.toStatus,
  actor: row.actor,
  user_id: row.userId,
  user_project_id: row.userProjectId,
  worker_id: row.workerId,
  request_id: row.requestId,
  operation_id: row.operationId,
  reason: row.reason,
});

/** Drops filters that were not given. */
const given = <T extends object>(filters: T) =>
  Object.fromEntries(Object.entries(filters).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: NonNullable<T[K]>;
  };

const linesAtOnce = 500;

/** All that match, whatever the limit. */
async function* everyPage(database: Context["database"], asked: Parameters<typeof listAudit>[1]) {
  for (let page = { ...asked, limit: linesAtOnce }; ; ) {
    const rows = await listAudit(database, page);
    if (rows.length > 0) yield rows.map(view);
    const last = rows.at(-1);
    if (last === undefined || rows.length < linesAtOnce) return;
    page = { ...page, marker: last.id };
  }
}

/**
 * Audit log of status changes, newest first. The next page starts after the last entry of this one: `marker`. With `Accept: application/x-ndjson` all that match,
 * one on a line.
 */
export const audit = {
  list: defineOps({
    ...requests["GET /ops/audit"],
    handle: async ({ database }, { query, wantsLines }) => {
      const asked = {
        limit: query.limit,
        ...given({
          resource: query.resource,
          resourceId: query.resource_id,
          projectId: query.project_id,
          userId: query.user_id,
          workerId: query.worker_id,
          requestId: query.request_id,
          operationId: query.operation_id,
          since: query.since,
          until: query.until,
          marker: query.marker,
        }),
      };
      if (wantsLines) return { status: 200, stream: linesOf(() => everyPage(database, asked)) };
      const rows = await listAudit(database, asked);
      return { status: 200, body: { audit: rows.map(view) } satisfies AnswerOf<"GET /ops/audit"> };
    },
  }),
};
