import type { Config } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { forgottenAtOnce, isUuid } from "../db/listing.ts";
import type { AuditEntry } from "../generated/client.ts";
import type { Principal } from "../principal.ts";

export type AuditRow = AuditEntry;

export const auditedResources = [
  "backup",
  "volume",
  "snapshot",
  "group",
  "group_snapshot",
  "attachment",
  "transfer",
  "image_transfer",
  "machine_backup",
  "operation",
  "session",
  "alert",
] as const;

export interface AuditQuery {
  resource?: (typeof auditedResources)[number];
  resourceId?: string;
  /** Project that owns the resource. */
  projectId?: string;
  userId?: string;
  workerId?: string;
  requestId?: string;
  operationId?: string;
  /** `since` is inclusive, `until` exclusive. */
  since?: Date;
  until?: Date;
  /** The page begins after this entry. */
  marker?: bigint;
  limit: number;
}

/** Who changed the status of what, newest first, across all projects: for admins. */
export async function listAudit(database: Database, query: AuditQuery): Promise<AuditRow[]> {
  const { since, until, marker, limit, ...columns } = query;
  if ([columns.resourceId, columns.operationId].some((id) => id !== undefined && !isUuid(id))) return [];
  return database.auditEntry.findMany({
    where: {
      ...columns,
      at: { ...(since && { gte: since }), ...(until && { lt: until }) },
      ...(marker !== undefined && { id: { lt: marker } }),
    },
    orderBy: { id: "desc" },
    take: limit,
  });
}

/** Enters what a user has done that changes no status; a session is that of a browser, an alert its snooze. */
export async function noteAudit(
  tx: Transaction | Database,
  principal: Principal,
  entry: {
    resource: "volume" | "session" | "alert";
    resourceId: string;
    projectId: string;
    to: string;
    reason: string | null;
  },
): Promise<void> {
  const { to: toStatus, ...rest } = entry;
  const { userId, projectId: userProjectId, requestId } = principal;
  await tx.auditEntry.create({ data: { ...rest, toStatus, actor: "user", userId, userProjectId, requestId } });
}

/** Removes entries older than `audit.retention_days`, one batch. @returns whether there may be more */
export async function forgetAudit(database: Database, config: Config): Promise<boolean> {
  const removed = await database.$executeRaw`
    WITH old AS (
      SELECT id FROM audit WHERE at < now() - ${config.audit.retention_days}::float8 * interval '1 day'
      ORDER BY at LIMIT ${forgottenAtOnce} FOR UPDATE SKIP LOCKED)
    DELETE FROM audit WHERE id IN (SELECT id FROM old)`;
  return removed === forgottenAtOnce;
}
