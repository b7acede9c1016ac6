/** What workers do with tasks: claim, plan, report, finish. The API imports none of it. */

export { installationId } from "./backups/beside.ts";
export {
  distrustChanges,
  finishBackup,
  finishCopy,
  planBackup,
  rangesMax,
  readCopyReports,
  reopenRanges,
  startCopy,
} from "./backups/create-work.ts";
export { beginBackupDelete, finishBackupDelete, letGoOfMerged } from "./backups/delete.ts";
export { finishBackupImport, type ImportedBackup, nameImport } from "./backups/import.ts";
export {
  claimsWereLost,
  finishPreparedRestore,
  finishRestore,
  finishRestoreRange,
  planRestore,
  restoreTargetOf,
  startRestoreRanges,
} from "./backups/restore-work.ts";
export {
  finishSquash,
  finishSquashRange,
  finishSquashTidy,
  leftBySquash,
  planSquash,
  readSquashReports,
  startSquashRanges,
} from "./backups/squash-work.ts";
export {
  finishVerify,
  finishVerifyRange,
  planVerify,
  readVerifyReports,
  startVerifyRanges,
} from "./backups/verify.ts";
export { type StoredVolume, storedVolume } from "./backups/volume-meta.ts";
export { inTransaction } from "./db/database.ts";
export { isDatabaseBusy } from "./db/outage.ts";
export { ClaimLostError, MalformedDocumentError, NewerDocumentError, OperationEndedError } from "./errors.ts";
export {
  type DueDelivery,
  markDelivered,
  markUndelivered,
  spreadNotifications,
  takeDeliveries,
  targetsOf,
} from "./events/notifications.ts";
export { finishGroupBackup, finishGroupSnapshot } from "./groups/backup.ts";
export { beginGroupDelete, finishGroupDelete } from "./groups/delete.ts";
export { assertPartsDone, readParts } from "./groups/parts.ts";
export {
  assertShutOff,
  beginPublishing,
  finishGroupRestore,
  type PreparedVolume,
  preparedVolumes,
} from "./groups/restore.ts";
export {
  type Activity,
  claimTransfer,
  endImageTransfer,
  endSilence,
  nameDraft,
  noteActivity,
  openTransfer,
  type TransferEnd,
  transferByTicket,
  transfersOf,
} from "./image-transfers/serve.ts";
export {
  type ImageServerCard,
  publishImageServer,
  succeedImageServers,
  withdrawImageServer,
} from "./image-transfers/servers.ts";
export { newTicket, ticketKey } from "./image-transfers/ticket.ts";
export {
  type BandwidthLimit,
  burstSeconds,
  type LimitKey,
  rateAt,
  reserveBandwidth,
  type Traffic,
} from "./limits/bandwidth.ts";
export {
  type BackedUpMachine,
  backupsOf,
  beginMachineBackup,
  endLeftovers,
  endMachineBackup,
  forgetCheckpoints,
  hasLeftovers,
  invalidateCheckpoints,
  machineOf,
  noteDaemon,
  readyMachineBackup,
} from "./machines/backup-work.ts";
export { finishFreeze, noteFrozen, readFreeze } from "./machines/freeze.ts";
export { finishPlug } from "./machines/plug.ts";
export { beginRevert, continuePreview, finishRevert } from "./machines/revert.ts";
export { type Lane, lanes, type Priority, priorities } from "./priorities.ts";
export { type Dispatched, type Enqueue, type OwnWorker, startDispatcher } from "./queue/dispatcher.ts";
export {
  type BackupPlan,
  checkDocuments,
  documents,
  type ReapInput,
  type RestorePlan,
  type VerifyPlan,
} from "./queue/documents.ts";
export { finishTidy, hasSucceeded, isPublishing, startOperation } from "./queue/operations.ts";
export { isHostDisabled } from "./queue/services.ts";
export {
  type ClaimedTask,
  cancelTask,
  claimTask,
  finishTask,
  handBackTask,
  quietMsOf,
  readUnclaimed,
  renewLeases,
  retryTaskLater,
  type TaskKind,
  type TaskOperation,
  type TaskResult,
  taskRanks,
  UnknownTaskError,
  undispatchTask,
  waitTask,
} from "./queue/tasks.ts";
export {
  encoderNeeds,
  laneQueues,
  needToRead,
  needToWrite,
  type PlaceCard,
  type Published,
  publishWorker,
  queueFor,
  withdrawWorker,
} from "./queue/workers.ts";
export {
  areBusy,
  condemnPlace,
  exportFolders,
  finishReap,
  graceBegan,
  isForgottenFile,
  judgePlace,
  type ReapCounts,
  type ReapResult,
  readContainers,
} from "./repositories/reap.ts";
export { enterBackups, type FoundBackup, finishRescan } from "./repositories/rescan.ts";
export { readChain, wholeChain } from "./rows/chains.ts";
export { cancelledPhases, type ImageTransferRow, isIn } from "./rows/image-transfers.ts";
export { findMachineBackup, type MachineBackupRow } from "./rows/machine-backups.ts";
export { events } from "./telemetry/telemetry.ts";
export { type Failure, failOperation } from "./upkeep/failing.ts";
export { imageRoots } from "./volume-backends.ts";
export { checkAdoption, finishVolumeAdoption } from "./volumes/adopt.ts";
export { finishVolume } from "./volumes/create.ts";
export { beginVolumeDelete, finishVolumeDelete } from "./volumes/delete.ts";
export { finishVolumeExport } from "./volumes/export.ts";
export { finishVolumeExtend } from "./volumes/extend.ts";
export { chargeImport } from "./volumes/import.ts";
export { beginSnapshotDelete, finishSnapshotDelete } from "./volumes/snapshot-delete.ts";
export { finishSnapshot } from "./volumes/snapshots.ts";
