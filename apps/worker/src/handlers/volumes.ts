import { InvalidError } from "@tephra/control";
import {
  beginVolumeDelete,
  type ClaimedTask,
  chargeImport,
  checkAdoption,
  documents,
  finishVolume,
  finishVolumeAdoption,
  finishVolumeDelete,
  finishVolumeExport,
  finishVolumeExtend,
  type TaskOperation,
} from "@tephra/control/work";
import { removeExportDrafts } from "@tephra/engine";
import { type Handler, resultOf, userPlaces, type WorkerContext } from "../context.ts";

const GiB = 1024 ** 3;

async function loadVolume({ operation }: ClaimedTask, { database, sites }: WorkerContext) {
  const volume = await database.volume.findUniqueOrThrow({ where: { id: operation.volumeId ?? "" } });
  return { operation, volume, backend: await sites.backend(volume.backend) };
}

const pathOf = (operation: TaskOperation): string => documents.volumeImport(operation.input).path;

/** An empty volume: a sparse file of its length. */
export const provisionVolumeTask: Handler = async (task, context) => {
  const { volume, backend } = await loadVolume(task, context);
  await backend.create(volume.id, Number(volume.sizeBytes));
  await finishVolume(context.database, task.operation, resultOf(task), Number(volume.sizeBytes));
};

/** A volume with the bytes of another one or of a snapshot, at one instant. */
export const cloneVolumeTask: Handler = async (task, context, run) => {
  const { operation, volume, backend } = await loadVolume(task, context);
  const source = documents.volumeSource(operation.input);
  const { sizeBytes } = await backend.clone(source, volume.id, Number(volume.sizeBytes), run);
  const result = resultOf(task, { bytesDone: sizeBytes, bytesStored: sizeBytes });
  await finishVolume(context.database, task.operation, result, sizeBytes);
};

export const extendVolumeTask: Handler = async (task, context, run) => {
  const { operation, volume, backend } = await loadVolume(task, context);
  const { sizeBytes: asked } = documents.extension(operation.input);
  run.fence();
  await backend.extend(volume.id, asked);
  const { sizeBytes } = await backend.measure(volume.id);
  const size = Math.ceil(sizeBytes / GiB);
  if (size > Math.ceil(asked / GiB)) {
    throw new InvalidError("request", `Volume ${volume.id} has ${sizeBytes} bytes by now: extend it to ${size} GiB.`);
  }
  await finishVolumeExtend(context.database, task.operation, resultOf(task), { asked, sizeBytes });
};

/** A user's file becomes the volume, with its exact length. The size is charged to the quota before anything is copied. */
export const importVolumeTask: Handler = async (task, context, run) => {
  const { operation, volume, backend } = await loadVolume(task, context);
  const places = userPlaces(context.config);
  const seen = await backend.statImport(pathOf(operation), places);
  await chargeImport(context.database, context.config, operation, seen.sizeBytes);
  const { sizeBytes } = await backend.importFile(pathOf(operation), volume.id, places, run);
  if (sizeBytes !== seen.sizeBytes) await chargeImport(context.database, context.config, operation, sizeBytes);
  const result = resultOf(task, { bytesDone: sizeBytes, bytesStored: sizeBytes });
  await finishVolume(context.database, task.operation, result, sizeBytes);
};

/** The file that exists under an earlier id, or a user's file placed there, becomes the volume of that id. Nothing existing is replaced. */
export const adoptVolumeTask: Handler = async (task, context, run) => {
  const { config, database, sites } = context;
  const { operation } = task;
  const { volumeId, path, image = null, backend: name } = documents.adoption(operation.input);
  const backend = await sites.backend(name);
  if (image !== null) {
    if (backend.adoptImage === undefined) {
      throw new InvalidError("request", `Volume backend ${name} takes no images from where they are.`);
    }
    const { sizeBytes } = await backend.adoptImage(image, volumeId, run);
    await finishVolumeAdoption(database, config, operation, resultOf(task, { bytesDone: sizeBytes }), sizeBytes);
    return;
  }
  const places = userPlaces(config);
  const { sizeBytes } = path === null ? await backend.measure(volumeId) : await backend.statImport(path, places);
  await checkAdoption(database, config, operation, sizeBytes);
  if (path !== null) await backend.importIfAbsent(path, volumeId, places, run);
  const placed = await backend.measure(volumeId);
  const result = resultOf(task, { bytesDone: placed.sizeBytes, bytesStored: path === null ? 0 : placed.sizeBytes });
  await finishVolumeAdoption(database, config, operation, result, placed.sizeBytes);
};

export const exportVolumeTask: Handler = async (task, context, run) => {
  const { operation, volume, backend } = await loadVolume(task, context);
  const { path, overwrite = true } = documents.volumeExport(operation.input);
  const places = userPlaces(context.config);
  const draft = { operationId: task.operationId, claim: task.claim };
  const { sizeBytes } = await backend.exportFile(volume.id, path, { places, run: draft, overwrite }, run);
  const result = resultOf(task, { bytesDone: sizeBytes, bytesStored: sizeBytes });
  await finishVolumeExport(context.database, task.operation, result);
  await removeExportDrafts(path, places, draft);
};

/** Snapshots that still exist were given up together with their volume. */
export const removeVolumeTask: Handler = async (task, context, run) => {
  const { volume, backend } = await loadVolume(task, context);
  const snapshots = await context.database.snapshot.findMany({ where: { volumeId: volume.id }, select: { id: true } });
  await beginVolumeDelete(context.database, task.operation);
  run.fence();
  for (const { id } of snapshots) await backend.thaw(id);
  await backend.remove(volume.id);
  await finishVolumeDelete(context.database, task.operation, resultOf(task));
};
