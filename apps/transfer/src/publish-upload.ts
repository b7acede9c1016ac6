import type { ImageTransferRow } from "@tephra/control/work";
import {
  type RunContext,
  SourceMissingError,
  unpackImage,
  type VolumeBackend,
  VolumeConflictError,
} from "@tephra/engine";

/** What was uploaded becomes the volume. May be repeated. `row` has a draft. */
export async function publishUpload(
  backend: VolumeBackend,
  row: ImageTransferRow & { draft: string },
  run: RunContext,
): Promise<void> {
  const { volumeId, draft } = row;
  // Another process has written it, and may still be about to.
  const fresh = row.draftServerId !== row.serverId;
  if (row.format === "raw") await backend.publishRestore(volumeId, draft, { fresh }, run);
  else await publishImage(backend, row, { fresh }, run);
}

/**
 * An image is only read: what a guest sees of it is written to a second draft, which becomes the volume. So nothing that its sender put
 * into it is left, and the volume keeps its length.
 */
async function publishImage(
  backend: VolumeBackend,
  { volumeId, draft }: ImageTransferRow & { draft: string },
  { fresh }: { fresh: boolean },
  run: RunContext,
): Promise<void> {
  const [copy, guest] = [`${draft}-copy`, `${draft}-guest`];
  try {
    const { sizeBytes } = await backend.measure(volumeId);
    const checked = fresh ? copy : draft;
    if (fresh) await backend.copyRestore(volumeId, draft, copy, run);
    await backend.beginRestore(volumeId, guest, { sizeBytes, keepTail: false }, run);
    {
      await using received = await backend.openRestored(volumeId, checked);
      await using target = await backend.openRestoreTarget(volumeId, guest);
      await unpackImage(received, target, run);
    }
    run.fence();
    await backend.publishRestore(volumeId, guest, { fresh: false }, run);
    await backend.abandonRestore(draft);
  } catch (error) {
    // It has been published before, and its end could not be told.
    const isDone = error instanceof SourceMissingError || error instanceof VolumeConflictError;
    if (!isDone || !(await isGone(backend, volumeId, draft))) throw error;
  } finally {
    await backend.abandonRestore(copy);
    await backend.abandonRestore(guest);
  }
}

async function isGone(backend: VolumeBackend, volumeId: string, draft: string): Promise<boolean> {
  try {
    await (await backend.openRestored(volumeId, draft))[Symbol.asyncDispose]();
    return false;
  } catch (error) {
    return error instanceof SourceMissingError;
  }
}
