import { randomUUID } from "node:crypto";
import { isContainer } from "@tephra/format";
import { type Config, defaultRepository, repositoryIn } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { type NewOperation, startOperation } from "../queue/operations.ts";
import { encoderNeeds, needToRead, needToWrite } from "../queue/workers.ts";
import { acceptBackup, acceptBackupAlone, type BackupToAccept, type NewBackupRow } from "../rows/accept-backup.ts";
import { type Backup, type BackupRow, lockBackup } from "../rows/backups.ts";
import { readDamage } from "../rows/chains.ts";
import { move } from "../rows/move.ts";
import { type QuotaAmounts, quotaReservation, reserveQuota } from "../rows/quotas.ts";
import { getSnapshot, type SnapshotRow } from "../rows/snapshots.ts";
import type { Volume } from "../rows/volumes.ts";
import { canProvision, findVolume, GiB, moveVolume, type VolumeRow } from "../rows/volumes.ts";

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
  /** The policy that has it made, and the repository that it names; absent: somebody asks for it. */
  policy?: { id: string; repository: string | null };
}

/** @throws InvalidError */
export function checkContainer(container: string | null): void {
  if (container === null || container === "" || isContainer(container)) return;
  throw new InvalidError("input", `Container ${JSON.stringify(container)} is no plain name beneath the repository.`);
}

async function checkSnapshot(
  database: Database | Transaction,
  principal: Principal,
  request: NewBackup,
): Promise<SnapshotRow | null> {
  if (request.snapshotId === null) return null;
  const snapshot = await getSnapshot(database, principal, request.snapshotId);
  if (snapshot.volumeId !== request.volumeId) {
    throw new InvalidError(
      "volume",
      `Volume ${request.volumeId} does not match with snapshot.volume_id ${snapshot.volumeId}.`,
    );
  }
  if (snapshot.status !== "available") throw snapshotRefusal(snapshot.status);
  return snapshot;
}

export const snapshotRefusal = (status: string) =>
  new InvalidError("snapshot", `Snapshot to be backed up must be available, but the current status is "${status}".`);

export function volumeRefusal(status: string, force: boolean): InvalidError | null {
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

const atRestRefusal = (status: string): InvalidError | null =>
  status === "available"
    ? null
    : new InvalidError("volume", `Volume to be backed up must be available, but the current status is "${status}".`);

/**
 * The newest usable backup of the volume in the caller's project, locked (cinder-api 6.3): the highest data_timestamp among the available
 * ones, older than the snapshot where one is given; when none is older, the one that was made last. One that is damaged, or builds on one
 * that is, never counts. A volume without a backup of its own builds on the one that it was restored from.
 */
export async function chooseParent(
  tx: Transaction,
  projectId: string,
  volumeId: string,
  snapshot: Pick<SnapshotRow, "createdAt" | "sizeBytes"> | null,
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
  const own = rows[0] ? await lockUsable(tx, rows[0].id) : null;
  const parent = own ?? (await lockRestoredFrom(tx, projectId, volumeId, snapshot));
  if (!parent) throw new InvalidError("backup", "No backups available to do an incremental backup.");
  return parent;
}

/** A backup that can be built on, locked; null for any other. */
async function lockUsable(tx: Transaction, id: string): Promise<Backup | null> {
  const parent = await lockBackup(tx, id);
  return parent?.status === "available" && (await readDamage(tx, parent.id)).length === 0 ? parent : null;
}

/**
 * The backup that the volume was last restored from, locked, where it can be built on. It must belong to the caller's project, as
 * everywhere; must not be shorter than what is to be backed up, since an incremental of a longer one is refused; and must have been
 * restored before the snapshot was taken, where there is one. It may be of another volume: a chain is followed by its parent links alone,
 * here and in Cinder, and anything written since then differs in its hashes.
 */
async function lockRestoredFrom(
  tx: Transaction,
  projectId: string,
  volumeId: string,
  snapshot: Pick<SnapshotRow, "createdAt" | "sizeBytes"> | null,
): Promise<Backup | null> {
  const [before, sizeBytes] = [snapshot?.createdAt ?? null, snapshot?.sizeBytes ?? null];
  const [source] = await tx.$queryRaw<{ id: string }[]>`
    SELECT b.id FROM volumes v JOIN backups b ON b.id = v.restored_from_id
    WHERE v.id = ${volumeId}::uuid AND b.project_id = ${projectId} AND b.deleted_at IS NULL
      AND coalesce(${sizeBytes}::bigint, v.size_bytes) <= coalesce(b.volume_bytes, b.size_gib::bigint * ${GiB}::bigint)
      AND coalesce(v.restored_at < ${before}::timestamptz, ${before}::timestamptz IS NULL)`;
  return source ? lockUsable(tx, source.id) : null;
}

/**
 * Where a backup goes (cinder-api 6.4). If a zone was requested: to a repository of that zone, or nowhere. Otherwise to its parent's
 * repository, to one of the volume's zone, or to the default one. `reach` is the capability that a worker must have: for a zone without a
 * repository no worker has it, and the backup fails as in a zone without a backup service.
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
 * Accepts a backup: parent chosen and locked, quota reserved, volume or snapshot `backing-up`, row `creating`, operation and task, in one
 * transaction (decision 0025). Checks in Cinder's order (cinder-api 6.2).
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestBackup(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewBackup,
): Promise<BackupRow> {
  const accepted = await requestAtOnce(database, config, principal, request);
  return accepted ?? inTransaction(database, (tx) => requestBackupWithin(tx, config, principal, request));
}

/**
 * Accepts a backup that depends on no other rows than its volume and the quota, in two round trips: the volume is read, and one statement does
 * the rest if it still is as it was read.
 *
 * @returns null when it was not accepted: a transaction finds out why, or accepts it
 * @throws NotFoundError, InvalidError
 */
async function requestAtOnce(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewBackup,
): Promise<BackupRow | null> {
  if (request.snapshotId !== null || request.incremental) return null;
  const source = await readSource(database, config, principal, request);
  const { volume: seen, force, amounts } = source;
  const backup = describeBackup(config, principal, request, { ...source, parent: null });
  const accepted = await acceptBackupAlone(database, principal, backup, {
    seen,
    from: originsOf(force),
    quota: (said) => quotaReservation(config, principal.projectId, amounts, said),
  });
  return accepted && { ...accepted, hasDependents: false };
}

/** As `requestBackup`, in a transaction that is rolled back when this throws. */
export async function requestBackupWithin(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: NewBackup,
): Promise<BackupRow> {
  const source = await readSource(tx, config, principal, request);
  const { volume, snapshot, force, amounts } = source;
  await reserveQuota(tx, config, principal.projectId, amounts);
  await freezeStatus(tx, volume, snapshot, force);
  const parent = request.incremental ? await chooseParent(tx, principal.projectId, volume.id, snapshot) : null;
  const accepted = await acceptBackup(tx, principal, describeBackup(config, principal, request, { ...source, parent }));
  return { ...accepted, hasDependents: false };
}

/** What is backed up, as it is now. */
interface Source {
  volume: Volume;
  snapshot: SnapshotRow | null;
  /** Whether the volume may be in use. */
  force: boolean;
  amounts: QuotaAmounts;
}

/** @throws NotFoundError; InvalidError where it cannot be backed up now */
async function readSource(
  database: Database | Transaction,
  config: Config,
  principal: Principal,
  request: NewBackup,
): Promise<Source> {
  checkContainer(request.container);
  const volume = await findVolume(database, principal, request.volumeId);
  const snapshot = await checkSnapshot(database, principal, request);
  // One in use is backed up by a snapshot, which not every backend can take.
  const canFreeze = canProvision(config, volume.backend);
  const force = request.force && canFreeze;
  const refused = snapshot ? null : canFreeze ? volumeRefusal(volume.status, force) : atRestRefusal(volume.status);
  if (refused) throw refused;
  return { volume, snapshot, force, amounts: { backups: 1, backup_gigabytes: volume.sizeGib } };
}

function describeBackup(
  config: Config,
  principal: Principal,
  request: NewBackup,
  { volume, snapshot, force, parent }: Omit<Source, "amounts"> & { parent: Backup | null },
): BackupToAccept {
  const named = request.policy?.repository ?? null;
  const { repository, reach } = named
    ? { repository: named, reach: needToWrite(named) }
    : placeBackup(config, request.availabilityZone, { parent, volume });
  const row = rowOf(principal, request, { volume, snapshot, parent, repository });
  const operation = {
    ...backupOperation(config, { row, parent, volume, snapshot, reach, parentId: null }),
    ...(force && { input: { force } }),
  };
  return { row, operation };
}

export function rowOf(
  principal: Principal,
  request: NewBackup,
  made: {
    volume: Pick<Volume, "id" | "sizeGib">;
    snapshot: Pick<SnapshotRow, "id" | "createdAt"> | null;
    parent: Backup | null;
    repository: string;
  },
): NewBackupRow {
  const { volume, snapshot, parent, repository } = made;
  const createdAt = new Date();
  return {
    id: randomUUID(),
    projectId: principal.projectId,
    userId: principal.userId,
    volumeId: volume.id,
    snapshotId: snapshot?.id ?? null,
    parentId: parent?.id ?? null,
    name: request.name,
    description: request.description,
    sizeGib: volume.sizeGib,
    repository,
    container: request.container,
    availabilityZone: request.availabilityZone,
    policyId: request.policy?.id ?? null,
    metadata: request.metadata,
    dataTimestamp: snapshot?.createdAt ?? createdAt,
    createdAt,
    updatedAt: snapshot ? null : createdAt,
  };
}

interface BackupToStart {
  row: Pick<Backup, "id" | "projectId" | "repository" | "policyId">;
  parent: Backup | null;
  volume: Pick<Volume, "id" | "backend" | "sizeBytes">;
  snapshot: Pick<SnapshotRow, "id" | "sizeBytes"> | null;
  reach: string;
  parentId: string | null;
}

/** The operation that creates the backup of `row`; part of the operation `parentId` where there is one. */
export async function startBackup(
  tx: Transaction,
  config: Config,
  principal: Pick<Principal, "userId" | "requestId">,
  backup: BackupToStart,
): Promise<void> {
  await startOperation(tx, principal, backupOperation(config, backup));
}

export function backupOperation(config: Config, backup: BackupToStart): NewOperation {
  const { row, parent, volume, snapshot, reach, parentId } = backup;
  const encoder = config.repositories.find(({ name }) => name === row.repository)?.zlib_encoder;
  return {
    kind: "backup-create",
    projectId: row.projectId,
    backupId: row.id,
    volumeId: volume.id,
    snapshotId: snapshot?.id ?? null,
    parentId,
    policyId: row.policyId,
    bytesTotal: snapshot?.sizeBytes ?? volume.sizeBytes,
    task: {
      kind: "plan-backup",
      needs: [reach, ...parentReach(row, parent), `backend:${volume.backend}`, ...encoderNeeds(encoder)],
    },
  };
}

/** A backup whose parent is in another repository reads that one, too. */
const parentReach = (row: { repository: string }, parent: Backup | null): string[] =>
  parent === null || parent.repository === row.repository ? [] : [needToRead(parent.repository)];

async function freezeStatus(
  tx: Transaction,
  volume: { id: string },
  snapshot: SnapshotRow | null,
  force: boolean,
): Promise<void> {
  if (!snapshot) {
    await moveVolume(tx, volume.id, originsOf(force), "backing-up", (status) =>
      changedMeanwhile(volume.id, status, force),
    );
    return;
  }
  const moved = await move(tx, "snapshot", { id: snapshot.id }, { from: "available", to: "backing-up" });
  if (moved !== 1) throw snapshotRefusal("backing-up");
}

const originsOf = (force: boolean) => (force ? (["available", "in-use"] as const) : (["available"] as const));

const changedMeanwhile = (id: string, status: string, force: boolean): Error =>
  volumeRefusal(status, force) ?? new InvalidError("volume", `Volume ${id} changed its status meanwhile.`);
