import {
  type BackupLayout,
  type BackupReference,
  type Compression,
  type Engine,
  levelDefault,
  openEngine,
  type Repository,
  rescan,
  type SquashShape,
  type ZlibEncoder,
} from "@tephra/engine";
import { type Output, UsageError } from "./output.ts";
import { findChain, type NamedRepository, openNamedRepository, prepareRepository } from "./repository.ts";

interface SquashOptions extends NamedRepository {
  backup: string;
  compression: Compression;
  zlibEncoder: ZlibEncoder;
  objectBytes: number;
  removeMerged?: boolean;
}

/**
 * Makes a full backup of an incremental one, with the same id and without its volume, and removes the objects that it had. With
 * `--remove-merged`, what it built on is removed, too, as far as no other backup builds on it.
 */
export async function squashCommand(options: SquashOptions, output: Output, signal: AbortSignal): Promise<void> {
  const started = performance.now();
  await using repository = await openNamedRepository(options);
  await prepareRepository(repository, options.repository, output);
  const { backup, references, missing } = await findChain(repository, options.backup, signal);
  const id = options.backup;
  if (backup.problem !== null) throw new UsageError(`Backup ${id} cannot be squashed: ${backup.problem}`);
  if (backup.parentId === null) throw new UsageError(`Backup ${id} is a full backup: there is nothing to squash.`);
  if (missing !== null) {
    throw new UsageError(`Backup ${id} cannot be squashed: ${missing}, on which it builds, is not there.`);
  }
  await using engine = openEngine();
  await engine.checkChain(references, signal);
  const shape = await engine.planSquash({ chain: references, objectBytes: options.objectBytes }, signal);
  const layout = planLayout(repository, options, { former: references[0] as BackupReference, shape });
  const bar = output.progress("squash", layout.volumeBytes);
  const ctx = { signal, fence: () => {}, onProgress: (done: { bytesDone: number }) => bar.update(done.bytesDone) };
  const squashed = await engine
    .squashWhole({ chain: references, repository, layout }, ctx)
    .finally(() => bar.stop())
    .catch(async (error: unknown) => {
      // The reason for the failure matters more than a failure to clean up after it.
      await remove(engine, { ...layout, repository }).catch(() => {});
      throw error;
    });
  const [former, ...merged] = references as [BackupReference, ...BackupReference[]];
  await remove(engine, former);
  const removed = options.removeMerged === true ? await removeUnneeded(engine, repository, merged, signal) : [];
  const seconds = (performance.now() - started) / 1000;
  const { objects, bytesStored, takenBytes, mergedBytes } = squashed;
  const squash = {
    id,
    container: layout.container,
    prefix: layout.prefix,
    object_bytes: layout.objectBytes,
    volume_bytes: layout.volumeBytes,
    encrypted: layout.encrypted === true,
    objects,
    stored_bytes: bytesStored,
    taken_bytes: takenBytes,
    merged_bytes: mergedBytes,
    merged: merged.map(({ backupId }) => backupId),
    removed,
    seconds,
  };
  output.result({ squash }, [
    `Backup ${id} is a full backup now, of what were ${references.length} backups.`,
    `${takenBytes} bytes of the volume taken as they were stored, ${mergedBytes} merged, ${seconds.toFixed(1)} s`,
    ...removed.map((each) => `Removed backup ${each}, on which nothing builds any more.`),
  ]);
}

function planLayout(
  repository: Repository,
  options: SquashOptions,
  { former, shape }: { former: BackupReference; shape: SquashShape },
): BackupLayout {
  const { header, objectBytes, blockBytes, volumeBytes } = shape;
  const volumeId = header.volumeId;
  if (volumeId === null) throw new UsageError(`Backup ${options.backup} names no volume.`);
  return {
    backupId: header.backupId ?? former.backupId,
    volumeId,
    container: former.container,
    prefix: newPrefix(repository, { volumeId, former }),
    compression: options.compression,
    level: levelDefault(options.compression, options.zlibEncoder),
    zlibEncoder: options.zlibEncoder,
    objectBytes,
    blockBytes,
    volumeBytes,
    createdAt: header.createdAt ?? "",
    name: header.name,
    description: header.description,
    volumeMeta: header.volumeMeta,
    parentId: null,
    encrypted: repository.encryption !== undefined,
  };
}

/** Another one than the backup has: the time in it is that of the squash. */
function newPrefix(
  repository: Repository,
  { volumeId, former }: { volumeId: string; former: BackupReference },
): string {
  const secondMs = 1000;
  for (let at = Date.now(); ; at += secondMs) {
    const prefix = repository.defaultPrefix({ volumeId, backupId: former.backupId, at: new Date(at) });
    if (prefix !== former.prefix) return prefix;
  }
}

async function remove(
  engine: Engine,
  { repository, container, prefix }: Pick<BackupReference, "repository" | "container" | "prefix">,
): Promise<void> {
  const ctx = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
  await engine.removeBackup({ repository, container, prefix }, ctx);
}

/** Removes the newest member first; the first on which another backup builds stays, with all that it builds on. */
async function removeUnneeded(
  engine: Engine,
  repository: Repository,
  merged: readonly BackupReference[],
  signal: AbortSignal,
): Promise<string[]> {
  const parents = new Map<string, string[]>();
  for (const { backup } of await rescan(repository, signal)) {
    const { parentId, reference } = backup;
    if (parentId !== null) parents.set(parentId, [...(parents.get(parentId) ?? []), reference.backupId]);
  }
  const removed: string[] = [];
  for (const member of merged) {
    if ((parents.get(member.backupId) ?? []).some((child) => !removed.includes(child))) break;
    await remove(engine, member);
    removed.push(member.backupId);
  }
  return removed;
}
