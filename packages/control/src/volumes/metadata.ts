import { type Database, inTransaction } from "../db/database.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { getSnapshot } from "../rows/snapshots.ts";
import { getVolume, lockVolume } from "../rows/volumes.ts";

export type Metadata = Record<string, string>;
/** The current metadata → the new metadata. An error thrown by it rolls everything back. */
export type MetadataChange = (metadata: Readonly<Metadata>) => Metadata;

/**
 * Changes a volume's metadata, under its row's lock.
 *
 * @returns the complete new metadata
 * @throws NotFoundError; InvalidError while the volume is written to a file
 */
export async function changeVolumeMetadata(
  database: Database,
  principal: Principal,
  id: string,
  change: MetadataChange,
): Promise<Metadata> {
  return inTransaction(database, async (tx) => {
    const seen = await getVolume(tx, principal, id);
    const volume = (await lockVolume(tx, id)) ?? seen;
    if (volume.status === "uploading") {
      const text = "Updating volume metadata is not allowed for volumes in uploading status.";
      throw new InvalidError("volume", text);
    }
    const metadata = change(volume.metadata as Metadata);
    await tx.volume.updateMany({ where: { id }, data: { metadata, updatedAt: new Date() } });
    return metadata;
  });
}

/** As `changeVolumeMetadata`, for a snapshot in any status. @throws NotFoundError */
export async function changeSnapshotMetadata(
  database: Database,
  principal: Principal,
  id: string,
  change: MetadataChange,
): Promise<Metadata> {
  return inTransaction(database, async (tx) => {
    await getSnapshot(tx, principal, id);
    await tx.$queryRaw`SELECT id FROM snapshots WHERE id = ${id}::uuid FOR UPDATE`;
    const metadata = change((await getSnapshot(tx, principal, id)).metadata as Metadata);
    await tx.snapshot.update({ where: { id }, data: { metadata, updatedAt: new Date() } });
    return metadata;
  });
}
