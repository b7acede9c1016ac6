import { encodeExportRecord } from "../format/export-record.ts";
import type { OnPassedOver } from "../repository/passed-over.ts";
import type { Repository } from "../repository/repository.ts";
import { describeBackup, findBackups, type ListedBackup, withoutReplaced } from "./list-backups.ts";

/** A backup that can be registered in a catalogue again. */
export interface RescannedBackup {
  backup: ListedBackup;
  /** Ids of the backup and all its ancestors, newest first; ends early where the chain is broken. */
  chain: string[];
  dependents: number;
  /** Why it cannot be restored: its own problem, or one of its chain. */
  problem: string | null;
  /** Whether it or a member of its chain could not be read: register it later rather than as damaged. */
  unreadable: boolean;
}

/**
 * Rebuilds the catalogue of a repository from the metadata objects alone, without database or records. Parents come before their
 * children, so that importing in this order always finds the parent. Damage becomes a backup's `problem`. Of a backup that was squashed and
 * whose former objects are still there, the new ones count.
 */
export async function rescan(
  repository: Repository,
  signal: AbortSignal,
  onPassedOver: OnPassedOver = () => {},
): Promise<RescannedBackup[]> {
  const found = new Map<string, ListedBackup>();
  const twins: ListedBackup[] = [];
  const described: ListedBackup[] = [];
  for await (const reference of findBackups(repository, signal, onPassedOver)) {
    described.push(await describeBackup(reference, signal));
  }
  for (const backup of withoutReplaced(described)) {
    const { reference } = backup;
    if (found.has(reference.backupId)) twins.push({ ...backup, problem: "another backup bears the same id" });
    else found.set(reference.backupId, backup);
  }
  const dependents = new Map<string, number>();
  for (const { parentId } of found.values()) {
    if (parentId !== null) dependents.set(parentId, (dependents.get(parentId) ?? 0) + 1);
  }
  const rescanned = [...found.values()].map((backup): RescannedBackup => {
    return { backup, dependents: dependents.get(backup.reference.backupId) ?? 0, ...chainOf(backup, found) };
  });
  for (const backup of twins) {
    rescanned.push({
      backup,
      chain: [backup.reference.backupId],
      dependents: 0,
      problem: backup.problem,
      unreadable: backup.unreadable,
    });
  }
  return rescanned.sort((one, other) => one.chain.length - other.chain.length || compareDates(one, other));
}

/** The record with which Cinder or this service can import a rescanned backup. Null when its metadata cannot be read. */
export function recordOf(repository: Repository, rescanned: Pick<RescannedBackup, "backup" | "dependents">) {
  const { backup, dependents } = rescanned;
  if (backup.volumeId === null) return null;
  const createdAt = new Date(backup.createdAt?.replace(" ", "T") ?? 0);
  const at = Number.isNaN(createdAt.getTime()) ? new Date(0) : createdAt;
  const backupUrl = encodeExportRecord({
    id: backup.reference.backupId,
    userId: null,
    projectId: null,
    volumeId: backup.volumeId,
    container: backup.reference.container,
    prefix: backup.reference.prefix,
    parentId: backup.parentId,
    sizeGib: backup.sizeGib,
    name: backup.name,
    description: backup.description,
    service: repository.service,
    objects: backup.objects,
    dependents,
    snapshotId: null,
    dataAt: at,
    createdAt: at,
    updatedAt: null,
    host: null,
    availabilityZone: null,
    metadata: {},
    encryptionKeyId: backup.encryptionKeyId,
  });
  return { backup_service: repository.service, backup_url: backupUrl };
}

function chainOf(
  backup: ListedBackup,
  found: ReadonlyMap<string, ListedBackup>,
): { chain: string[]; problem: string | null; unreadable: boolean } {
  const chain = [backup.reference.backupId];
  let { problem, unreadable } = backup;
  for (let parentId = backup.parentId; parentId !== null; ) {
    if (chain.includes(parentId)) return { chain, problem: problem ?? "its parents form a circle", unreadable };
    const parent = found.get(parentId);
    if (parent === undefined) {
      return { chain, problem: problem ?? `backup ${parentId}, on which it builds, is not there`, unreadable };
    }
    if (parent.problem !== null) problem ??= `backup ${parentId}, on which it builds: ${parent.problem}`;
    unreadable ||= parent.unreadable;
    chain.push(parentId);
    parentId = parent.parentId;
  }
  return { chain, problem, unreadable };
}

function compareDates(one: RescannedBackup, other: RescannedBackup): number {
  return (one.backup.createdAt ?? "").localeCompare(other.backup.createdAt ?? "");
}
