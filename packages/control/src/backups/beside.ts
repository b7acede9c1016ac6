import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isLiveOperation } from "../db/live.ts";
import { ConfigError, InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { documents, type RestoreInput, type SeenVolume } from "../queue/documents.ts";
import { isLive, lockOperation, startOperation } from "../queue/operations.ts";
import { delayTasks } from "../queue/tasks.ts";
import { needToRead } from "../queue/workers.ts";
import { acceptBackup } from "../rows/accept-backup.ts";
import type { Backup, BackupRow } from "../rows/backups.ts";
import { getBackup, lockBackup } from "../rows/backups.ts";
import { chainRepositories } from "../rows/chains.ts";
import { endWork } from "../rows/endings.ts";
import { move } from "../rows/move.ts";
import { reserveQuota } from "../rows/quotas.ts";
import { GiB } from "../rows/volumes.ts";
import { besideIn } from "../volume-backends.ts";
import {
  backupOperation,
  checkContainer,
  chooseParent,
  type NewBackup,
  placeBackup,
  rowOf,
  snapshotRefusal,
  volumeRefusal,
} from "./create.ts";
import { sizeRefusal } from "./restore.ts";
import type { DescribedVolume } from "./volume-meta.ts";

/* Backups and restores of volumes that another service has: there are no rows of them, and what was seen of one is kept in the operation. */

function backendOf(config: Config): string {
  const beside = besideIn(config.volume_backends);
  if (beside === null) throw new ConfigError([{ key: "volume_backends", problem: "has volumes of its own" }]);
  return beside.name;
}

/** In the form of a row. */
export function subjectOf(config: Config, seen: SeenVolume) {
  const described: DescribedVolume = {
    ...seen,
    previousStatus: seen.status,
    createdAt: new Date(seen.createdAt),
    launchedAt: null,
  };
  const sizeGib = seen.snapshot?.sizeGib ?? seen.sizeGib;
  return {
    ...described,
    sizeGib,
    sizeBytes: BigInt(sizeGib * GiB),
    backend: backendOf(config),
    distrustedAt: null,
    beside: true,
  };
}

const busy = (to: string, status: string) =>
  new InvalidError("volume", `Volume to be ${to} must be available or in-use, but the current status is "${status}".`);

/** Of each volume one operation at a time, as an index says, too; backups of its snapshots do not count. @throws InvalidError */
async function requireIdle(tx: Transaction, volumeId: string, refuse: (status: string) => Error): Promise<void> {
  await tx.$executeRaw`SELECT pg_advisory_xact_lock(hashtextextended(${`beside ${volumeId}`}, 0))`;
  const [other] = await tx.$queryRaw<{ kind: string }[]>`
    SELECT kind FROM operations o WHERE volume_id = ${volumeId}::uuid AND snapshot_id IS NULL
      AND kind IN ('backup-create', 'backup-restore') AND ${isLiveOperation("o")} LIMIT 1`;
  if (other) throw refuse(other.kind === "backup-create" ? "backing-up" : "restoring-backup");
}

function checkSeen(request: NewBackup, seen: SeenVolume): void {
  const { snapshot } = seen;
  if (snapshot && snapshot.status !== "available") throw snapshotRefusal(snapshot.status);
  const refused = snapshot ? null : volumeRefusal(seen.status, request.force);
  if (refused) throw refused;
  if (!seen.encrypted) return;
  const text = `Volume ${seen.id} is encrypted with a key of its own; Tephra beside Cinder cannot back it up yet.`;
  throw new InvalidError("volume", text);
}

/**
 * Accepts a backup of a volume that another service has: neither marked nor locked there. The caller has seen that its user may.
 *
 * @throws InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestBackupBeside(
  database: Database,
  config: Config,
  principal: Principal,
  { request, seen }: { request: NewBackup; seen: SeenVolume },
): Promise<BackupRow> {
  return inTransaction(database, async (tx) => {
    checkContainer(request.container);
    checkSeen(request, seen);
    const volume = subjectOf(config, seen);
    const snapshot = seen.snapshot
      ? { id: seen.snapshot.id, createdAt: new Date(seen.snapshot.createdAt), sizeBytes: volume.sizeBytes }
      : null;
    if (!snapshot) await requireIdle(tx, seen.id, (status) => busy("backed up", status));
    await reserveQuota(tx, config, principal.projectId, { backups: 1, backup_gigabytes: volume.sizeGib });
    const parent = request.incremental ? await chooseParent(tx, principal.projectId, seen.id, snapshot) : null;
    const { repository, reach } = placeBackup(config, request.availabilityZone, { parent, volume });
    const row = rowOf(principal, request, { volume, snapshot, parent, repository });
    const operation = {
      ...backupOperation(config, { row: { ...row, policyId: null }, parent, volume, snapshot, reach, parentId: null }),
      input: { volume: seen },
    };
    const accepted = await acceptBackup(tx, principal, { row, operation });
    return { ...accepted, hasDependents: false };
  });
}

export interface PreparedRestore {
  operationId: string;
  backup: Backup;
}

/**
 * Begins a restore whose volume the caller is about to have made (`seen` null, of `sizeGib` or as long as the backup's) or reserved in the other service. No worker takes it until
 * `confirmRestore`, or until the request must have died: then it fails, and what was made or reserved meanwhile is removed or released.
 *
 * @throws NotFoundError, InvalidError; nothing is left behind
 */
export async function prepareRestore(
  database: Database,
  config: Config,
  principal: Principal,
  request: { backupId: string; seen: SeenVolume | null; sizeGib?: number | null },
): Promise<PreparedRestore> {
  const { seen, sizeGib = null } = request;
  const prepareMs = (besideIn(config.volume_backends)?.wait.prepare_seconds ?? 0) * 1000;
  return inTransaction(database, async (tx) => {
    const found = await getBackup(tx, principal, request.backupId);
    if (found.status !== "available") throw new InvalidError("backup", "Backup status must be available");
    const notAvailable = () => new InvalidError("volume", "Volume to be restored to must be available");
    if (seen && seen.status !== "available") throw notAvailable();
    if (seen && seen.sizeGib < found.sizeGib) {
      const text = `volume size ${seen.sizeGib} is too small to restore backup of size ${found.sizeGib}.`;
      throw new InvalidError("volume", text);
    }
    const refused = sizeGib === null ? null : sizeRefusal(sizeGib, found);
    if (refused !== null) throw new InvalidError("input", refused);
    if (seen) await requireIdle(tx, seen.id, notAvailable);
    const backup = await lockBackup(tx, found.id);
    if (backup?.status !== "available") throw new InvalidError("backup", "Backup status must be available");
    const step = { from: "available", to: "restoring" } as const;
    await move(tx, "backup", { id: backup.id }, step, { restoreVolumeId: seen?.id ?? null });
    const beside = backendOf(config);
    const operationId = await startOperation(tx, principal, {
      kind: "backup-restore",
      projectId: backup.projectId,
      backupId: backup.id,
      volumeId: seen?.id ?? null,
      bytesTotal: backup.volumeBytes ?? 0n,
      input: { newVolume: seen === null, beside, ...(seen && { volume: seen }) },
      task: {
        kind: "plan-restore",
        needs: [...(await chainRepositories(tx, backup.id)).map(needToRead), `backend:${beside}`],
      },
    });
    await delayTasks(tx, operationId, prepareMs);
    return { operationId, backup };
  });
}

/** The volume is there and reserved: the restore goes on without the request. @throws InvalidError when it came too late */
export async function confirmRestore(
  database: Database,
  { operationId, backup }: PreparedRestore,
  target: { volume: SeenVolume; hold: string },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockBackup(tx, backup.id);
    const operation = await lockOperation(tx, operationId);
    const input = documents.restoreInput(operation.input);
    if (!isLive(operation) || operation.state !== "queued")
      throw new InvalidError("backup", "The restore was cancelled, or took too long to prepare. Try again.");
    const known: RestoreInput = { ...input, volume: target.volume, hold: target.hold };
    await tx.operation.update({ where: { id: operationId }, data: { volumeId: target.volume.id, input: known } });
    await tx.backup.update({ where: { id: backup.id }, data: { restoreVolumeId: target.volume.id } });
    await delayTasks(tx, operationId, 0);
  });
}

/**
 * The other service has refused: the backup is available again. `nothingHeld`: it has surely made and reserved nothing; otherwise that is
 * looked for and released.
 */
export async function rejectRestore(
  database: Database,
  { operationId, backup }: PreparedRestore,
  why: { reason: string; nothingHeld: boolean },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockBackup(tx, backup.id);
    const operation = await lockOperation(tx, operationId);
    if (!isLive(operation)) return;
    const input = documents.restoreInput(operation.input);
    const known: RestoreInput = why.nothingHeld ? { ...input, nothingHeld: true } : input;
    await tx.operation.update({ where: { id: operationId }, data: { input: known } });
    await endWork(tx, { ...operation, input: known }, { state: "failed", reason: why.reason });
  });
}

/** What marks everything that this installation makes in another service. */
export async function installationId(database: Database): Promise<string> {
  const { id } = await database.installation.findFirstOrThrow();
  return id;
}
