import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, Prisma, type Transaction } from "../db/database.ts";
import { forgottenAtOnce, isUuid } from "../db/listing.ts";
import { NotFoundError } from "../errors.ts";
import type { Json } from "../queue/tasks.ts";

/** Cinder's backup events (cinder-api 9.8), and our own for verifications and squashes. */
export type BackupEvent =
  | "backup.create.start"
  | "backup.createprogress"
  | "backup.create.end"
  | "backup.restore.start"
  | "backup.restore.end"
  | "backup.delete.start"
  | "backup.delete.end"
  | "backup.undelete"
  | "retention.deleted"
  | "backup.reset_status.start"
  | "backup.reset_status.end"
  | "backup.verify.start"
  | "backup.verify.end"
  | "backup.squash.start"
  | "backup.squash.end";

/** What becomes of the times at which policies are due. */
export type PolicyEvent = "policy.run.start" | "policy.run.end" | "policy.run.skipped" | "policy.missed";

/** How long a notification is kept once every target has it, and how long when a target never accepted it. */
const keptDelivered = "1 day";
const keptDead = "30 days";

/** What is added to the payload of an event. */
export type EventDetails = { readonly [key: string]: Json };

/**
 * Puts an event about a backup into the outbox, with the row as this transaction leaves it: call it after the change. `more` is added to
 * the payload.
 */
export async function notifyBackup(
  tx: Transaction | Database,
  event: BackupEvent,
  backupId: string,
  more: EventDetails = {},
): Promise<void> {
  await notifyBackupInOrder(tx, backupId, [{ event, more }]);
}

/** As `notifyBackup`, for several events that follow each other. */
export async function notifyBackupInOrder(
  tx: Transaction | Database,
  backupId: string,
  events: readonly { event: BackupEvent; more?: EventDetails }[],
): Promise<void> {
  const backup = Prisma.sql`SELECT * FROM backups WHERE id = ${backupId}::uuid`;
  await tx.$executeRaw`WITH changed AS (${backup}) ${notificationsOf("changed", events)}`;
}

/**
 * SQL: the statement that puts events into the outbox about each backup that `changed` has, a query of the same WITH which returns all
 * columns as they are after the change.
 */
export function notificationsOf(
  changed: string,
  events: readonly { event: BackupEvent; more?: EventDetails }[],
): Prisma.Sql {
  const rows = JSON.stringify(events.map(({ event, more = {} }) => ({ id: randomUUID(), event, more })));
  return Prisma.sql`
    INSERT INTO notifications (id, event_type, host, payload)
    SELECT e.id, e.event, coalesce(b.host, 'unknown'), jsonb_build_object(
      'tenant_id', b.project_id, 'user_id', b.user_id, 'availability_zone', b.availability_zone, 'backup_id', b.id,
      'host', b.host, 'display_name', b.name,
      'created_at', to_char(b.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"'),
      'status', b.status, 'volume_id', b.volume_id, 'size', b.size_gib, 'service_metadata', b.service_metadata,
      'service', b.service, 'fail_reason', b.fail_reason, 'parent_id', b.parent_id,
      'num_dependent_backups', (SELECT count(*) FROM backups c WHERE c.parent_id = b.id AND c.deleted_at IS NULL),
      'snapshot_id', b.snapshot_id) || e.more
    FROM ${Prisma.raw(changed)} b,
      ROWS FROM (jsonb_to_recordset(${rows}::jsonb) AS (id uuid, event text, more jsonb)) WITH ORDINALITY AS e
    ORDER BY e.ordinality`;
}

/** Puts an event about a policy into the outbox. `payload`: keys of the API, times in ISO 8601. */
export async function notifyPolicy(
  tx: Transaction | Database,
  event: PolicyEvent,
  { host, payload }: { host: string; payload: EventDetails },
): Promise<void> {
  await tx.$executeRaw`
    INSERT INTO notifications (id, event_type, host, payload)
    VALUES (${randomUUID()}::uuid, ${event}, ${host}, ${JSON.stringify(payload)}::jsonb)`;
}

/** A notification to be delivered to one target. */
export interface DueDelivery {
  id: string;
  target: string;
  attempts: number;
  /** The notification's own id: the same for every attempt and target. */
  messageId: string;
  eventType: string;
  host: string;
  payload: Json;
  createdAt: Date;
}

/** Names of the configured targets, as stored in deliveries. */
export function targetsOf({ notifications }: Pick<Config, "notifications">): string[] {
  const { webhooks, redis_stream: stream, log } = notifications;
  return [...webhooks.map((w) => `webhook:${w.name}`), ...(stream ? ["redis"] : []), ...(log ? ["log"] : [])];
}

/** Creates one delivery per target for each new notification; without targets notifications are only marked. */
export async function spreadNotifications(database: Database, targets: readonly string[]): Promise<void> {
  await database.$executeRaw`
    WITH fresh AS (
      UPDATE notifications SET spread = true WHERE id IN (
        SELECT id FROM notifications WHERE NOT spread ORDER BY sequence LIMIT 1000 FOR UPDATE SKIP LOCKED)
      RETURNING id
    )
    INSERT INTO deliveries (id, notification_id, target)
    SELECT gen_random_uuid(), f.id, t.target FROM fresh f CROSS JOIN unnest(${[...targets]}::text[]) AS t(target)`;
}

/**
 * Takes deliveries that are due. Each becomes due again after `leaseMs` if its taker dies before reporting the outcome: a target may
 * receive one twice, and recognizes it by the message's id.
 */
export async function takeDeliveries(
  database: Database,
  options: { limit: number; leaseMs: number; attemptsMax: number },
): Promise<DueDelivery[]> {
  // Its takers never reported an outcome, this many times in a row: the delivery may be what kills them.
  await database.$executeRaw`
    UPDATE deliveries SET state = 'dead', last_error = coalesce(last_error, 'nobody came back who had taken it')
    WHERE state = 'pending' AND run_after <= now() AND attempts >= ${options.attemptsMax}`;
  return database.$queryRaw<DueDelivery[]>`
    WITH due AS (
      UPDATE deliveries SET attempts = attempts + 1, run_after = now() + ${options.leaseMs} * interval '1 millisecond'
      WHERE id IN (SELECT id FROM deliveries WHERE state = 'pending' AND run_after <= now()
        ORDER BY run_after LIMIT ${options.limit} FOR UPDATE SKIP LOCKED)
      RETURNING *
    )
    SELECT d.id, d.target, d.attempts, n.id AS "messageId", n.event_type AS "eventType", n.host, n.payload,
      n.created_at AS "createdAt"
    FROM due d JOIN notifications n ON n.id = d.notification_id ORDER BY n.sequence`;
}

export async function markDelivered(database: Database, id: string): Promise<void> {
  await database.$executeRaw`UPDATE deliveries SET state = 'delivered', last_error = NULL WHERE id = ${id}::uuid`;
}

/** An attempt failed: the next one is due after `delayMs`, unless the delivery is `dead`. */
export async function markUndelivered(
  database: Database,
  id: string,
  failure: { reason: string; dead: boolean; delayMs: number },
): Promise<void> {
  await database.$executeRaw`
    UPDATE deliveries SET last_error = ${failure.reason.slice(0, 1000)}, state = ${failure.dead ? "dead" : "pending"},
      run_after = now() + ${failure.delayMs} * interval '1 millisecond'
    WHERE id = ${id}::uuid AND state = 'pending'`;
}

/**
 * Removes notifications that every target has, and, after a longer while, those that some target never accepted, one batch. @returns
 * whether there may be more
 */
export async function forgetNotifications(database: Database): Promise<boolean> {
  const removed = await database.$executeRaw`
    WITH old AS (
      SELECT id FROM notifications n WHERE spread AND created_at < now() - ${keptDelivered}::interval
        AND (created_at < now() - ${keptDead}::interval
          OR NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.notification_id = n.id AND d.state <> 'delivered'))
      ORDER BY sequence LIMIT ${forgottenAtOnce} FOR UPDATE SKIP LOCKED)
    DELETE FROM notifications WHERE id IN (SELECT id FROM old)`;
  return removed === forgottenAtOnce;
}

export const deliveryStates = ["pending", "delivered", "dead"] as const;
export type DeliveryState = (typeof deliveryStates)[number];

export interface DeliveryRow extends Omit<DueDelivery, "host"> {
  state: DeliveryState;
  runAfter: Date;
  lastError: string | null;
}

/** Newest first. For admins: events of all projects. */
export async function listDeliveries(
  database: Database,
  query: { state: DeliveryState; limit: number },
): Promise<DeliveryRow[]> {
  const rows = await database.delivery.findMany({
    where: { state: query.state },
    include: { notification: true },
    orderBy: [{ notification: { sequence: "desc" } }, { id: "desc" }],
    take: query.limit,
  });
  return rows.map(({ notification, ...row }) => ({
    id: row.id,
    target: row.target,
    attempts: row.attempts,
    messageId: notification.id,
    eventType: notification.eventType,
    payload: notification.payload,
    createdAt: notification.createdAt,
    state: row.state as DeliveryState,
    runAfter: row.runAfter,
    lastError: row.lastError,
  }));
}

/** Retries a dead delivery, starting over with its first attempt. @throws NotFoundError unless it is dead */
export async function retryDelivery(database: Database, id: string): Promise<void> {
  const retried = isUuid(id)
    ? await database.$executeRaw`
        UPDATE deliveries SET state = 'pending', attempts = 0, run_after = now() WHERE id = ${id}::uuid AND state = 'dead'`
    : 0;
  if (retried !== 1) throw new NotFoundError("Notification", id);
}
