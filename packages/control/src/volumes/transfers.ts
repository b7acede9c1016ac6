import { createHmac, randomBytes, randomUUID, timingSafeEqual } from "node:crypto";
import type { Config } from "../config.ts";
import { transactionTime } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { type Principal, projectOf, visibleTo } from "../principal.ts";
import { move } from "../rows/move.ts";
import { lockQuotas, releaseQuota, reserveQuota } from "../rows/quotas.ts";
import type { Snapshot } from "../rows/snapshots.ts";
import type { Transfer } from "../rows/volumes.ts";
import { addTransfer, lockVisible, lockVolume, moveVolume, type VolumeRow } from "../rows/volumes.ts";

export type TransferRow = Transfer;

/** @throws NotFoundError for an unknown id or another project's: whoever is to accept the volume gets the id and the key from its owner */
export async function getTransfer(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<TransferRow> {
  const row = isUuid(id) ? await database.transfer.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
  if (!row) throw new NotFoundError("Transfer", id);
  return row;
}

export type TransferSortKey = "id" | "createdAt" | "name" | "volumeId";

export interface TransferFilter {
  id?: string;
  name?: string;
  volumeId?: string;
  noSnapshots?: boolean;
  projectId?: string;
}

/** One page. @throws NotFoundError when the marker is unknown or another project's */
export async function listTransfers(
  database: Database,
  principal: Principal,
  query: { filter: TransferFilter; allProjects: boolean; page: Page<TransferSortKey> },
): Promise<TransferRow[]> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getTransfer(database, principal, page.marker);
  if ([filter.id, filter.volumeId].some((id) => id !== undefined && !isUuid(id))) return [];
  return database.transfer.findMany({
    where: { ...filter, ...projectOf(principal, query.allProjects) },
    orderBy: orderOf(page),
    ...windowOf(page),
  });
}

/** 128 random bits need no slow hash: they cannot be guessed. */
const keyBytes = 16;

const hashOf = (salt: string, key: string): string => createHmac("sha256", salt).update(key).digest("hex");

const isKey = ({ salt, keyHash }: Transfer, key: string): boolean =>
  timingSafeEqual(Buffer.from(hashOf(salt, key), "hex"), Buffer.from(keyHash, "hex"));

/** Snapshots of a group belong to the group, and a volume of a group to its project. @throws InvalidError */
function refuseGroups(volume: VolumeRow, snapshots: readonly Snapshot[]): void {
  if (volume.groupId !== null) throw new InvalidError("volume", `Volume ${volume.id} must not be part of a group.`);
  const grouped = snapshots.find((s) => s.groupSnapshotId !== null);
  if (grouped) throw new InvalidError("snapshot", `snapshot: ${grouped.id} must not be part of a group snapshot`);
}

/**
 * Offers a volume to whoever has the key, which is returned this once and stored only as a hash. The volume is `awaiting-transfer`
 * meanwhile.
 *
 * @throws InvalidError unless the volume and, if they are transferred with it, its snapshots are available; NotFoundError
 */
export async function createTransfer(
  database: Database,
  principal: Principal,
  request: { volumeId: string; name: string | null; noSnapshots: boolean },
): Promise<{ transfer: TransferRow; authKey: string }> {
  return inTransaction(database, async (tx) => {
    const { volumeId, name, noSnapshots } = request;
    const volume = await lockVisible(tx, principal, volumeId);
    if (volume.status !== "available") throw new InvalidError("volume", "status must be available");
    const snapshots = noSnapshots ? [] : await tx.snapshot.findMany({ where: { volumeId }, orderBy: { id: "asc" } });
    const busy = snapshots.find((s) => s.status !== "available");
    if (busy) throw new InvalidError("snapshot", `snapshot: ${busy.id} status must be available`);
    refuseGroups(volume, snapshots);
    await moveVolume(tx, volumeId, ["available"], "awaiting-transfer", () => {
      return new InvalidError("volume", "status must be available");
    });
    const [salt, authKey] = [randomBytes(keyBytes).toString("hex"), randomBytes(keyBytes).toString("hex")];
    const { projectId } = volume;
    const { userId } = principal;
    const offer = { id: randomUUID(), projectId, userId, volumeId, name, noSnapshots };
    const transfer = await addTransfer(tx, { ...offer, salt, keyHash: hashOf(salt, authKey) });
    return { transfer, authKey };
  });
}

/** Withdraws an offer: the volume is available again, unless its status has been changed. @throws NotFoundError */
export async function deleteTransfer(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { volumeId } = await getTransfer(tx, principal, id);
    await lockVolume(tx, volumeId);
    if ((await tx.transfer.deleteMany({ where: { id } })).count === 0) throw new NotFoundError("Transfer", id);
    await move(tx, "volume", { id: volumeId }, { from: "awaiting-transfer", to: "available" });
  });
}

/**
 * Accepts an offered volume, with its snapshots unless they stay behind. Ownership and the quotas of both projects change in one
 * transaction. Backups stay with the project that made them: they are the old project's copy.
 *
 * @throws InvalidError for a wrong key, or when the status of the volume or a snapshot has changed; QuotaExceededError; NotFoundError
 */
export async function acceptTransfer(
  database: Database,
  config: Config,
  principal: Principal,
  { id, authKey }: { id: string; authKey: string },
): Promise<TransferRow> {
  return inTransaction(database, async (tx) => {
    const seen = isUuid(id) ? await tx.transfer.findUnique({ where: { id }, include: { volume: true } }) : null;
    if (!seen) throw new NotFoundError("Transfer", id);
    if (!isKey(seen, authKey)) {
      throw new InvalidError("request", `Invalid auth key: Attempt to transfer ${id} with invalid auth key.`);
    }
    const { volumeId, noSnapshots } = seen;
    const offered = noSnapshots ? [] : await tx.snapshot.findMany({ where: { volumeId } });
    await lockQuotas(tx, [seen.volume.projectId, principal.projectId, ...offered.map((s) => s.projectId)]);
    const volume = await lockVolume(tx, volumeId);
    const transfer = await tx.transfer.findUnique({ where: { id } });
    if (!volume || !transfer) throw new NotFoundError("Transfer", id);
    if (volume.status !== "awaiting-transfer") {
      throw new InvalidError("volume", `Transfer ${id}: Volume id ${volumeId} expected in awaiting-transfer state.`);
    }
    const snapshots = noSnapshots ? [] : await tx.snapshot.findMany({ where: { volumeId }, orderBy: { id: "asc" } });
    refuseGroups(volume, snapshots);
    await moveQuotas(tx, config, principal.projectId, { volume, snapshots });
    const owner = { projectId: principal.projectId, userId: principal.userId };
    await move(tx, "volume", { id: volumeId }, { from: "awaiting-transfer", to: "available" }, owner);
    const moved = { ...owner, updatedAt: await transactionTime(tx) };
    for (const snapshot of snapshots) {
      const { count } = await tx.snapshot.updateMany({ where: { id: snapshot.id, status: "available" }, data: moved });
      if (count === 1) continue;
      const text = `Transfer ${id}: Snapshot ${snapshot.id} is not in the expected available state.`;
      throw new InvalidError("snapshot", text);
    }
    const destination = { destinationProjectId: principal.projectId };
    await move(tx, "transfer", { id }, { from: "pending", to: "accepted" }, destination);
    return tx.transfer.delete({ where: { id } });
  });
}

/** The new project must have room for all of it; the old ones get their quota back. The quotas are locked. @throws QuotaExceededError */
async function moveQuotas(
  tx: Transaction,
  config: Config,
  to: string,
  { volume, snapshots }: { volume: VolumeRow; snapshots: readonly Snapshot[] },
): Promise<void> {
  await reserveQuota(tx, config, to, { volumes: 1, gigabytes: volume.sizeGib });
  await releaseQuota(tx, volume.projectId, { volumes: 1, gigabytes: volume.sizeGib });
  if (snapshots.length === 0) return;
  const gigabytes = snapshots.reduce((sum, s) => sum + s.sizeGib, 0);
  await reserveQuota(tx, config, to, { snapshots: snapshots.length, gigabytes });
  for (const { projectId, sizeGib } of snapshots) {
    await releaseQuota(tx, projectId, { snapshots: 1, gigabytes: sizeGib });
  }
}
