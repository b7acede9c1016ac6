import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { FilesUnreadableError, ImageTransferError, NotFoundError } from "../errors.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { getBackup } from "../rows/backups.ts";
import { type ImageTransferRow, servedPhases } from "../rows/image-transfers.ts";
import { getImageTransfer, type ImageTransfer, requestImageTransfer } from "./transfers.ts";

/** How long a transfer may take to open what it is of; then the caller asks again. */
const openMs = 25_000;
const pollMs = 50;
/** Seconds after the last look at its files until a backup or snapshot is closed again. */
const inactivitySeconds = 60;

export type FilesSubject = { backupId: string } | { snapshotId: string };

/**
 * Where the files of a backup, or of a snapshot, are read: an address of a server of images below which `partitions`, `list` and `content`
 * are (apps/transfer). It belongs to a download of it, one that is open already or a new one, which ends when nobody has looked for a minute.
 *
 * @throws NotFoundError, FilesUnreadableError; null: it is not open yet
 */
export async function openFiles(
  database: Database,
  config: Config,
  principal: Principal,
  subject: FilesSubject,
): Promise<string | null> {
  await requireSubject(database, principal, subject);
  for (const until = performance.now() + openMs; performance.now() < until; await sleep(pollMs)) {
    const live = (await findOpen(database, principal, subject)) ?? (await begin(database, config, principal, subject));
    if (live === null) continue;
    const { url } = await reach(database, config, principal, { id: live.id, until });
    if (url !== null) return url.replace(/\/images\/([^/]+)$/, "/files/$1");
  }
  return null;
}

async function requireSubject(database: Database, principal: Principal, subject: FilesSubject): Promise<void> {
  if ("backupId" in subject) return void (await getBackup(database, principal, subject.backupId));
  const { snapshotId: id } = subject;
  const seen = isUuid(id) ? await database.snapshot.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
  if (seen === null) throw new NotFoundError("Snapshot", id);
}

function findOpen(database: Database, principal: Principal, subject: FilesSubject): Promise<ImageTransferRow | null> {
  const what = "backupId" in subject ? { storedBackupId: subject.backupId } : { snapshotId: subject.snapshotId };
  return database.imageTransfer.findFirst({
    where: {
      ...what,
      ...visibleTo(principal),
      direction: "download",
      format: "raw",
      status: { in: [...servedPhases] },
    },
    orderBy: { createdAt: "desc" },
  });
}

/** Null: somebody else has just begun one. */
async function begin(
  database: Database,
  config: Config,
  principal: Principal,
  subject: FilesSubject,
): Promise<ImageTransfer | null> {
  try {
    return await requestImageTransfer(database, config, principal, {
      subject: "backupId" in subject ? { ...subject, volumeId: null } : subject,
      direction: "download",
      format: "raw",
      timeoutPolicy: "cancel",
      inactivityTimeout: inactivitySeconds,
      host: null,
    });
  } catch (error) {
    if (!(error instanceof ImageTransferError)) throw error;
    const what = "backupId" in subject ? `Backup ${subject.backupId}` : `Snapshot ${subject.snapshotId}`;
    const { problem, details } = error;
    const refuse = (why: string): FilesUnreadableError => new FilesUnreadableError(`${what} cannot be read: ${why}.`);
    if (problem === "no-server") throw refuse("no server of images can open it");
    if (problem === "backup-not-ready") throw refuse(`its status is ${details.phase}, or its chain is not whole`);
    if (problem === "disk-transferring") {
      if ((await findOpen(database, principal, subject)) !== null) return null;
      throw refuse("it is being transferred");
    }
    throw refuse("its status does not allow it");
  }
}

/** Settles when its client may begin, or will never. @throws FilesUnreadableError when it has failed */
async function reach(
  database: Database,
  config: Config,
  principal: Principal,
  { id, until }: { id: string; until: number },
): Promise<ImageTransfer> {
  for (;;) {
    const transfer = await getImageTransfer(database, config, principal, id);
    if (transfer.status === "finished_failure")
      throw new FilesUnreadableError(`It cannot be read: ${transfer.failReason ?? "its transfer failed"}`);
    const isOpening = transfer.status === "initializing" || transfer.status === "resuming";
    if (!isOpening || performance.now() > until) return transfer;
    await sleep(pollMs);
  }
}
