import { transactionTime } from "../db/actor.ts";
import type { Prisma, Transaction } from "../db/database.ts";
import { type OriginOf, type Resource, type StatusOf, transitions } from "../states.ts";

/** Which rows of a resource; their statuses are said by `from`. */
interface Which {
  attachment: Omit<Prisma.AttachmentWhereInput, "status">;
  backup: Omit<Prisma.BackupWhereInput, "status">;
  group: Omit<Prisma.GroupWhereInput, "status">;
  groupSnapshot: Omit<Prisma.GroupSnapshotWhereInput, "status">;
  imageTransfer: Omit<Prisma.ImageTransferWhereInput, "status">;
  machineBackup: Omit<Prisma.MachineBackupWhereInput, "status">;
  machineCheckpoint: Omit<Prisma.MachineCheckpointWhereInput, "status">;
  snapshot: Omit<Prisma.SnapshotWhereInput, "status">;
  transfer: Omit<Prisma.TransferWhereInput, "status">;
  volume: Omit<Prisma.VolumeWhereInput, "status">;
}

/** Other columns that change together with the status. */
interface Columns {
  attachment: Omit<Prisma.AttachmentUncheckedUpdateManyInput, "status" | "updatedAt">;
  backup: Omit<Prisma.BackupUncheckedUpdateManyInput, "status" | "updatedAt">;
  group: Omit<Prisma.GroupUncheckedUpdateManyInput, "status" | "updatedAt">;
  groupSnapshot: Omit<Prisma.GroupSnapshotUncheckedUpdateManyInput, "status" | "updatedAt">;
  imageTransfer: Omit<Prisma.ImageTransferUncheckedUpdateManyInput, "status" | "updatedAt">;
  machineBackup: Omit<Prisma.MachineBackupUncheckedUpdateManyInput, "status" | "updatedAt">;
  machineCheckpoint: Omit<Prisma.MachineCheckpointUncheckedUpdateManyInput, "status" | "updatedAt">;
  snapshot: Omit<Prisma.SnapshotUncheckedUpdateManyInput, "status" | "updatedAt">;
  transfer: Omit<Prisma.TransferUncheckedUpdateManyInput, "status" | "updatedAt">;
  volume: Omit<Prisma.VolumeUncheckedUpdateManyInput, "status" | "updatedAt">;
}

/** A step that the table of the resource allows, from one status or from any of several. */
export interface Step<R extends Resource, To extends StatusOf<R>> {
  from: OriginOf<R, To> | readonly OriginOf<R, To>[];
  to: To;
}

/**
 * Moves the rows that are in one of the statuses `from` to `to`, in one statement. A volume remembers its previous status where that is
 * known without reading it: with a single origin.
 *
 * @returns the number of rows moved
 */
export function move<R extends Resource, const To extends StatusOf<R>>(
  tx: Transaction,
  resource: R,
  which: Which[R],
  step: Step<R, To>,
  columns?: Columns[R],
): Promise<number> {
  const from: readonly string[] = typeof step.from === "string" ? [step.from] : (step.from as readonly string[]);
  const [only] = from;
  const previous = resource === "volume" && from.length === 1 ? { previousStatus: only } : {};
  return write(tx, resource, { ...which, status: { in: [...from] } }, { ...previous, ...columns, status: step.to });
}

/**
 * As `move`, for a locked row whose status and target are known at run time only: the table is asked then.
 *
 * @returns whether the row was in one of `from`, and so is now in `to`
 */
export async function moveLocked<R extends Resource>(
  tx: Transaction,
  resource: R,
  row: { id: string; status: string },
  { from, to }: { from: readonly StatusOf<R>[]; to: StatusOf<R> },
): Promise<boolean> {
  const table: Readonly<Record<string, readonly string[]>> = transitions[resource];
  if (!(from as readonly string[]).includes(row.status) || table[row.status]?.includes(to) !== true) return false;
  const previous = resource === "volume" ? { previousStatus: row.status } : {};
  await write(tx, resource, { id: row.id }, { ...previous, status: to });
  return true;
}

/**
 * Sets a status that the table does not allow to follow, or may not: for an admin's reset, for a forced deletion, and for what has become
 * of the bytes already. The caller has locked the rows, or says why not.
 *
 * @returns the number of rows
 */
export function override<R extends Resource>(
  tx: Transaction,
  resource: R,
  which: Which[R],
  status: string,
  columns?: Columns[R],
): Promise<number> {
  return write(tx, resource, which, { ...columns, status });
}

/** Resources whose rows record when they were last changed: by the database's clock, as everything that is compared between hosts. */
const dated: Readonly<Record<Resource, boolean>> = {
  attachment: false,
  backup: true,
  group: true,
  groupSnapshot: true,
  imageTransfer: true,
  machineBackup: true,
  machineCheckpoint: true,
  snapshot: true,
  transfer: false,
  volume: true,
};

interface Writer {
  updateMany(change: { where: object; data: object }): Promise<{ count: number }>;
}

async function write(tx: Transaction, resource: Resource, where: object, columns: object): Promise<number> {
  const data = dated[resource] ? { ...columns, updatedAt: await transactionTime(tx) } : columns;
  const { count } = await (tx[resource] as unknown as Writer).updateMany({ where, data });
  return count;
}
