import { startRestore } from "../backups/restore.ts";
import { applyRestored } from "../backups/restore-work.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { documentVersion } from "../queue/document-version.ts";
import { documents, type RestorePlan } from "../queue/documents.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { Json, TaskOperation, TaskResult } from "../queue/tasks.ts";
import { freeBytesOf } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { lockBackup } from "../rows/backups.ts";
import { tidyRestored } from "../rows/endings.ts";
import { holdGroup, lockInstanceGroup, refuseBusy, releaseGroup } from "../rows/groups.ts";
import type { Volume } from "../rows/volumes.ts";
import { GiB, moveVolume } from "../rows/volumes.ts";
import { type AcceptedGroupOperation, memberInstance } from "./backup.ts";
import { lockParts } from "./parts.ts";
import { type GroupBackupRow, type GroupMember, lockGroupBackup } from "./snapshots.ts";

export interface GroupBackupName {
  groupId: string;
  instanceId: string;
  groupSnapshotId: string;
  /** Name of the backup: required as a safeguard against a wrong id. */
  name: string;
}

/** @throws InvalidError when the backup has another name */
export function checkBackupName({ id, name }: Pick<GroupBackupRow, "id" | "name">, asked: string): void {
  if (name === asked) return;
  throw new InvalidError("request", `Backup name ${asked} does not match group snapshot ${id} (named ${name}).`);
}

/** @throws InvalidError unless the machine is off */
export function assertShutOff(instanceId: string, powerState: string): void {
  if (powerState === "SHUTOFF") return;
  const text = `Instance ${instanceId} must be shut off before restore, but its status is ${powerState}.`;
  throw new InvalidError("request", text);
}

/** A member, with the backup that it is restored from and the volume that it is restored to. */
interface Target {
  backup: Backup;
  volume: Volume;
}

const notAvailable = (what: string, status: string) =>
  new InvalidError("request", `${what} status must be available, but current status is: ${status}`);

function usableBackup({ backup, volumeId }: GroupMember): Backup {
  if (!backup) throw notAvailable(`Backup of volume ${volumeId}`, "deleted");
  if (backup.status !== "available") throw notAvailable(`Backup ${backup.id}`, backup.status);
  return backup;
}

function targetOf(backup: Backup, volumes: readonly Volume[]): Target {
  const volume = volumes.find((candidate) => candidate.id === backup.volumeId);
  if (!volume) {
    const text = `Volume ${backup.volumeId} of backup ${backup.id} no longer exists in the group.`;
    throw new InvalidError("request", text);
  }
  if (volume.sizeGib < backup.sizeGib || (backup.volumeBytes !== null && volume.sizeBytes < backup.volumeBytes)) {
    const sizes = `(${volume.sizeGib} GiB) is too small to restore backup ${backup.id} (${backup.sizeGib} GiB)`;
    throw new InvalidError("request", `Volume ${volume.id} ${sizes}.`);
  }
  return { backup, volume };
}

/** The old bytes stay until all new ones are there, so both must fit. Backends whose free space no live worker reports are not checked. */
async function checkSpace(tx: Transaction, targets: readonly Target[]): Promise<void> {
  for (const backend of new Set(targets.map(({ volume }) => volume.backend))) {
    const available = await freeBytesOf(tx, backend);
    const need = targets
      .filter(({ volume }) => volume.backend === backend)
      .reduce((sum, { backup }) => sum + Number(backup.volumeBytes ?? BigInt(backup.sizeGib) * BigInt(GiB)), 0);
    if (available === null || need <= available) continue;
    const sizes = `need ${Math.ceil(need / GiB)} GiB, available ${Math.floor(available / GiB)} GiB`;
    throw new InvalidError("request", `Not enough free space to restore: ${sizes}.`);
  }
}

/**
 * Accepts the restore of an instance onto its own volumes: volumes `restoring-backup`, backups `restoring`, one operation for each; they
 * prepare private files, and the group operation publishes all of them or none.
 *
 * @throws NotFoundError, InvalidError; nothing is left behind
 */
export async function requestGroupRestore(
  database: Database,
  principal: Principal,
  request: GroupBackupName,
): Promise<AcceptedGroupOperation> {
  return inTransaction(database, (tx) => requestGroupRestoreWithin(tx, principal, request));
}

/** As `requestGroupRestore`, in a transaction that is rolled back when this throws. */
export async function requestGroupRestoreWithin(
  tx: Transaction,
  principal: Principal,
  request: GroupBackupName,
): Promise<AcceptedGroupOperation> {
  const group = await lockInstanceGroup(tx, principal, request.groupId);
  const instance = await memberInstance(tx, principal, group, request.instanceId);
  const source = await lockGroupBackup(tx, principal, group.id, request.groupSnapshotId);
  checkBackupName(source, request.name);
  assertShutOff(instance.id, instance.powerState);
  if (source.status !== "available") throw notAvailable("Group snapshot", source.status);
  const backups = source.members.map(usableBackup);
  const volumes = await tx.volume.findMany({ where: { groupId: group.id } });
  const targets = backups.map((backup) => targetOf(backup, volumes));
  await checkSpace(tx, targets);
  refuseBusy(group);
  const operationId = await startOperation(tx, principal, {
    kind: "group-restore",
    projectId: source.projectId,
    groupId: group.id,
    groupSnapshotId: source.id,
    bytesTotal: backups.reduce((sum, backup) => sum + (backup.volumeBytes ?? 0n), 0n),
    input: {
      instanceId: instance.id,
      concludeNeeds: [...new Set(targets.map(({ volume }) => `backend:${volume.backend}`))],
    },
    task: null,
    parts: targets.length,
  });
  await holdGroup(tx, group.id, operationId);
  for (const target of targets.toSorted((one, other) => (one.volume.id < other.volume.id ? -1 : 1))) {
    await startTarget(tx, principal, target, operationId);
  }
  return {
    operationId,
    groupId: group.id,
    instanceId: instance.id,
    groupSnapshotId: source.id,
    volumeIds: targets.map(({ volume }) => volume.id),
    snapshotIds: source.members.flatMap((member) => member.snapshot?.id ?? []),
    backupIds: backups.map((backup) => backup.id),
  };
}

async function startTarget(
  tx: Transaction,
  principal: Principal,
  { volume, backup }: Target,
  parentId: string,
): Promise<void> {
  await moveVolume(tx, volume.id, ["available", "in-use"], "restoring-backup", (status) => {
    const text = `Volume ${volume.id} status must be available or in-use, but current status is: ${status}.`;
    return new InvalidError("request", text);
  });
  await startRestore(tx, principal, { backupId: backup.id, target: volume, newVolume: false, parentId });
}

/** A private file that is to become a volume. */
export interface PreparedVolume {
  volumeId: string;
  backend: string;
  /** Its name among the private files of restores. */
  prepared: string;
}

/** @throws MalformedDocumentError, NewerDocumentError */
const plansOf = (parts: readonly { plan: Json }[]): RestorePlan[] =>
  parts.map((part) => documents.restorePlan(part.plan));

/** The files that the parts have prepared. All parts have succeeded. */
export const preparedVolumes = (parts: readonly { plan: Json }[]): PreparedVolume[] =>
  plansOf(parts).map(({ volumeId, backend, target }) => ({ volumeId, backend, prepared: target ?? "" }));

/** From now on every claim continues until all volumes are replaced. */
export async function beginPublishing(database: Database, operationId: string): Promise<void> {
  await database.operation.updateMany({
    where: { id: operationId, state: liveStates },
    data: { plan: { version: documentVersion, publishing: true } },
  });
}

/** All volumes have the backup's bytes. @throws ClaimLostError, OperationEndedError */
export async function finishGroupRestore(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const parts = await lockParts(tx, operation);
    for (const plan of plansOf(parts)) {
      const volume = await tx.volume.findUnique({ where: { id: plan.volumeId }, include: { attachments: true } });
      await applyRestored(tx, { volume, backup: await lockBackup(tx, plan.backupId), plan });
    }
    await tidyRestored(tx, parts);
    await releaseGroup(tx, operation.id);
    await completeOperation(tx, operation, result);
  });
}
