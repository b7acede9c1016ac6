import { randomUUID } from "node:crypto";
import {
  type BackupLayout,
  type Compression,
  checkLayout,
  type Engine,
  encodeExportRecord,
  encodeVolumeMeta,
  InvalidLayoutError,
  levelDefault,
  openEngine,
  openNamedSource,
  type Repository,
  writableForever,
  type ZlibEncoder,
} from "@tephra/engine";
import { type Output, UsageError } from "./output.ts";
import { findChain, type NamedRepository, openNamedRepository, prepareRepository } from "./repository.ts";

interface BackupOptions extends NamedRepository {
  source: string;
  backingRoot?: string[];
  volumeId?: string;
  parent?: string;
  compression: Compression;
  zlibEncoder: ZlibEncoder;
  objectBytes: number;
  blockBytes: number;
}

const gibibyte = 1024 ** 3;

/** Backs up a file or device and prints where the backup is stored, with a record that Cinder can import. */
export async function backupCommand(options: BackupOptions, output: Output, signal: AbortSignal): Promise<void> {
  const started = performance.now();
  const at = new Date();
  await using engine = openEngine({ startNow: true });
  await using repository = await openNamedRepository(options);
  await using source = await openNamedSource(options.source, options.backingRoot);
  engine.startThreads(Math.ceil(source.sizeBytes / options.objectBytes));
  await prepareRepository(repository, options.repository, output);
  const parent = options.parent === undefined ? null : await findChain(repository, options.parent, signal);
  if (parent !== null && parent.backup.problem !== null) {
    throw new UsageError(`Backup ${options.parent} cannot be a parent: ${parent.backup.problem}`);
  }
  if (parent !== null && parent.missing !== null) {
    throw new UsageError(
      `Backup ${options.parent} cannot be a parent: ${parent.missing}, on which it builds, is not there.`,
    );
  }
  const volumeId = options.volumeId ?? parent?.backup.volumeId ?? randomUUID();
  const layout = planLayout({ repository, options, volumeId, volumeBytes: source.sizeBytes, at });
  if (parent !== null) await engine.checkChain(parent.references, signal);
  const bar = output.progress("backup", source.sizeBytes);
  const onProgress = (progress: { bytesDone: number }): void => bar.update(progress.bytesDone);
  const ctx = { signal, fence: () => {}, writableUntil: writableForever, onProgress };
  const input = { source, repository, layout, parent: parent?.references[0] ?? null };
  const stored = await engine
    .backupWhole(input, ctx)
    .finally(() => bar.stop())
    .catch(async (error: unknown) => {
      await discard(engine, repository, layout);
      throw error;
    });
  const seconds = (performance.now() - started) / 1000;
  const record = {
    backup_service: repository.service,
    backup_url: exportRecord({ repository, layout, objects: stored.objects, at }),
  };
  const backup = {
    id: layout.backupId,
    volume_id: volumeId,
    parent_id: layout.parentId,
    container: layout.container,
    prefix: layout.prefix,
    compression: layout.compression,
    object_bytes: layout.objectBytes,
    block_bytes: layout.blockBytes,
    volume_bytes: layout.volumeBytes,
    encrypted: layout.encrypted === true,
    objects: stored.objects,
    stored_bytes: stored.bytesStored,
    seconds,
    export_record: record,
  };
  output.result({ backup }, [
    `Backup ${layout.backupId} of volume ${volumeId} is complete.`,
    `${layout.volumeBytes} bytes read, ${stored.bytesStored} stored in ${stored.objects} objects, ${seconds.toFixed(1)} s`,
  ]);
}

/** Removes what a failed backup has stored. Its id is new, so no other objects can have its names. */
async function discard(engine: Engine, repository: Repository, layout: BackupLayout): Promise<void> {
  const ctx = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
  const { container, prefix } = layout;
  // The reason for the failed backup matters more than a failure to clean up after it.
  await engine.removeBackup({ repository, container, prefix }, ctx).catch(() => {});
}

function planLayout(input: {
  repository: Repository;
  options: BackupOptions;
  volumeId: string;
  volumeBytes: number;
  at: Date;
}): BackupLayout {
  const { repository, options, volumeId, volumeBytes, at } = input;
  const backupId = randomUUID();
  const layout: BackupLayout = {
    backupId,
    volumeId,
    container: repository.defaultContainer(backupId),
    prefix: repository.defaultPrefix({ volumeId, backupId, at }),
    compression: options.compression,
    level: levelDefault(options.compression, options.zlibEncoder),
    zlibEncoder: options.zlibEncoder,
    objectBytes: options.objectBytes,
    blockBytes: options.blockBytes,
    volumeBytes,
    createdAt: `${at.toISOString().slice(0, 19).replace("T", " ")}+00:00`,
    name: null,
    description: null,
    volumeMeta: encodeVolumeMeta({ volumeId, volumeBytes, name: null, description: null }),
    parentId: options.parent ?? null,
    encrypted: repository.encryption !== undefined,
  };
  try {
    checkLayout(layout);
  } catch (error) {
    throw error instanceof InvalidLayoutError ? new UsageError(error.message, { cause: error }) : error;
  }
  return layout;
}

function exportRecord(input: { repository: Repository; layout: BackupLayout; objects: number; at: Date }): string {
  const { repository, layout, objects, at } = input;
  return encodeExportRecord({
    id: layout.backupId,
    userId: null,
    projectId: null,
    volumeId: layout.volumeId,
    container: layout.container,
    prefix: layout.prefix,
    parentId: layout.parentId,
    sizeGib: Math.max(1, Math.ceil(layout.volumeBytes / gibibyte)),
    name: layout.name,
    description: layout.description,
    service: repository.service,
    objects,
    dependents: 0,
    snapshotId: null,
    dataAt: at,
    createdAt: at,
    updatedAt: new Date(),
    host: null,
    availabilityZone: null,
    metadata: {},
  });
}
