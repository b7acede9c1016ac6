import type { Config } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { forgottenAtOnce } from "../db/listing.ts";
import { IdTakenError, NotFoundError } from "../errors.ts";
import type { OvirtEvent } from "../generated/client.ts";
import type { Principal } from "../principal.ts";

/** What happens to machines, disks, snapshots and transfers; most of it is told by triggers. */
export type OvirtEventKind =
  | "disk-add"
  | "disk-added"
  | "disk-add-failed"
  | "disk-removed"
  | "disk-remove-failed"
  | "disk-attached"
  | "disk-detached"
  | "disk-skipped"
  | "mac-clash"
  | "machine-added"
  | "machine-removed"
  | "machine-started"
  | "machine-stopped"
  | "snapshot-create"
  | "snapshot-created"
  | "snapshot-create-failed"
  | "snapshot-remove"
  | "snapshot-removed"
  | "snapshot-remove-failed"
  | "transfer-begun"
  | "transfer-succeeded"
  | "transfer-failed"
  | "transfer-cancelled"
  | "transfer-paused"
  | "backup-started"
  | "backup-start-failed"
  | "backup-finalized"
  | "backup-failed"
  | "checkpoint-invalid"
  | "checkpoint-expired"
  | "login"
  | "login-failed"
  | "custom";

/** An event, with the names of what it is about as they were then. */
export type OvirtEventRow = Omit<OvirtEvent, "details"> & { details: Readonly<Record<string, string>> };

const asRow = (row: OvirtEvent): OvirtEventRow => ({ ...row, details: row.details as Record<string, string> });

/** Events that a list reads; older ones are found by their ids. */
const listedMax = 10_000;

/** Ids of events are numbers; null for what is none. */
const idOf = (text: string): bigint | null => (/^\d{1,18}$/.test(text) ? BigInt(text) : null);

/** Events of the caller's project, newest first. `from`: those with greater ids. */
export async function listOvirtEvents(
  database: Database,
  { projectId }: Principal,
  { from = null, max = null }: { from?: bigint | null; max?: number | null },
): Promise<OvirtEventRow[]> {
  const rows = await database.ovirtEvent.findMany({
    where: { projectId, ...(from !== null && { id: { gt: from } }) },
    orderBy: { id: "desc" },
    take: Math.min(max ?? listedMax, listedMax),
  });
  return rows.map(asRow);
}

/** @throws NotFoundError */
export async function getOvirtEvent(
  database: Database,
  { projectId }: Principal,
  text: string,
): Promise<OvirtEventRow> {
  const id = idOf(text);
  const row = id === null ? null : await database.ovirtEvent.findFirst({ where: { id, projectId } });
  if (!row) throw new NotFoundError("Event", text);
  return asRow(row);
}

/** @throws NotFoundError */
export async function removeOvirtEvent(database: Database, { projectId }: Principal, text: string): Promise<void> {
  const id = idOf(text);
  const { count } = id === null ? { count: 0 } : await database.ovirtEvent.deleteMany({ where: { id, projectId } });
  if (count === 0) throw new NotFoundError("Event", text);
}

export interface CustomEvent {
  origin: string;
  customId: number;
  severity: string;
  description: string;
  instanceId: string | null;
}

/** A client's own event. @throws IdTakenError for a number that its origin has used before */
export async function addCustomEvent(
  database: Database,
  { projectId, userId, requestId }: Principal,
  event: CustomEvent,
): Promise<OvirtEventRow> {
  const [row] = await database.ovirtEvent.createManyAndReturn({
    data: [{ ...event, projectId, userId, requestId, kind: "custom" }],
    skipDuplicates: true,
  });
  if (!row) throw new IdTakenError(`Event ${event.customId} of ${event.origin} exists already.`);
  return asRow(row);
}

/** Tells what no trigger knows of, in the transaction that it belongs to. */
export async function tellOvirtEvent(
  tx: Transaction | Database,
  { projectId, userId, requestId }: Pick<Principal, "projectId" | "userId" | "requestId">,
  event: { kind: OvirtEventKind; instanceId?: string; details: Readonly<Record<string, string>> },
): Promise<void> {
  const { kind, instanceId = null, details } = event;
  await tx.ovirtEvent.create({ data: { projectId, userId, requestId, kind, instanceId, details } });
}

/** Removes events older than `ovirt.event_days`, one batch. @returns whether there may be more */
export async function forgetOvirtEvents(database: Database, config: Config): Promise<boolean> {
  const removed = await database.$executeRaw`
    WITH old AS (
      SELECT id FROM ovirt_events WHERE at < now() - ${config.ovirt.event_days}::float8 * interval '1 day'
      ORDER BY at LIMIT ${forgottenAtOnce} FOR UPDATE SKIP LOCKED)
    DELETE FROM ovirt_events WHERE id IN (SELECT id FROM old)`;
  return removed === forgottenAtOnce;
}
