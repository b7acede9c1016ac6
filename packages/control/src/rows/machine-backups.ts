import type { Database, Transaction } from "../db/database.ts";
import { lockRow } from "../db/lock-row.ts";
import type {
  MachineBackup,
  MachineBackupDisk,
  MachineCheckpoint,
  MachineCheckpointDisk,
  Prisma,
} from "../generated/client.ts";
import type { MachineBackupPhase } from "../states.ts";
import { move } from "./move.ts";
import type { VolumeRow } from "./volumes.ts";

/** In the order in which the request named the disks. */
export type MachineBackupRow = MachineBackup & { disks: MachineBackupDisk[] };
export type MachineCheckpointRow = MachineCheckpoint & { disks: MachineCheckpointDisk[] };

const withDisks = { disks: { orderBy: { position: "asc" } } } as const;

/** Phases in which a backup can still become one that can be read. */
export const beginningPhases = ["initializing", "starting"] as const satisfies MachineBackupPhase[];
export const livePhases = [...beginningPhases, "ready", "finalizing"] as const satisfies MachineBackupPhase[];

export const lockMachineBackup = (tx: Transaction, id: string): Promise<MachineBackup | null> =>
  lockRow(tx, "machineBackup", id);

export const findMachineBackup = (database: Database | Transaction, id: string): Promise<MachineBackupRow | null> =>
  database.machineBackup.findUnique({ where: { id }, include: withDisks });

/** Oldest first; of more than `take` the newest. */
export async function findMachineBackups(
  database: Database | Transaction,
  where: Prisma.MachineBackupWhereInput,
  take: number,
): Promise<MachineBackupRow[]> {
  const orderBy = [{ createdAt: "desc" as const }, { id: "desc" as const }];
  return (await database.machineBackup.findMany({ where, include: withDisks, orderBy, take })).toReversed();
}

/** Oldest first. Those that are being removed are none any more. */
export const findCheckpoints = (
  database: Database | Transaction,
  machine: { projectId: string; instanceId: string },
): Promise<MachineCheckpointRow[]> =>
  database.machineCheckpoint.findMany({
    where: { ...machine, status: { not: "removing" } },
    include: withDisks,
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
  });

/** Adds a backup that a worker is about to begin, and locks its disks for it. The machine is locked, and no other backup of it is live. */
export async function addMachineBackup(
  tx: Transaction,
  backup: Omit<Prisma.MachineBackupUncheckedCreateInput, "status" | "disks">,
  disks: readonly { volume: VolumeRow; sinceId: string | null; recorded: boolean }[],
): Promise<void> {
  const rows = disks.map(({ volume, ...rest }, position) => ({ volumeId: volume.id, position, ...rest }));
  await tx.machineBackup.create({ data: { ...backup, status: "initializing", disks: { create: rows } } });
  for (const { volume } of disks) {
    const step = { from: ["available", "in-use"], to: "backing-up" } as const;
    const columns = { previousStatus: volume.status, machineBackupId: backup.id };
    await move(tx, "volume", { id: volume.id }, step, columns);
  }
}

/** A checkpoint of the moment of a backup, the newest of its machine. */
export async function addCheckpoint(tx: Transaction, backup: MachineBackupRow, createdAt: Date): Promise<void> {
  const { toCheckpointId: id, projectId, instanceId, description } = backup;
  if (id === null) return;
  const parent = (await findCheckpoints(tx, { projectId, instanceId })).at(-1);
  const disks = backup.disks.filter(({ recorded }) => recorded);
  const create = disks.map(({ volumeId }, position) => ({ volumeId, position }));
  const row = { id, projectId, instanceId, parentId: parent?.id ?? null, description, createdAt };
  await tx.machineCheckpoint.create({ data: { ...row, status: "created", disks: { create } } });
}

/** Nobody sees a checkpoint any more; those that follow it follow the one before it. What it is on the disks goes later. */
export async function retireCheckpoint(tx: Transaction, id: string): Promise<void> {
  const row = await tx.machineCheckpoint.findUnique({ where: { id } });
  if (row === null) return;
  await tx.machineCheckpoint.updateMany({ where: { parentId: id }, data: { parentId: row.parentId } });
  await move(tx, "machineCheckpoint", { id }, { from: ["created", "invalid"], to: "removing" }, { parentId: null });
}
