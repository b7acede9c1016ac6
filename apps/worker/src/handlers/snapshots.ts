import { beginSnapshotDelete, type ClaimedTask, finishSnapshot, finishSnapshotDelete } from "@tephra/control/work";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";

async function loadSnapshot({ operation }: ClaimedTask, { database, sites }: WorkerContext) {
  const snapshot = await database.snapshot.findUniqueOrThrow({
    where: { id: operation.snapshotId ?? "" },
    include: { volume: true },
  });
  return { snapshot, backend: await sites.backend(snapshot.volume.backend) };
}

/** The volume's bytes at one instant, or a clear error: a copy made while somebody writes is not a point in time. */
export const takeSnapshotTask: Handler = async (task, context, run) => {
  const { snapshot, backend } = await loadSnapshot(task, context);
  const { sizeBytes } = await backend.freeze(snapshot.volumeId, snapshot.id, run);
  await finishSnapshot(context.database, task.operation, resultOf(task, { bytesDone: sizeBytes }), sizeBytes);
};

export const removeSnapshotTask: Handler = async (task, context, run) => {
  const { snapshot, backend } = await loadSnapshot(task, context);
  await beginSnapshotDelete(context.database, task.operation);
  run.fence();
  await backend.thaw(snapshot.id);
  await finishSnapshotDelete(context.database, task.operation, resultOf(task));
};
