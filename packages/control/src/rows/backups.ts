import { randomUUID } from "node:crypto";
import { isContainer } from "@tephra/format";
import { type Config, defaultRepository, repositoryIn } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Backup, Volume } from "../generated/client.ts";
import { lockForNewVolume } from "../groups/groups.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { startOperation } from "../queue/operations.ts";
import { encoderNeeds, needToRead, needToWrite } from "../queue/workers.ts";
import type { SnapshotRow } from "../volumes/snapshots.ts";
import { getSnapshot } from "../volumes/snapshots.ts";
import {
  addRestoreVolume,
  findVolume,
  GiB,
  getVolume,
  moveVolume,
  type NewVolume,
  type VolumeRow,
} from "../volumes/volumes.ts";
import { reserveQuota } from "./quotas.ts";

/** A live backup with what a view derives from other rows. */
export type BackupRow = Backup & { hasDependents: boolean };

/** Whether live incrementals build on each, in whatever project they are. */
export async function withDependents(database: Database | Transaction, rows: Backup[]): Promise<BackupRow[]> {
  const parents = await database.backup.findMany({
    where: { parentId: { in: rows.map((r) => r.id) }, deletedAt: null },
    select: { parentId: true },
    distinct: ["parentId"],
  });
  const ids = new Set(parents.map((p) => p.parentId));
  return rows.map((r) => ({ ...r, hasDependents: ids.has(r.id) }));
}

/** Live incrementals that build on a backup, of whatever project and status. */
export async function countDependents(database: Database | Transaction, id: string): Promise<number> {
  return database.backup.count({ where: { parentId: id, deletedAt: null } });
}

/** Locks a backup row and reads it; after its volume, and after its parent, in the lock order. Tombstones are not found. */
export async function lockBackup(tx: Transaction, id: string): Promise<Backup | null> {
  await tx.$queryRaw`SELECT id FROM backups WHERE id = ${id}::uuid FOR UPDATE`;
  return tx.backup.findFirst({ where: { id, deletedAt: null } });
}

/** @throws NotFoundError for an unknown id or another project's */
export async function getBackup(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<BackupRow> {
  const row = isUuid(id)
    ? await database.backup.findFirst({ where: { id, deletedAt: null, ...visibleTo(principal) } })
    : null;
  const [backup] = row ? await withDependents(database, [row]) : [];
  if (!backup) throw new NotFoundError("Backup", id);
  return backup;
}

export interface BackupChange {
  name?: string | null;
  description?: string | null;
  /** The whole set. */
  metadata?: Record<string, string>;
}

/** Changes what a user may say about a backup, in whatever status it is. @throws NotFoundError */
export async function updateBackup(
  database: Database,
  principal: Principal,
  id: string,
  change: BackupChange,
): Promise<BackupRow> {
  const seen = await getBackup(database, principal, id);
  if (Object.keys(change).length === 0) return seen;
  const { count } = await database.backup.updateMany({
    where: { id, deletedAt: null },
    data: { ...change, updatedAt: new Date() },
  });
  if (count === 0) throw new NotFoundError("Backup", id);
  return { ...seen, ...change };
}

export interface NewBackup {
  volumeId: string;
  snapshotId: string | null;
  name: string | null;
  description: string | null;
  container: string | null;
  incremental: boolean;
  force: boolean;
  metadata: Record<string, string>;
  availabilityZone: string | null;
}

/** @throws InvalidError */
function checkContainer(container: string | null): void {
  if (container === null || container === "" || isContainer(container)) return;
  throw new InvalidError("input", `Container ${JSON.stringify(container)} is no plain name beneath the repository.`);
}

async function checkSnapshot(tx: Transaction, principal: Principal, request: NewBackup): Promise<SnapshotRow | null> {
  if (request.snapshotId === null) return null;
  const snapshot = await getSnapshot(tx, principal, request.snapshotId);
  if (snapshot.volumeId !== request.volumeId) {
    throw new InvalidError(
      "volume",
      `Volume ${request.volumeId} does not match with snapshot.volume_id ${snapshot.volumeId}.`,
    );
  }
  if (snapshot.status !== "available") throw snapshotRefusal(snapshot.status);
  return snapshot;
}

const snapshotRefusal = (status: string) =>
  new InvalidError("snapshot", `Snapshot to be backed up must be available, but the current status is "${status}".`);

function volumeRefusal(status: string, force: boolean): InvalidError | null {
  if (status !== "available" && status !== "in-use") {
    return new InvalidError(
      "volume",
      `Volume to be backed up must be available or in-use, but the current status is "${status}".`,
    );
  }
  return status === "in-use" && !force
    ? new InvalidError("volume", "Backing up an in-use volume must use the force flag.")
    : null;
}

/**
 * The newest usable backup of the volume in the caller's project, locked (API spec 9.5): the highest data_timestamp among the
 * available ones, older than the snapshot where one is given; when none is older, the one that was made last. One that is damaged, or
 * builds on one that is, never counts.
 */
export async function chooseParent(
  tx: Transaction,
  projectId: string,
  volumeId: string,
  snapshot: SnapshotRow | null,
): Promise<Backup> {
  const before = snapshot?.createdAt ?? null;
  const rows = await tx.$queryRaw<{ id: string }[]>`
    WITH RECURSIVE own AS (
      SELECT * FROM backups WHERE volume_id = ${volumeId}::uuid AND project_id = ${projectId} AND deleted_at IS NULL
    ), spoilt AS (
      SELECT id FROM own WHERE damage IS NOT NULL
      UNION
      SELECT b.id FROM backups b JOIN spoilt ON b.parent_id = spoilt.id WHERE b.deleted_at IS NULL
    ), judged AS (
      SELECT own.*, status = 'available' AND NOT EXISTS (SELECT 1 FROM spoilt WHERE spoilt.id = own.id) AS usable FROM own
    ), aged AS (
      SELECT *, usable AND coalesce(data_timestamp < ${before}::timestamptz, ${before}::timestamptz IS NULL) AS older FROM judged
    )
    SELECT id FROM aged
    ORDER BY older DESC, usable DESC, CASE WHEN older THEN data_timestamp END DESC, created_at DESC LIMIT 1`;
  const parent = rows[0] ? await lockBackup(tx, rows[0].id) : null;
  if (parent?.status !== "available" || (await readDamage(tx, parent.id)).length > 0) {
    throw new InvalidError("backup", "No backups available to do an incremental backup.");
  }
  return parent;
}

/**
 * Where a backup goes (API spec 9.10): to a repository of the zone that was asked for, or nowhere. Else to its parent's, to one of
 * the volume's zone, or to the default one. `reach` is what a worker must reach for it: for a zone without a repository nobody does,
 * and the backup fails as it does in a zone without a backup service.
 */
export function placeBackup(
  config: Config,
  wanted: string | null,
  { parent, volume }: { parent: Backup | null; volume: Pick<VolumeRow, "availabilityZone"> },
): { repository: string; reach: string } {
  const kept = config.repositories.find((repository) => repository.name === parent?.repository);
  const inParents = kept && (wanted === null || kept.zone === wanted) ? kept : null;
  const found = inParents ?? repositoryIn(config, wanted ?? volume.availabilityZone);
  const { name } = found ?? defaultRepository(config);
  return { repository: name, reach: found || wanted === null ? needToWrite(name) : `zone:${wanted}` };
}

/**
 * Accepts a backup: parent chosen and locked, quota taken, volume or snapshot `backing-up`, row `creating`, operation and task,
 * in one transaction. Checks in Cinder's order (API spec 6.3).
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestBackup(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewBackup,
): Promise<BackupRow> {
  checkContainer(request.container);
  return inTransaction(database, async (tx) => {
    const volume = await findVolume(tx, principal, request.volumeId);
    const snapshot = await checkSnapshot(tx, principal, request);
    const refused = snapshot ? null : volumeRefusal(volume.status, request.force);
    if (refused) throw refused;
    await reserveQuota(tx, config, principal.projectId, { backups: 1, backup_gigabytes: volume.sizeGib });
    await freezeStatus(tx, volume, snapshot, request.force);
    const parent = request.incremental ? await chooseParent(tx, principal.projectId, volume.id, snapshot) : null;
    const place = placeBackup(config, request.availabilityZone, { parent, volume });
    const createdAt = new Date();
    const row = await tx.backup.create({
      data: {
        id: randomUUID(),
        projectId: principal.projectId,
        userId: principal.userId,
        volumeId: volume.id,
        snapshotId: snapshot?.id ?? null,
        parentId: parent?.id ?? null,
        name: request.name,
        description: request.description,
        status: "creating",
        sizeGib: volume.sizeGib,
        repository: place.repository,
        container: request.container,
        availabilityZone: request.availabilityZone,
        metadata: request.metadata,
        dataTimestamp: snapshot?.createdAt ?? createdAt,
        createdAt,
        updatedAt: snapshot ? null : createdAt,
      },
    });
    await startBackup(tx, config, principal, { row, parent, volume, snapshot, reach: place.reach, parentId: null });
    return { ...row, hasDependents: false };
  });
}

/** The operation that makes the backup of `row`, a part of the operation `parentId` where there is one. */
export async function startBackup(
  tx: Transaction,
  config: Config,
  principal: Pick<Principal, "userId" | "requestId">,
  backup: {
    row: Backup;
    parent: Backup | null;
    volume: Volume;
    snapshot: SnapshotRow | null;
    reach: string;
    parentId: string | null;
  },
): Promise<void> {
  const { row, parent, volume, snapshot, reach, parentId } = backup;
  const encoder = config.repositories.find(({ name }) => name === row.repository)?.zlib_encoder;
  await startOperation(tx, principal, {
    kind: "backup-create",
    projectId: row.projectId,
    backupId: row.id,
    volumeId: volume.id,
    snapshotId: snapshot?.id ?? null,
    parentId,
    bytesTotal: snapshot?.sizeBytes ?? volume.sizeBytes,
    task: {
      kind: "plan-backup",
      needs: [reach, ...parentReach(row, parent), `backend:${volume.backend}`, ...encoderNeeds(encoder)],
    },
  });
}

/** A backup on top of one in another repository reads that one, too. */
const parentReach = (row: Backup, parent: Backup | null): string[] =>
  parent === null || parent.repository === row.repository ? [] : [needToRead(parent.repository)];

async function freezeStatus(
  tx: Transaction,
  volume: { id: string },
  snapshot: SnapshotRow | null,
  force: boolean,
): Promise<void> {
  if (!snapshot) {
    const from = force ? ["available", "in-use"] : ["available"];
    await moveVolume(tx, volume.id, from, "backing-up", (status) => {
      return (
        volumeRefusal(status, force) ?? new InvalidError("volume", `Volume ${volume.id} changed its status meanwhile.`)
      );
    });
    return;
  }
  const moved = await tx.snapshot.updateMany({
    where: { id: snapshot.id, status: "available" },
    data: { status: "backing-up", updatedAt: new Date() },
  });
  if (moved.count !== 1) throw snapshotRefusal("backing-up");
}

export interface AcceptedRestore {
  backupId: string;
  volumeId: string;
  volumeName: string | null;
}

/**
 * Accepts a restore to `volumeId`, or to a new volume as long as the source was (API spec 6.6).
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestRestore(
  database: Database,
  config: Config,
  principal: Principal,
  request: { backupId: string; volumeId: string | null; name: string | null },
): Promise<AcceptedRestore> {
  return inTransaction(database, async (tx) => {
    const seen = await getBackup(tx, principal, request.backupId);
    if (seen.status !== "available") throw new InvalidError("backup", "Backup status must be available");
    const volume = request.volumeId === null ? null : await claimTarget(tx, principal, seen, request.volumeId);
    if (!volume) await reserveQuota(tx, config, principal.projectId, { volumes: 1, gigabytes: seen.sizeGib });
    const target =
      volume ??
      (await addRestoreVolume(tx, config, principal, {
        name: request.name ?? `restore_backup_${seen.id}`,
        description: "auto-created_from_restore_from_backup",
        metadata: {},
        status: "restoring-backup",
        sizeGib: seen.sizeGib,
        sizeBytes: seen.volumeBytes ?? 0n,
      }));
    await startRestore(tx, principal, { backupId: seen.id, target, newVolume: volume === null });
    return { backupId: seen.id, volumeId: target.id, volumeName: target.name };
  });
}

/**
 * A new volume with a backup's bytes, `creating` until they are there (API spec 7.2).
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestVolumeFromBackup(
  database: Database,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number | null; backupId: string },
): Promise<VolumeRow> {
  return inTransaction(database, async (tx) => {
    const backup = await getBackup(tx, principal, volume.backupId);
    if (backup.status !== "available") {
      throw new InvalidError("backup", "Originating backup status must be one of 'available' values");
    }
    const sizeGib = volume.sizeGib ?? backup.sizeGib;
    if (sizeGib < backup.sizeGib) {
      const text = `Volume size ${sizeGib}GB cannot be smaller than the backup size ${backup.sizeGib}GB. It must be >= backup size.`;
      throw new InvalidError("input", text);
    }
    await reserveQuota(tx, config, principal.projectId, { volumes: 1, gigabytes: sizeGib });
    if (volume.groupId) await lockForNewVolume(tx, principal, volume.groupId);
    // A volume of odd length comes back as long as it was; only one that shall be larger is as long as its size says.
    const sizeBytes = sizeGib > backup.sizeGib ? BigInt(sizeGib) * BigInt(GiB) : (backup.volumeBytes ?? 0n);
    const target = await addRestoreVolume(tx, config, principal, { ...volume, status: "creating", sizeGib, sizeBytes });
    await startRestore(tx, principal, { backupId: backup.id, target, newVolume: true });
    return target;
  });
}

/**
 * The backup becomes `restoring`, with the operation that fills `target`. As a part of the operation `parentId` it leaves the private
 * file for that one to publish.
 *
 * @throws InvalidError unless it is available
 */
export async function startRestore(
  tx: Transaction,
  principal: Principal,
  restore: { backupId: string; target: Volume; newVolume: boolean; parentId?: string },
): Promise<void> {
  const { target, newVolume, parentId = null } = restore;
  const backup = await lockBackup(tx, restore.backupId);
  if (backup?.status !== "available") throw new InvalidError("backup", "Backup status must be available");
  await tx.backup.update({
    where: { id: backup.id },
    data: { status: "restoring", restoreVolumeId: target.id, updatedAt: new Date() },
  });
  const repositories = await chainRepositories(tx, backup.id);
  await startOperation(tx, principal, {
    kind: "backup-restore",
    projectId: backup.projectId,
    backupId: backup.id,
    volumeId: target.id,
    parentId,
    bytesTotal: backup.volumeBytes ?? 0n,
    input: { newVolume },
    task: {
      kind: "plan-restore",
      needs: [...repositories.map(needToRead), `backend:${target.backend}`],
    },
  });
}

async function claimTarget(
  tx: Transaction,
  principal: Principal,
  backup: Backup,
  volumeId: string,
): Promise<VolumeRow> {
  const volume = await getVolume(tx, principal, volumeId);
  const notAvailable = () => new InvalidError("volume", "Volume to be restored to must be available");
  if (volume.status !== "available") throw notAvailable();
  if (volume.sizeGib < backup.sizeGib) {
    throw new InvalidError(
      "volume",
      `volume size ${volume.sizeGib} is too small to restore backup of size ${backup.sizeGib}.`,
    );
  }
  if (backup.volumeBytes !== null && volume.sizeBytes < backup.volumeBytes) {
    const text = `volume of ${volume.sizeBytes} bytes is too small to restore backup of ${backup.volumeBytes} bytes.`;
    throw new InvalidError("volume", text);
  }
  await moveVolume(tx, volume.id, ["available"], "restoring-backup", notAvailable);
  return volume;
}

export interface ChainLink {
  id: string;
  projectId: string;
  repository: string;
  container: string | null;
  serviceMetadata: string | null;
  parentId: string | null;
}

/** The backup and its ancestors, newest first, as far as their rows are live. A cycle (an import can forge one) ends the walk. */
export async function readChain(database: Database | Transaction, backupId: string): Promise<ChainLink[]> {
  return database.$queryRaw<ChainLink[]>`
    WITH RECURSIVE chain AS (
      SELECT b.*, 0 AS depth FROM backups b WHERE b.id = ${backupId}::uuid AND b.deleted_at IS NULL
      UNION ALL
      SELECT b.*, c.depth + 1 FROM backups b JOIN chain c ON b.id = c.parent_id WHERE b.deleted_at IS NULL
    ) CYCLE id SET looped USING walked
    SELECT id, project_id AS "projectId", repository, container, service_metadata AS "serviceMetadata", parent_id AS "parentId"
    FROM chain WHERE NOT looped ORDER BY depth`;
}

/** Where one member of a chain is stored. */
export interface StoredLink {
  backupId: string;
  repository: string;
  container: string;
  prefix: string;
}

/** A backup with all that it builds on, newest first. @throws NotFoundError when a member is gone */
export async function wholeChain(database: Database, backupId: string): Promise<StoredLink[]> {
  const links = await readChain(database, backupId);
  const bottom = links.at(-1);
  if (bottom?.parentId !== null) throw new NotFoundError("Backup", bottom?.parentId ?? backupId);
  return links.map(({ id, repository, container, serviceMetadata }) => {
    if (!container || !serviceMetadata) throw new NotFoundError("Backup", id);
    return { backupId: id, repository, container, prefix: serviceMetadata };
  });
}

/** What was found damaged: `backupId` is the member of the chain that it belongs to. */
export interface Damage {
  backupId: string;
  object: string;
  reason: string;
}

/** Marks every row of the objects that are damaged: no parent is chosen on them any more. */
export async function markDamage(tx: Transaction, { backupId, object, reason }: Damage): Promise<void> {
  const row = await tx.backup.findUnique({ where: { id: backupId } });
  if (row === null) return;
  const { repository, container, serviceMetadata } = row;
  await tx.backup.updateMany({
    where: { repository, container, serviceMetadata, deletedAt: null },
    data: { damage: `${object}: ${reason}` },
  });
}

/** Members of a backup's chain, itself included, that are marked as damaged. */
export async function readDamage(
  database: Database | Transaction,
  backupId: string,
): Promise<{ id: string; damage: string }[]> {
  const ids = (await readChain(database, backupId)).map((link) => link.id);
  const rows = await database.backup.findMany({
    where: { id: { in: ids }, damage: { not: null }, deletedAt: null },
    select: { id: true, damage: true },
  });
  return rows.map(({ id, damage }) => ({ id, damage: damage ?? "" }));
}

async function chainRepositories(tx: Transaction, backupId: string): Promise<string[]> {
  const chain = await readChain(tx, backupId);
  return [...new Set(chain.map((c) => c.repository))].sort();
}
