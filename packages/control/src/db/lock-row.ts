import type { Backup, ImageTransfer, MachineBackup, Operation, Snapshot, Volume } from "../generated/client.ts";
import { Prisma } from "../generated/client.ts";

interface Rows {
  backup: Backup;
  imageTransfer: ImageTransfer;
  machineBackup: MachineBackup;
  operation: Operation;
  snapshot: Snapshot;
  volume: Volume;
}

/** A list of columns under the names of their fields. A column is named as its field, in snake case (prisma/schema.prisma). */
const columnsOf = (fields: Readonly<Record<string, string>>): Prisma.Sql =>
  Prisma.raw(
    Object.keys(fields)
      .map((field) => `${field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)} AS "${field}"`)
      .join(", "),
  );

/** All of them, to select a Backup; an Operation; and a Volume. */
export const backupColumns = columnsOf(Prisma.BackupScalarFieldEnum);
export const operationColumns = columnsOf(Prisma.OperationScalarFieldEnum);
export const volumeColumns = columnsOf(Prisma.VolumeScalarFieldEnum);

const selects: Readonly<Record<keyof Rows, Prisma.Sql>> = {
  backup: Prisma.sql`SELECT ${backupColumns} FROM backups`,
  imageTransfer: Prisma.sql`SELECT ${columnsOf(Prisma.ImageTransferScalarFieldEnum)} FROM image_transfers`,
  machineBackup: Prisma.sql`SELECT ${columnsOf(Prisma.MachineBackupScalarFieldEnum)} FROM machine_backups`,
  operation: Prisma.sql`SELECT ${operationColumns} FROM operations`,
  snapshot: Prisma.sql`SELECT ${columnsOf(Prisma.SnapshotScalarFieldEnum)} FROM snapshots`,
  volume: Prisma.sql`SELECT ${volumeColumns} FROM volumes`,
};

/** Locks a row until the transaction ends and reads it as it is then, in one statement; null when there is none. */
export async function lockRow<Resource extends keyof Rows>(
  tx: Prisma.TransactionClient,
  resource: Resource,
  id: string,
): Promise<Rows[Resource] | null> {
  const rows = await tx.$queryRaw<Rows[Resource][]>`${selects[resource]} WHERE id = ${id}::uuid FOR UPDATE`;
  return rows[0] ?? null;
}
