import { rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { InvalidError, needsSocket } from "@tephra/control";
import { type ClaimedTask, documents, finishPlug } from "@tephra/control/work";
import { EngineError, openRunningDisks, type PluggedDisk } from "@tephra/engine";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";
import { exportSocketOf, settingsOf } from "../machine-backups/places.ts";

/** What is plugged in, and where the layer is that takes what the machine writes to a snapshot's disk. */
async function readDisk({ operation }: ClaimedTask, { database, sites }: WorkerContext): Promise<PluggedDisk> {
  const { attachmentId, volumeId, snapshotId } = documents.plugging(operation.input);
  const { backend: name } = await database.volume.findUniqueOrThrow({ where: { id: volumeId } });
  const backend = await sites.backend(name);
  const image = await (snapshotId === null ? backend.imageFile?.(volumeId) : backend.snapshotFile?.(snapshotId));
  if (image === undefined) throw new InvalidError("request", `Disks of backend ${name} are no files to be plugged in.`);
  const temporaryPath = snapshotId === null ? null : join(dirname(image.path), `.attached-${attachmentId}`);
  return { id: attachmentId, image: { id: volumeId, ...image }, temporaryPath };
}

/** Plugs a disk into a machine that runs, or takes it away: from one that does not run any more, only what it has left. */
export const plugTask: Handler = async (task, context, run) => {
  const { config, database } = context;
  const { instanceId, active } = documents.plugging(task.operation.input);
  const { projectId } = task.operation;
  const plugged = await readDisk(task, context);
  const instance = await database.instance.findUnique({ where: { projectId_id: { projectId, id: instanceId } } });
  if (!instance || !needsSocket(instance.driver)) throw new InvalidError("request", "The machine has no hypervisor.");
  const places = { runFolder: "", exportSocket: exportSocketOf(config, instanceId) };
  await using disks = await openRunningDisks(settingsOf(config, { instance }, places));
  run.signal.throwIfAborted();
  run.fence();
  try {
    if (!active) await disks?.unplug(plugged);
    else if (disks !== null) await disks.plug(plugged);
    else throw new InvalidError("request", "Nobody listens on the monitor of the machine.");
  } catch (error) {
    // Whoever asks waits, and can ask again.
    if (!(error instanceof EngineError)) throw error;
    throw new InvalidError("request", error.message);
  }
  if (!active && plugged.temporaryPath !== null) await rm(plugged.temporaryPath, { force: true });
  await finishPlug(database, task.operation, resultOf(task));
};
