import type { Database } from "@tephra/control";
import { type ImageTransferRow, nameDraft, wholeChain } from "@tephra/control/work";
import type { BackupReference, Engine, RunContext, VolumeBackend, VolumeSource } from "@tephra/engine";
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

/** Opens what a transfer is of. `row` was just claimed. */
export async function openImage(
  { database, places, engine }: Opening,
  row: ImageTransferRow,
  run: RunContext,
): Promise<{ image: Image; row: ImageTransferRow }> {
  const { storedBackupId: backupId, volumeId } = row;
  if (backupId !== null)
    return { image: new Image(await openStored({ database, places, engine }, backupId, run), null), row };
  const backend = await places.backend(row.backend);
  if (row.direction === "upload") return openUpload(database, backend, row, run);
  return { image: new Image(await backend.openSource({ volumeId }), null), row };
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
 * as it was. Where the backend knows no such place, it is written in place.
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
  else await backend.beginRestore(volumeId, draft, { sizeBytes: 0, keepTail: true }, run);
  if (!(await nameDraft(database, row, { draft, inPlace }))) throw new TransferLostError(row);
  if (before !== null && !inPlace) await backend.abandonRestore(before);
  return draft;
}
