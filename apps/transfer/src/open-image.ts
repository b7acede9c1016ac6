import type { Database } from "@tephra/control";
import { findMachineBackup, type ImageTransferRow, nameDraft, wholeChain } from "@tephra/control/work";
import {
  BackupExport,
  type BackupReference,
  type Engine,
  imageOf,
  type RunContext,
  SourceChangedError,
  type VolumeBackend,
  type VolumeSource,
  VolumeStorageError,
} from "@tephra/engine";
import { Image } from "./image.ts";
import type { Places } from "./places.ts";

/** The transfer is another process's now, or has ended. */
export class TransferLostError extends Error {
  constructor({ id }: ImageTransferRow) {
    super(`Image transfer ${id} is not this process's any more`);
  }
}

export interface Opening {
  database: Database;
  places: Places;
  engine: Engine;
}

/**
 * Bytes that an image file of a disk may have: a tenth more than the disk, which is what oVirt's storage reserves, and some for clusters
 * of any size.
 */
const imageBytesMax = (diskBytes: number): number => Math.ceil((diskBytes * 1.1) / 512) * 512 + 16 * 1024 ** 2;

/**
 * Opens what a transfer is of. `row` was just claimed. Format `raw`: what a guest sees; `cow`: the bytes of a qcow2 image of it.
 *
 * @throws SourceChangedError when its client has begun to read an image that is another one now
 */
export async function openImage(
  opening: Opening,
  row: ImageTransferRow,
  run: RunContext,
): Promise<{ image: Image; row: ImageTransferRow }> {
  const { backupId, storedBackupId, snapshotId, volumeId } = row;
  if (backupId !== null) return openOfBackup(opening.database, row, backupId);
  if (storedBackupId !== null) return openDownload(await openStored(opening, storedBackupId, run), row);
  const backend = await opening.places.backend(row.backend);
  if (row.direction === "upload") return openUpload(opening.database, backend, row, run);
  return openDownload(await backend.openSource(snapshotId === null ? { volumeId } : { snapshotId }), row);
}

async function openDownload(source: VolumeSource, row: ImageTransferRow) {
  if (row.format === "raw") return { image: new Image(source, null), row };
  const file = await imageOf(source);
  const image = new Image(file, null, { layout: file.layout });
  if (row.layout === null || row.layout === image.layout) return { image, row };
  await image[Symbol.asyncDispose]();
  throw new SourceChangedError("The image of the disk is another one than was read from before.");
}

/** A disk as of the moment of a machine's backup, whose holder exports it on this host. @throws VolumeStorageError when it has ended */
async function openOfBackup(database: Database, row: ImageTransferRow, backupId: string) {
  const backup = await findMachineBackup(database, backupId);
  const disk = backup?.disks.find(({ volumeId }) => volumeId === row.volumeId);
  const { exportSocket: socketPath, exportName: name, changes } = disk ?? {};
  if (backup?.status !== "ready" || socketPath == null || name == null) {
    throw new VolumeStorageError(`Backup ${backupId} cannot be read any more.`, { retryable: false });
  }
  const source = await BackupExport.open({ socketPath, name, changes: changes ?? null }, `backup ${backupId}`);
  return { image: new Image(source, null, source.tellsChanges ? { changes: source } : {}), row };
}

/** A backup, from the repositories that it and those below it are in. */
async function openStored(
  { database, places, engine }: Opening,
  backupId: string,
  { signal }: RunContext,
): Promise<VolumeSource> {
  const chain: BackupReference[] = [];
  for (const { repository, ...names } of await wholeChain(database, backupId))
    chain.push({ ...names, repository: await places.repository(repository) });
  return engine.openBackupSource({ chain }, signal);
}

/**
 * An upload is written beside the volume, to a copy of it, which becomes the volume at its end: until then, whatever happens, the volume is
 * as it was. Where the backend knows no such place, it is written in place. An image is written to an empty file.
 */
async function openUpload(database: Database, backend: VolumeBackend, row: ImageTransferRow, run: RunContext) {
  const { volumeId } = row;
  const draft = await prepareDraft(database, backend, row, run);
  await using stack = new AsyncDisposableStack();
  const target = stack.use(await backend.openRestoreTarget(volumeId, draft));
  const source = stack.use(await backend.openRestored(volumeId, draft));
  stack.move();
  return { image: new Image(source, target), row: { ...row, draft } };
}

/** @returns the name of a draft that only this claim of the transfer writes to, with what was written to it before */
async function prepareDraft(
  database: Database,
  backend: VolumeBackend,
  row: ImageTransferRow,
  run: RunContext,
): Promise<string> {
  const { volumeId, draft: before } = row;
  const inPlace = backend.capabilities.restores === "in-place";
  const wasOpened = row.sizeBytes !== null && before !== null;
  if (wasOpened && row.draftServerId === row.serverId) return before;
  const draft = `${row.id}-${row.claim}`;
  // The process that wrote it may only be slow: what it still writes goes into a file that nobody reads any more.
  if (wasOpened && !inPlace) await backend.copyRestore(volumeId, before, draft, run);
  else if (row.format === "raw") await backend.beginRestore(volumeId, draft, { sizeBytes: 0, keepTail: true }, run);
  else {
    const sizeBytes = imageBytesMax((await backend.measure(volumeId)).sizeBytes);
    await backend.beginRestore(volumeId, draft, { sizeBytes, keepTail: false }, run);
  }
  if (!(await nameDraft(database, row, { draft, inPlace }))) throw new TransferLostError(row);
  if (before !== null && !inPlace) await backend.abandonRestore(before);
  return draft;
}
