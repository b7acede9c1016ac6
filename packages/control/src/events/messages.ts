import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { forgottenAtOnce, isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { NotFoundError } from "../errors.ts";
import type { Message } from "../generated/client.ts";
import { type Principal, visibleTo } from "../principal.ts";

/**
 * What was being done, and what went wrong: number and text from Cinder's tables (cinder-api 9.6). Numbers from 900 are ours, to stay clear
 * of Cinder's.
 */
const actions = {
  "backup-create": ["013", "create backup"],
  "backup-delete": ["014", "delete backup"],
  "backup-restore": ["015", "restore backup"],
  "backup-verify": ["900", "verify backup"],
} as const;

const details = {
  "service-down": ["018", "Backup service is down."],
  "create-failed": ["020", "Backup driver failed to create backup."],
  "schedule-failed": ["024", "Backup failed to schedule. Service not found for creating backup."],
  "delete-failed": ["025", "Backup driver failed to delete backup."],
  "restore-failed": ["026", "Backup driver failed to restore backup."],
  damaged: ["900", "The backup, or one that it builds on, is damaged."],
} as const;

export type MessageAction = keyof typeof actions;
export type MessageDetail = keyof typeof details;
export type MessageRow = Message;
export type MessageSortKey =
  | "id"
  | "createdAt"
  | "eventId"
  | "messageLevel"
  | "requestId"
  | "resourceType"
  | "resourceUuid";

export interface MessageFilter {
  resourceUuid?: string;
  resourceType?: string;
  eventId?: string;
  requestId?: string;
  messageLevel?: string;
}

/** Tells a backup's project what went wrong with it, in the transaction that decides so. */
export async function addMessage(
  tx: Transaction,
  about: { projectId: string; requestId: string; backupId: string; action: MessageAction; detail: MessageDetail },
): Promise<void> {
  const [action, actionText] = actions[about.action];
  const [detail, detailText] = details[about.detail];
  await tx.message.create({
    data: {
      id: randomUUID(),
      projectId: about.projectId,
      requestId: about.requestId,
      eventId: `VOLUME_VOLUME_BACKUP_${action}_${detail}`,
      userMessage: `${actionText}:${detailText}`,
      messageLevel: "ERROR",
      resourceType: "VOLUME_BACKUP",
      resourceUuid: about.backupId,
    },
  });
}

/** @throws NotFoundError for an unknown id or another project's */
export async function getMessage(database: Database, principal: Principal, id: string): Promise<MessageRow> {
  const row = isUuid(id) ? await database.message.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
  if (!row) throw new NotFoundError("Message", id);
  return row;
}

/** One page; an admin's lists those of all projects, as Cinder's does. @throws NotFoundError when the marker is unknown */
export async function listMessages(
  database: Database,
  principal: Principal,
  query: { filter: MessageFilter; page: Page<MessageSortKey> },
): Promise<MessageRow[]> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getMessage(database, principal, page.marker);
  if (filter.resourceUuid !== undefined && !isUuid(filter.resourceUuid)) return [];
  return database.message.findMany({
    where: { ...filter, ...visibleTo(principal) },
    orderBy: orderOf(page),
    ...windowOf(page),
  });
}

/** @throws NotFoundError for an unknown id or another project's */
export async function deleteMessage(database: Database, principal: Principal, id: string): Promise<void> {
  await getMessage(database, principal, id);
  await database.message.deleteMany({ where: { id } });
}

/** Until when a message is kept at least. */
export const keptUntil = (config: Config, row: MessageRow): Date =>
  new Date(row.createdAt.getTime() + config.message_ttl_seconds * 1000);

/** Removes messages older than `message_ttl_seconds`, one batch. @returns whether there may be more */
export async function forgetMessages(database: Database, config: Config): Promise<boolean> {
  const removed = await database.$executeRaw`
    WITH old AS (
      SELECT id FROM messages WHERE created_at < now() - ${config.message_ttl_seconds} * interval '1 second'
      ORDER BY created_at LIMIT ${forgottenAtOnce} FOR UPDATE SKIP LOCKED)
    DELETE FROM messages WHERE id IN (SELECT id FROM old)`;
  return removed === forgottenAtOnce;
}
