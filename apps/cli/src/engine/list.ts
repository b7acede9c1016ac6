import {
  describeBackup,
  findBackups,
  type ListedBackup,
  RepositoryUnmarkedError,
  withoutReplaced,
} from "@tephra/engine";
import type { Output } from "./output.ts";
import { type NamedRepository, notePassedOver, openNamedRepository } from "./repository.ts";

/** Lists the backups in a repository, oldest first. A damaged backup is listed with its problem. */
export async function listCommand(options: NamedRepository, output: Output, signal: AbortSignal): Promise<void> {
  await using repository = await openNamedRepository(options);
  await repository.identity().catch((error: unknown) => {
    // Reading needs no marker: a repository written by Cinder has none.
    if (!(error instanceof RepositoryUnmarkedError)) throw error;
  });
  const found: ListedBackup[] = [];
  for await (const reference of findBackups(repository, signal, notePassedOver(output))) {
    found.push(await describeBackup(reference, signal));
  }
  const backups = withoutReplaced(found);
  backups.sort((one, other) => (one.createdAt ?? "").localeCompare(other.createdAt ?? ""));
  const lines = backups.map((backup) => {
    const kind = backup.parentId === null ? "full" : `incremental of ${backup.parentId}`;
    const state =
      backup.problem === null ? `${backup.objects} objects, ${backup.storedBytes} bytes stored` : backup.problem;
    return `${backup.reference.backupId}  ${backup.createdAt ?? "?"}  ${backup.volumeBytes} bytes  ${kind}  ${state}`;
  });
  output.result({ backups: backups.map(view) }, lines.length > 0 ? lines : ["No backups."]);
}

function view(backup: ListedBackup): Record<string, unknown> {
  return {
    id: backup.reference.backupId,
    volume_id: backup.volumeId,
    parent_id: backup.parentId,
    container: backup.reference.container,
    prefix: backup.reference.prefix,
    name: backup.name,
    description: backup.description,
    created_at: backup.createdAt,
    block_bytes: backup.blockBytes,
    volume_bytes: backup.volumeBytes,
    objects: backup.objects,
    stored_bytes: backup.storedBytes,
    problem: backup.problem,
  };
}
