import type { Database } from "../db/database.ts";
import { NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { getVolume, type VolumeRow } from "../rows/volumes.ts";

export interface VolumeChange {
  name?: string | null;
  description?: string | null;
  /** Replaces the whole set. */
  metadata?: Record<string, string>;
  bootable?: boolean;
  tracksChanges?: boolean;
}

/** Changes a volume's user-editable fields, in any status. @throws NotFoundError */
export async function updateVolume(
  database: Database,
  principal: Principal,
  id: string,
  change: VolumeChange,
): Promise<VolumeRow> {
  const seen = await getVolume(database, principal, id);
  if (Object.keys(change).length === 0) return seen;
  const updatedAt = new Date();
  const { count } = await database.volume.updateMany({ where: { id }, data: { ...change, updatedAt } });
  if (count === 0) throw new NotFoundError("Volume", id);
  return { ...seen, ...change, updatedAt };
}
