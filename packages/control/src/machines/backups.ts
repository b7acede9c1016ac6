import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma, type Transaction } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import { NotFoundError, RefusedError } from "../errors.ts";
import { needsSocket } from "../groups/instances.ts";
import type { Principal } from "../principal.ts";
import { backupBinary } from "../queue/services.ts";
import {
  addMachineBackup,
  beginningPhases,
  findCheckpoints,
  findMachineBackup,
  findMachineBackups,
  lockMachineBackup,
  type MachineBackupRow,
  type MachineCheckpointRow,
} from "../rows/machine-backups.ts";
import { move } from "../rows/move.ts";
import { lockVolume, type VolumeRow } from "../rows/volumes.ts";
import { formatIn, isOneFile } from "../volume-backends.ts";
import { nameOf } from "./disks.ts";
import {
  getMachine,
  knownId,
  listedMax,
  lockMachine,
  type MachineRow,
  refuseHeld,
  refusePreviewed,
} from "./machines.ts";

export interface NewMachineBackup {
  /** The client's own id for it; null: a new one. */
  id: string | null;
  description: string | null;
  /** Read only what has changed since then; null: everything. */
  fromCheckpointId: string | null;
  /** Fail rather than read a machine whose file systems are not frozen. */
  requireConsistency: boolean;
  /** `full`: all of this disk, whatever the checkpoint says. */
  disks: readonly { id: string; full: boolean }[];
}

/** The named disks of the project, locked, in the order of the request. @throws RefusedError that names those that there are not */
async function lockDisks(tx: Transaction, { projectId }: Principal, ids: readonly string[]): Promise<VolumeRow[]> {
  const known = ids.flatMap((id) => knownId(id) ?? []);
  const found = await tx.volume.findMany({ where: { projectId, id: { in: known } }, select: { id: true } });
  const isThere = (id: string): boolean => found.some((row) => row.id === knownId(id));
  const missing = ids.filter((id) => !isThere(id));
  if (missing.length > 0) {
    const disks = missing.join(", ");
    throw new RefusedError("disks-unknown", `Disks ${disks} do not exist.`, { disks });
  }
  const locked = new Map<string, VolumeRow>();
  for (const id of known.toSorted()) {
    const volume = await lockVolume(tx, id);
    if (volume) locked.set(id, volume);
  }
  return [...new Set(known)].flatMap((id) => locked.get(id) ?? []);
}

const names = (volumes: readonly VolumeRow[]): string => volumes.map(nameOf).join(", ");

/** @throws RefusedError for disks that the machine does not have, does not use, or whose bytes are being changed or not to be relied on */
function refuseDisks(config: Config, machine: MachineRow, volumes: readonly VolumeRow[]): void {
  const refuse = (rule: ConstructorParameters<typeof RefusedError>[0], bad: readonly VolumeRow[]): void => {
    if (bad.length === 0) return;
    const details = { disks: names(bad), disk: names(bad), machine: machine.instance.name };
    throw new RefusedError(rule, `Disks ${names(bad)} cannot be backed up: ${rule}.`, details);
  };
  const own = (volume: VolumeRow) => machine.disks.find(({ volumeId }) => volumeId === volume.id);
  refuse(
    "disks-not-attached",
    volumes.filter((volume) => own(volume) === undefined),
  );
  refuse(
    "disks-locked",
    volumes.filter(({ status }) => !status.startsWith("error") && !["available", "in-use"].includes(status)),
  );
  refuse(
    "disk-illegal",
    volumes.filter(({ status }) => status.startsWith("error")),
  );
  refuse(
    "disks-inactive",
    volumes.filter((volume) => own(volume)?.plugged === false),
  );
  refuse(
    "disks-not-backed-up",
    volumes.filter(({ backend }) => !isOneFile(config.volume_backends, backend)),
  );
}

/** @throws RefusedError unless the machine has that checkpoint, and it is valid */
async function checkpointOf(
  tx: Transaction,
  { instance }: MachineRow,
  id: string | null,
): Promise<MachineCheckpointRow | null> {
  if (id === null) return null;
  const all = await findCheckpoints(tx, { projectId: instance.projectId, instanceId: instance.id });
  const found = all.find((checkpoint) => checkpoint.id === knownId(id));
  if (!found) throw new RefusedError("checkpoint-unknown", `Checkpoint ${id} does not exist.`, { checkpoint: id });
  if (found.status === "created") return found;
  throw new RefusedError("checkpoint-invalid", `Checkpoint ${id} is invalid.`, { checkpoint: id });
}

/** Whoever speaks for the machine can be asked for its disks' bytes of a moment. @throws RefusedError */
function refusePower({ instance }: MachineRow): void {
  const { powerState, driver } = instance;
  if (!["ACTIVE", "SHUTOFF"].includes(powerState)) {
    throw new RefusedError("machine-locked", `Machine ${instance.id} is ${powerState}.`);
  }
  if (powerState === "ACTIVE" && !needsSocket(driver)) {
    throw new RefusedError("machine-unreachable", `Machine ${instance.id} runs, and cannot be reached.`);
  }
}

/**
 * A live worker that reaches all backends: one on a host that can transfer images from there, where there is such a one, and one that has
 * just given a sign of life rather than one that may have died a moment ago.
 */
async function workerFor(
  tx: Transaction,
  config: Config,
  backends: readonly string[],
): Promise<{ id: string; host: string } | null> {
  const needs = [...new Set(backends)].map((name) => `backend:${name}`);
  const downMs = config.worker.down_ms;
  const [worker] = await tx.$queryRaw<{ id: string; host: string }[]>`
    SELECT w.id, w.host FROM workers w
    WHERE ${isLiveWorker("w", downMs)} AND ${needs}::text[] <@ w.reaches AND NOT EXISTS (
      SELECT 1 FROM disabled_services d WHERE d.binary = ${backupBinary} AND d.host = w.host)
    ORDER BY EXISTS (SELECT 1 FROM image_servers s WHERE s.host = w.host AND ${isLiveWorker("s", downMs)}) DESC,
      ${isLiveWorker("w", 1.5 * config.worker.heartbeat_ms)} DESC,
      (SELECT count(*) FROM machine_backups b WHERE b.worker_id = w.id AND b.ended_at IS NULL), w.id LIMIT 1`;
  return worker ?? null;
}

/** Until when a process that holds a backup is believed to live. */
export const leaseUntil = (config: Config): Prisma.Sql =>
  Prisma.sql`now() + ${config.worker.lease_ms} * interval '1 millisecond'`;

/**
 * Begins a backup of a machine's disks as of one moment, and locks machine and disks until it ends. A worker opens them; the phase tells when
 * they can be read. Of two requests at once one is refused.
 *
 * @throws NotFoundError for the machine; RefusedError, in oVirt's order (docs/ovirt.md)
 */
export function requestMachineBackup(
  database: Database,
  config: Config,
  principal: Principal,
  machineId: string,
  request: NewMachineBackup,
): Promise<MachineBackupRow> {
  return inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    const volumes = await lockDisks(
      tx,
      principal,
      request.disks.map(({ id }) => id),
    );
    refuseHeld(machine);
    refuseDisks(config, machine, volumes);
    const from = await checkpointOf(tx, machine, request.fromCheckpointId);
    refusePower(machine);
    refusePreviewed(machine);
    const id = request.id ?? randomUUID();
    if ((await tx.machineBackup.count({ where: { id } })) > 0) {
      throw new RefusedError("backup-id-taken", `Backup ${id} exists already.`, { backup: id });
    }
    const backends = volumes.map(({ backend }) => backend);
    const worker = await workerFor(tx, config, backends);
    if (worker === null) throw new RefusedError("no-backup-host", "No worker reaches all disks of the machine.");
    const disks = volumes.map((volume) => {
      const recorded = volume.tracksChanges && formatIn(config.volume_backends, volume.backend) === "cow";
      const full = request.disks.some((disk) => knownId(disk.id) === volume.id && disk.full);
      const was = from?.disks.some(({ volumeId }) => volumeId === volume.id) ?? false;
      return { volume, recorded, sinceId: recorded && was && !full ? (from?.id ?? null) : null };
    });
    const [{ until }] = await tx.$queryRaw<[{ until: Date }]>`SELECT ${leaseUntil(config)} AS until`;
    const { projectId, id: instanceId } = machine.instance;
    const backup = {
      id,
      projectId,
      userId: principal.userId,
      requestId: principal.requestId,
      instanceId,
      description: request.description,
      fromCheckpointId: from?.id ?? null,
      toCheckpointId: disks.some(({ recorded }) => recorded) ? randomUUID() : null,
      requireConsistency: request.requireConsistency,
      workerId: worker.id,
      workerHost: worker.host,
      leaseUntil: until,
    };
    await addMachineBackup(tx, backup, disks);
    return getMachineBackup(tx, principal, instanceId, id);
  });
}

/** Oldest first. @throws NotFoundError for the machine */
export async function listMachineBackups(
  database: Database,
  principal: Principal,
  machineId: string,
): Promise<MachineBackupRow[]> {
  const { instance } = await getMachine(database, principal, machineId);
  return findMachineBackups(database, { projectId: instance.projectId, instanceId: instance.id }, listedMax);
}

/** @throws NotFoundError for the machine, and for a backup that is not one of it */
export async function getMachineBackup(
  database: Database | Transaction,
  principal: Principal,
  machineId: string,
  id: string,
): Promise<MachineBackupRow> {
  const { instance } = await getMachine(database, principal, machineId);
  const known = knownId(id);
  const row = known === null ? null : await findMachineBackup(database, known);
  if (row === null || row.projectId !== instance.projectId || row.instanceId !== instance.id) {
    throw new NotFoundError("Machine backup", id);
  }
  return row;
}

/**
 * Its client has read what it wanted. One that is not ready yet is given up: it ends as failed. One that has ended stays as it is.
 *
 * @throws NotFoundError; RefusedError while a disk of it is being transferred
 */
export async function finalizeMachineBackup(
  database: Database,
  principal: Principal,
  machineId: string,
  id: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const seen = await getMachineBackup(tx, principal, machineId, id);
    const row = await lockMachineBackup(tx, seen.id);
    if (row === null || row.endedAt !== null || row.status === "finalizing") return;
    const transfers = await tx.imageTransfer.count({ where: { backupId: row.id, endedAt: null } });
    if (transfers > 0) throw new RefusedError("backup-has-transfer", `A disk of backup ${id} is being transferred.`);
    const abandoned = row.status !== "ready";
    const step = { from: [...beginningPhases, "ready"], to: "finalizing" } as const;
    await move(tx, "machineBackup", { id: row.id }, step, { abandoned });
  });
}
