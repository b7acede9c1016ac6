import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma } from "../db/database.ts";
import { forgottenAtOnce } from "../db/listing.ts";
import { isLiveWorker } from "../db/live.ts";
import { isIn, lockImageTransfer, pausedPhases, servedPhases, withoutTicket } from "../rows/image-transfers.ts";
import { move } from "../rows/move.ts";
import { endImageTransfer } from "./serve.ts";
import { imageServerFor } from "./servers.ts";

/** Maximum number of transfers that one pass looks after. */
const batch = 100;

interface Abandoned {
  id: string;
  volumeId: string;
  /** Whether its process is gone for longer than any other would take to succeed it. */
  long: boolean;
}

/** Transfers that nobody serves any more. A paused one waits for its client. */
const abandonedOnes = (database: Database, config: Config): Promise<Abandoned[]> => database.$queryRaw<Abandoned[]>`
  SELECT t.id, t.volume_id AS "volumeId",
    coalesce(s.heartbeat_at, t.updated_at, t.created_at) < now() - ${config.worker.down_ms + config.tasks.unplaced_timeout_ms}
      * interval '1 millisecond' AS long
  FROM image_transfers t LEFT JOIN image_servers s ON s.id = t.server_id
  WHERE t.ended_at IS NULL AND t.status NOT IN (${Prisma.join([...pausedPhases])})
    AND (s.id IS NULL OR NOT ${isLiveWorker("s", config.worker.down_ms)})
  LIMIT ${batch}`;

const gone = "The process that served it is gone.";

/** Downloads fail; uploads wait until they are resumed; what was only to be cleaned up or finished is. */
async function releaseOne(database: Database, config: Config, { id, volumeId, long }: Abandoned): Promise<void> {
  await inTransaction(database, async (tx) => {
    const row = await lockImageTransfer(tx, id);
    if (row === null || row.direction === "download") return;
    if (isIn(row, servedPhases)) {
      const columns = { ...withoutTicket, failReason: gone };
      await move(tx, "imageTransfer", { id }, { from: servedPhases, to: "paused_system" }, columns);
    } else if (row.status === "finalizing_success") {
      const { backend, serverHost: host } = row;
      const server = await imageServerFor(tx, config, { backend }, { host });
      const place = server && { serverId: server.id, serverHost: server.host };
      if (place !== null) await tx.imageTransfer.update({ where: { id }, data: place });
    }
  });
  const which = { id, volumeId, claim: null };
  const row = await database.imageTransfer.findUnique({ where: { id } });
  if (row?.direction === "download" && row.status === "finalizing_success") {
    await endImageTransfer(database, which, { phase: "finished_success" });
  } else if (row?.direction === "download" || (long && row?.status === "finalizing_success")) {
    await endImageTransfer(database, which, { phase: "finished_failure", reason: gone });
  }
  await endImageTransfer(database, which, { phase: "finished_cleanup", reason: row?.failReason ?? gone });
}

/**
 * Transfers whose volume or snapshot is not theirs any more: an admin has set its status, or deleted it by force. A transfer of a backup has
 * none of its own.
 */
const expelledOnes = (database: Database): Promise<{ id: string; volumeId: string }[]> => database.$queryRaw`
  SELECT t.id, t.volume_id AS "volumeId" FROM image_transfers t
    LEFT JOIN volumes v ON v.id = t.volume_id LEFT JOIN snapshots s ON s.id = t.snapshot_id
  WHERE t.ended_at IS NULL AND t.backup_id IS NULL AND t.stored_backup_id IS NULL
    AND CASE WHEN t.snapshot_id IS NULL THEN v.id IS NULL OR v.status NOT IN ('uploading', 'downloading')
      ELSE s.id IS NULL OR s.status <> 'backing-up' END LIMIT ${batch}`;

/** Paused for so long that nobody can be expected to come back. */
async function cancelForgotten(database: Database, config: Config): Promise<void> {
  const hours = config.image_transfers?.paused_hours ?? 24;
  const before = await database.$queryRaw<{ id: string }[]>`
    SELECT id FROM image_transfers WHERE ended_at IS NULL AND status IN (${Prisma.join([...pausedPhases])})
      AND coalesce(updated_at, created_at) < now() - ${hours}::float8 * interval '1 hour' LIMIT ${batch}`;
  for (const { id } of before) {
    await inTransaction(database, async (tx) => {
      const columns = { ...withoutTicket, failReason: "It was paused for too long." };
      await move(tx, "imageTransfer", { id }, { from: pausedPhases, to: "cancelled_system" }, columns);
    });
  }
}

/** One pass: no volume stays locked by a transfer that nobody serves. @returns how many were looked after */
export async function releaseImageTransfers(database: Database, config: Config): Promise<number> {
  await cancelForgotten(database, config);
  const expelled = await expelledOnes(database);
  for (const { id, volumeId } of expelled) {
    const reason = "The status of what was transferred was set by an administrator.";
    const which = { id, volumeId, claim: null };
    await endImageTransfer(database, which, { phase: "finished_failure", reason });
    await endImageTransfer(database, which, { phase: "finished_cleanup", reason });
  }
  const abandoned = await abandonedOnes(database, config);
  for (const one of abandoned) await releaseOne(database, config, one);
  return expelled.length + abandoned.length;
}

/** Removes transfers a while after their end, and registrations that nobody renews. @returns whether there may be more */
export async function forgetImageTransfers(database: Database, config: Config): Promise<boolean> {
  const minutes = config.image_transfers?.kept_minutes ?? 60;
  const removed = await database.$executeRaw`
    WITH old AS (
      SELECT id FROM image_transfers WHERE ended_at < now() - ${minutes}::float8 * interval '1 minute'
      ORDER BY ended_at LIMIT ${forgottenAtOnce} FOR UPDATE SKIP LOCKED)
    DELETE FROM image_transfers WHERE id IN (SELECT id FROM old)`;
  await database.$executeRaw`
    DELETE FROM image_servers s WHERE heartbeat_at < now() - interval '1 hour'
      AND NOT EXISTS (SELECT 1 FROM image_transfers t WHERE t.server_id = s.id AND t.ended_at IS NULL)`;
  return removed === forgottenAtOnce;
}
