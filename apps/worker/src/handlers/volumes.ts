import {
  type ClaimedTask,
  chargeImport,
  finishVolume,
  finishVolumeDelete,
  finishVolumeExport,
  type TaskOperation,
} from "@tephra/control";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";

async function loadVolume({ operation }: ClaimedTask, { database, sites }: WorkerContext) {
  const volume = await database.volume.findUniqueOrThrow({ where: { id: operation.volumeId ?? "" } });
  return { operation, volume, backend: await sites.backend(volume.backend) };
}

const pathOf = (operation: TaskOperation): string => (operation.input as { path: string }).path;

/** An empty volume: a sparse file of its length. */
export const provisionVolumeTask: Handler = async (task, context) => {
  const { volume, backend } = await loadVolume(task, context);
  await backend.create(volume.id, Number(volume.sizeBytes));
  await finishVolume(context.database, task.operation, resultOf(task), Number(volume.sizeBytes));
};

/** A user's file becomes the volume, exactly as long as it is. The quota learns the size before anything is copied. */
export const importVolumeTask: Handler = async (task, context, run) => {
  const { operation, volume, backend } = await loadVolume(task, context);
  const roots = context.config.import_roots;
  const seen = await backend.statImport(pathOf(operation), { roots });
  await chargeImport(context.database, context.config, operation, seen.sizeBytes);
  const { sizeBytes } = await backend.importFile(pathOf(operation), volume.id, { roots }, run);
  if (sizeBytes !== seen.sizeBytes) await chargeImport(context.database, context.config, operation, sizeBytes);
  const result = resultOf(task, { bytesDone: sizeBytes, bytesStored: sizeBytes });
  await finishVolume(context.database, task.operation, result, sizeBytes);
};

export const exportVolumeTask: Handler = async (task, context, run) => {
  const { operation, volume, backend } = await loadVolume(task, context);
  const { sizeBytes } = await backend.exportFile(
    volume.id,
    pathOf(operation),
    { roots: context.config.import_roots },
    run,
  );
  await finishVolumeExport(
    context.database,
    task.operation,
    resultOf(task, { bytesDone: sizeBytes, bytesStored: sizeBytes }),
  );
};

export const removeVolumeTask: Handler = async (task, context, run) => {
  const { volume, backend } = await loadVolume(task, context);
  run.fence();
  await backend.remove(volume.id);
  await finishVolumeDelete(context.database, task.operation, resultOf(task));
};
