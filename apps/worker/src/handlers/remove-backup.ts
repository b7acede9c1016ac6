import { beginBackupDelete, finishBackupDelete, letGoOfMerged } from "@tephra/control/work";
import { type Handler, resultOf } from "../context.ts";

/** Removes `_metadata` first, then the rest; objects shared with another live row stay. Missing objects count as removed. */
export const removeBackupTask: Handler = async (task, { config, database, engine, sites }, run) => {
  const removal = await beginBackupDelete(database, task.operation);
  if (removal) {
    const repository = await sites.repository(removal.repository);
    await engine.removeBackup({ repository, container: removal.container, prefix: removal.prefix }, run);
  }
  const wasMerged = await finishBackupDelete(database, task.operation, resultOf(task));
  if (wasMerged) await letGoOfMerged(database, config, task.operation.backupId);
};
