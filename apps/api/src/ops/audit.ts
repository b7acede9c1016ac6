import { type AuditRow, auditedResources, isUuid, listAudit } from "@tephra/control";
import type { AnswerOf, AuditEntry } from "@tephra/wire";
import { z } from "zod";
import { defineOps } from "./serve.ts";

const id = z.string().refine(isUuid, "is not a uuid");
const time = z.iso.datetime({ offset: true }).transform((text) => new Date(text));

const Query = z.strictObject({
  resource: z.enum(auditedResources).optional(),
  resource_id: id.optional(),
  project_id: z.string().optional(),
  user_id: z.string().optional(),
  worker_id: z.string().optional(),
  request_id: z.string().optional(),
  operation_id: id.optional(),
  since: time.optional(),
  until: time.optional(),
  marker: z
    .string()
    .regex(/^[0-9]{1,18}$/, "is not the id of an entry")
    .transform(BigInt)
    .optional(),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
});

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

/** Audit log of status changes, newest first. The next page starts after the last entry of this one: `marker`. */
export const audit = {
  list: defineOps({
    query: Query,
    handle: async ({ database }, { query }) => {
      const rows = await listAudit(database, {
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
      });
      return { status: 200, body: { audit: rows.map(view) } satisfies AnswerOf<"GET /ops/audit"> };
    },
  }),
};
