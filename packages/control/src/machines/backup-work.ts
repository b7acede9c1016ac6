import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma } from "../db/database.ts";
import { forgottenAtOnce } from "../db/listing.ts";
import { tellOvirtEvent } from "../events/ovirt-events.ts";
import { endImageTransfer } from "../image-transfers/serve.ts";
import type { Instance } from "../rows/groups.ts";
import {
  addCheckpoint,
  findMachineBackup,
  findMachineBackups,
  livePhases,
  lockMachineBackup,
  type MachineBackupRow,
  type MachineCheckpointRow,
  retireCheckpoint,
} from "../rows/machine-backups.ts";
import { move } from "../rows/move.ts";
import { releaseBackedUp } from "../rows/release.ts";
import { leaseUntil } from "./backups.ts";

/** What the processes that hold backups of machines do with them. */

/**
 * The backups that a worker holds, or is to begin; it is believed to live for another lease. Also what others have left behind on its host
 * and nobody else is removing.
 */
export async function backupsOf(
  database: Database,
  config: Config,
  { id: workerId, host }: { id: string; host: string },
): Promise<{ live: MachineBackupRow[]; leftovers: MachineBackupRow[] }> {
  const rows = await database.$queryRaw<{ id: string }[]>`
    UPDATE machine_backups SET lease_until = ${leaseUntil(config)}, worker_id = ${workerId}
    WHERE (ended_at IS NULL AND worker_id = ${workerId})
      OR (leftovers AND worker_host = ${host} AND ended_at IS NOT NULL AND (worker_id = ${workerId} OR lease_until < now()))
    RETURNING id`;
  if (rows.length === 0) return { live: [], leftovers: [] };
  const which = { id: { in: rows.map(({ id }) => id) }, workerId };
  const found = await findMachineBackups(database, which, rows.length);
  return {
    live: found.filter(({ endedAt }) => endedAt === null),
    leftovers: found.filter(({ endedAt, leftovers }) => endedAt !== null && leftovers),
  };
}

/** What a worker has to know to open a machine's disks. */
export interface BackedUpMachine {
  instance: Instance;
  /** Volume id → the name of its backend, of all that the backup or a checkpoint is of and that are there. */
  backends: Map<string, string>;
  /** Oldest first, those included that are to be removed from the disks. */
  checkpoints: MachineCheckpointRow[];
}

export async function machineOf(database: Database, backup: MachineBackupRow): Promise<BackedUpMachine | null> {
  const { projectId, instanceId } = backup;
  const [instance, checkpoints] = await Promise.all([
    database.instance.findUnique({ where: { projectId_id: { projectId, id: instanceId } } }),
    database.machineCheckpoint.findMany({
      where: { projectId, instanceId },
      include: { disks: { orderBy: { position: "asc" } } },
      orderBy: [{ createdAt: "asc" }, { id: "asc" }],
    }),
  ]);
  if (instance === null) return null;
  const ids = [backup, ...checkpoints].flatMap(({ disks }) => disks.map(({ volumeId }) => volumeId));
  const volumes = await database.volume.findMany({ where: { id: { in: ids } }, select: { id: true, backend: true } });
  return { instance, backends: new Map(volumes.map(({ id, backend }) => [id, backend])), checkpoints };
}

/** Whether something is left of an earlier backup of the machine. */
export const hasLeftovers = async (database: Database, { projectId, instanceId }: MachineBackupRow): Promise<boolean> =>
  (await database.machineBackup.count({ where: { projectId, instanceId, leftovers: true } })) > 0;

/** Its worker begins. @returns false when it has ended, or was given up, meanwhile */
export function beginMachineBackup(database: Database, { id, workerId }: MachineBackupRow): Promise<boolean> {
  return inTransaction(database, async (tx) => {
    return (await move(tx, "machineBackup", { id, workerId }, { from: "initializing", to: "starting" })) === 1;
  });
}

/** The process that has the disks open, which others must end when the worker is gone. */
export async function noteDaemon(
  database: Database,
  { id, workerId }: MachineBackupRow,
  { pid, startTicks, folder }: { pid: number; startTicks: number; folder: string },
): Promise<void> {
  const data = { daemonPid: pid, daemonStartTicks: BigInt(startTicks), daemonFolder: folder };
  await database.machineBackup.updateMany({ where: { id, workerId, endedAt: null }, data });
}

export interface ReadyBackup {
  takenAt: Date;
  consistency: string;
  frozenMs: number | null;
  exports: readonly { diskId: string; socketPath: string; name: string; sizeBytes: number; changes: string | null }[];
  /** Checkpoints that went since there were too many. */
  expired: readonly string[];
}

/** It can be read. @returns false when it has ended, or was given up, meanwhile */
export function readyMachineBackup(
  database: Database,
  { id, workerId }: MachineBackupRow,
  ready: ReadyBackup,
): Promise<boolean> {
  return inTransaction(database, async (tx) => {
    const { takenAt, consistency, frozenMs } = ready;
    const columns = { takenAt, consistency, frozenMs };
    const moved = await move(tx, "machineBackup", { id, workerId }, { from: "starting", to: "ready" }, columns);
    const row = moved === 1 ? await findMachineBackup(tx, id) : null;
    if (row === null) return false;
    for (const { diskId: volumeId, socketPath, name, sizeBytes, changes } of ready.exports) {
      const place = { exportSocket: socketPath, exportName: name, sizeBytes: BigInt(sizeBytes), changes };
      await tx.machineBackupDisk.update({ where: { backupId_volumeId: { backupId: id, volumeId } }, data: place });
    }
    const machine = await tx.instance.findFirst({ where: { projectId: row.projectId, id: row.instanceId } });
    for (const checkpoint of ready.expired) {
      await retireCheckpoint(tx, checkpoint);
      const details = { checkpoint, machine: machine?.name ?? row.instanceId };
      await tellOvirtEvent(tx, row, { kind: "checkpoint-expired", instanceId: row.instanceId, details });
    }
    await tx.machineCheckpoint.deleteMany({ where: { id: { in: [...ready.expired] }, status: "removing" } });
    await addCheckpoint(tx, row, takenAt);
    return true;
  });
}

/** Checkpoints that the disks have lost: a backup from one of them needs everything. */
export async function invalidateCheckpoints(database: Database, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await inTransaction(database, async (tx) => {
    await move(tx, "machineCheckpoint", { id: { in: [...ids] } }, { from: "created", to: "invalid" });
  });
}

/** Checkpoints that were to be removed, and are. */
export async function forgetCheckpoints(database: Database, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await database.machineCheckpoint.deleteMany({ where: { id: { in: [...ids] }, status: "removing" } });
}

/** How a backup ends. `leftovers`: something may be left that a worker has to remove; `lost`: with it all checkpoints of the machine. */
export type MachineBackupEnd =
  | { phase: "succeeded" }
  | { phase: "failed"; reason: string; leftovers: boolean; lost: boolean };

const reasonMax = 1_000;

/**
 * Ends a backup, and unlocks its machine and disks. The checkpoint of one that failed goes with it: nobody has what was read.
 *
 * @param workerId that holds it; null: whoever does
 * @returns whether it ended now
 */
export async function endMachineBackup(
  database: Database,
  { id, workerId }: { id: string; workerId: string | null },
  end: MachineBackupEnd,
): Promise<boolean> {
  const ended = await inTransaction(database, async (tx) => {
    const row = await lockMachineBackup(tx, id);
    if (row === null || row.endedAt !== null || (workerId !== null && row.workerId !== workerId)) return false;
    const [{ now }] = await tx.$queryRaw<[{ now: Date }]>`SELECT now()`;
    if (end.phase === "succeeded") {
      const moved = await move(
        tx,
        "machineBackup",
        { id },
        { from: "finalizing", to: "succeeded" },
        { endedAt: now, leftovers: false },
      );
      if (moved === 0) return false;
    } else {
      const columns = { endedAt: now, leftovers: end.leftovers, failReason: end.reason.slice(0, reasonMax) };
      await move(tx, "machineBackup", { id }, { from: livePhases, to: "failed" }, columns);
      if (row.toCheckpointId !== null) await retireCheckpoint(tx, row.toCheckpointId);
      const { projectId, instanceId } = row;
      if (end.lost) {
        await move(tx, "machineCheckpoint", { projectId, instanceId }, { from: "created", to: "invalid" });
      }
    }
    await tx.machineBackupDisk.updateMany({ where: { backupId: id }, data: { exportSocket: null, exportName: null } });
    await releaseBackedUp(tx, id);
    return true;
  });
  if (ended) await endTransfersOf(database, id);
  return ended;
}

const backupGone = "The backup that it is of has ended.";

async function endTransfersOf(database: Database, backupId: string): Promise<void> {
  const live = await database.imageTransfer.findMany({ where: { backupId, endedAt: null } });
  for (const { id, volumeId } of live) {
    const which = { id, volumeId, claim: null };
    await endImageTransfer(database, which, { phase: "finished_failure", reason: backupGone });
    await endImageTransfer(database, which, { phase: "finished_cleanup", reason: backupGone });
  }
}

/** All that it has left is removed. */
export async function endLeftovers(database: Database, { id, workerId }: MachineBackupRow): Promise<void> {
  await database.machineBackup.updateMany({ where: { id, workerId }, data: { leftovers: false } });
}

/** Maximum number of backups that one pass looks after. */
const batch = 100;

/** One pass: no machine stays locked by a backup that nobody holds any more. @returns how many ended */
export async function releaseMachineBackups(database: Database): Promise<number> {
  const dead = await database.$queryRaw<{ id: string }[]>`
    SELECT id FROM machine_backups WHERE ended_at IS NULL AND lease_until < now() LIMIT ${batch}`;
  const reason = "The worker that held it is gone.";
  for (const { id } of dead) {
    const end = { phase: "failed", reason, leftovers: true, lost: false } as const;
    await endMachineBackup(database, { id, workerId: null }, end);
  }
  const left = await database.$queryRaw<{ id: string }[]>`
    SELECT DISTINCT b.id FROM image_transfers t JOIN machine_backups b ON b.id = t.backup_id
    WHERE t.ended_at IS NULL AND b.ended_at IS NOT NULL LIMIT ${batch}`;
  for (const { id } of left) await endTransfersOf(database, id);
  return dead.length;
}

/** Removes backups a while after their end, and checkpoints of machines that are gone. @returns whether there may be more */
export async function forgetMachineBackups(database: Database, config: Config): Promise<boolean> {
  const hours = config.machine_backups.kept_hours;
  const removed = await database.$executeRaw`
    WITH old AS (
      SELECT id FROM machine_backups WHERE ended_at < now() - ${hours}::float8 * interval '1 hour' AND NOT leftovers
      ORDER BY ended_at LIMIT ${forgottenAtOnce} FOR UPDATE SKIP LOCKED)
    DELETE FROM machine_backups WHERE id IN (SELECT id FROM old)`;
  await database.$executeRaw(Prisma.sql`
    DELETE FROM machine_checkpoints c WHERE NOT EXISTS (
      SELECT 1 FROM instances i WHERE i.project_id = c.project_id AND i.id = c.instance_id)`);
  return removed === forgottenAtOnce;
}
