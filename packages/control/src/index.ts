/** What the API serves: the verbs of volumes, backups, groups and repositories, their rows and their errors. */
export { cancelOperation, whyNotCancelled } from "./admin/cancel.ts";
export { forceDeleteSnapshot } from "./admin/force-delete-snapshot.ts";
export { forceDeleteVolume } from "./admin/force-delete-volume.ts";
export { changePriority } from "./admin/priority.ts";
export { requestBackupForceDelete, resetBackupStatus } from "./admin/reset-backup.ts";
export { resetGroup, resetGroupSnapshot } from "./admin/reset-group.ts";
export { resetSnapshot, updateSnapshotStatus } from "./admin/reset-snapshot.ts";
export { resetVolume } from "./admin/reset-volume.ts";
export { retryOperation, whyNotRetried } from "./admin/retry.ts";
export {
  confirmRestore,
  installationId,
  type PreparedRestore,
  prepareRestore,
  rejectRestore,
  requestBackupBeside,
} from "./backups/beside.ts";
export {
  type BackupFacets,
  type BackupsQuery,
  browseBackups,
  countBackups,
  getListedBackup,
  type ListedBackup,
} from "./backups/browse.ts";
export { type BackupChain, type ChainMember, readBackupChain } from "./backups/chain.ts";
export { requestBackup } from "./backups/create.ts";
export { requestBackupDelete, requestHiddenRemoval, whyNotDeleted } from "./backups/delete.ts";
export { holdBackup, releaseHold } from "./backups/hold.ts";
export { assertImportable, requestBackupImport } from "./backups/import.ts";
export { type BackupColumn, type BackupField, type BackupFilter, listBackups, showBackup } from "./backups/list.ts";
export { requestRestore, requestVolumeFromBackup, whyNotRestored } from "./backups/restore.ts";
export { checkRestore, type RestoreCheck } from "./backups/restore-check.ts";
export { requestSquash } from "./backups/squash.ts";
export { listHidden, undeleteBackup } from "./backups/undelete.ts";
export { type BackupChange, updateBackup } from "./backups/update.ts";
export {
  type BackupHealth,
  getBackupHealth,
  readDamagedParents,
  requestVerify,
  whyNotVerified,
} from "./backups/verify.ts";
export { type Config, type Role, roles } from "./config.ts";
export { actorOf } from "./db/actor.ts";
export type { Database } from "./db/database.ts";
export { containing, equalText, isUuid, nilUuid, type Page } from "./db/listing.ts";
export {
  AttachmentNotFoundError,
  ConfigError,
  ControlError,
  FilesUnreadableError,
  IdTakenError,
  type ImageTransferDetails,
  ImageTransferError,
  type ImageTransferProblem,
  InvalidError,
  type InvalidSubject,
  NoServiceError,
  NotFoundError,
  QuotaExceededError,
  QuotaInUseError,
  type QuotaLimit,
  type RefusalRule,
  RefusedError,
} from "./errors.ts";
export { type AuditRow, auditedResources, listAudit, noteAudit } from "./events/audit.ts";
export {
  type Change,
  type Changes,
  type Cursor,
  changesBehindMax,
  formatCursor,
  isAfter,
  parseCursor,
  readChanges,
} from "./events/changes.ts";
export {
  deleteMessage,
  getMessage,
  keptUntil,
  listMessages,
  type MessageFilter,
  type MessageRow,
  type MessageSortKey,
} from "./events/messages.ts";
export { type DeliveryRow, deliveryStates, listDeliveries, retryDelivery } from "./events/notifications.ts";
export {
  addCustomEvent,
  getOvirtEvent,
  listOvirtEvents,
  type OvirtEventKind,
  type OvirtEventRow,
  removeOvirtEvent,
  tellOvirtEvent,
} from "./events/ovirt-events.ts";
export { type AcceptedGroupOperation, requestGroupBackup, requestGroupSnapshot } from "./groups/backup.ts";
export { requestGroupBackupDelete, requestGroupSnapshotDelete } from "./groups/delete.ts";
export { requestGroupFromSource } from "./groups/from-source.ts";
export {
  createGroupType,
  deleteGroupType,
  type GroupTypeSortKey,
  getGroupType,
  listGroupTypes,
  updateGroupType,
} from "./groups/group-types.ts";
export {
  createGroup,
  deleteGroup,
  deleteInstanceGroup,
  type GroupFilter,
  type GroupSortKey,
  listGroups,
  listInstanceGroups,
  updateGroup,
} from "./groups/groups.ts";
export {
  attachInstanceVolume,
  createInstance,
  deleteInstance,
  detachInstanceVolume,
  getInstance,
  type InstanceDriver,
  type InstanceRow,
  instanceDrivers,
  listInstances,
  needsSocket,
  powerStates,
  updateInstance,
} from "./groups/instances.ts";
export { requestGroupRestore } from "./groups/restore.ts";
export {
  type GroupBackupRow,
  type GroupSnapshotFilter,
  type GroupSnapshotRow,
  type GroupSnapshotSortKey,
  getGroupSnapshot,
  groupBackupStatus,
  listGroupBackups,
  listGroupSnapshots,
} from "./groups/snapshots.ts";
export { type FilesSubject, openFiles } from "./image-transfers/files.ts";
export { imageServerAuthority, listImageServers } from "./image-transfers/servers.ts";
export {
  cancelImageTransfer,
  extendImageTransfer,
  finalizeImageTransfer,
  getImageTransfer,
  type ImageTransfer,
  type ImageTransferRequest,
  listImageTransfers,
  pauseImageTransfer,
  requestImageTransfer,
  resumeImageTransfer,
  type TimeoutPolicy,
} from "./image-transfers/transfers.ts";
export {
  type BandwidthLimitRow,
  limitKeyOf,
  listBandwidthLimits,
  rateAt,
  removeBandwidthLimit,
  setBandwidthLimit,
} from "./limits/bandwidth.ts";
export {
  finalizeMachineBackup,
  getMachineBackup,
  listMachineBackups,
  type NewMachineBackup,
  requestMachineBackup,
} from "./machines/backups.ts";
export { getCheckpoint, listCheckpoints, removeCheckpoint } from "./machines/checkpoints.ts";
export {
  biosTypes,
  bootDevices,
  type MachineConfiguration,
  machineTypes,
} from "./machines/configuration.ts";
export { activeDescription, activeSnapshotId, describeMachine, type FormatOf } from "./machines/describe.ts";
export {
  attachDisk,
  attachSnapshotDisk,
  changeDisk,
  type DiskChange,
  type DiskSettings,
  detachDisk,
  isDiskInterface,
} from "./machines/disks.ts";
export { readFreeze, setFrozen } from "./machines/freeze.ts";
export { createMachineFromOvf, type MadeFromOvf } from "./machines/from-ovf.ts";
export {
  createMachine,
  getMachine,
  listMachines,
  type MachineChange,
  type MachineDisk,
  type MachineRow,
  type PowerVerb,
  setPower,
  updateMachine,
} from "./machines/machines.ts";
export { addNic, isNicInterface, type NicChange, removeNic, updateNic } from "./machines/nics.ts";
export { removeMachine } from "./machines/remove.ts";
export {
  commitMachineSnapshot,
  previewMachineSnapshot,
  restoreMachineSnapshot,
  undoMachineSnapshot,
} from "./machines/revert.ts";
export {
  getMachineSnapshot,
  listMachineSnapshots,
  type MachineSnapshot,
  nicsOfSnapshot,
  removeMachineSnapshot,
  takeMachineSnapshot,
} from "./machines/snapshots.ts";
export { type Alert, countAlerts } from "./overview/alerts.ts";
export { type MachineFacts, readMachineFacts } from "./overview/machines.ts";
export { readOperationTasks, type TaskRow } from "./overview/operation-tasks.ts";
export { type Overview, readOverview } from "./overview/overview.ts";
export { listProjects, type ProjectFacts } from "./overview/projects.ts";
export { type QueueState, readQueue, type TaskCounts } from "./overview/queue.ts";
export { readRanges } from "./overview/ranges.ts";
export { getRepository, listRepositories, type PassRow, type RepositoryFacts } from "./overview/repositories.ts";
export { readSamples, type SampleStep } from "./overview/samples.ts";
export { type Hit, search } from "./overview/search.ts";
export { endSnooze, snoozeAlert } from "./overview/snoozes.ts";
export { explainOperation, type Why } from "./overview/why.ts";
export { type KnownWorker, listWorkers } from "./overview/workers.ts";
export { isOwnPlace } from "./own-places.ts";
export {
  type AppliedPolicy,
  assignPolicy,
  listAssignments,
  policyOfVolume,
  unassignPolicy,
} from "./policies/assignments.ts";
export { listDays, type VolumeDays } from "./policies/days.ts";
export { runPolicy } from "./policies/due-runs.ts";
export {
  createPolicy,
  dueTimes,
  getPolicy,
  listPolicies,
  type PolicyRow,
  removePolicy,
  type Successor,
  updatePolicy,
} from "./policies/policies.ts";
export { previewRetention, type RetentionPreview } from "./policies/preview.ts";
export {
  countProtection,
  excludeVolume,
  getProtection,
  includeVolume,
  type ListedProtection,
  listProtection,
  type ProtectionRow,
} from "./policies/protection.ts";
export { getRun, listRuns, type RunRow } from "./policies/runs.ts";
export { type SimulationResult, simulatePolicy } from "./policies/simulate.ts";
export { mayLook, type Principal, rolesInForce, seesAll } from "./principal.ts";
export type { SeenVolume } from "./queue/documents.ts";
export { verifyModes } from "./queue/documents.ts";
export { getOperation, listOperations, type OperationProgress, type OperationQuery } from "./queue/list-operations.ts";
export { type OperationKind, operationStates, readOperationEnd } from "./queue/operations.ts";
export { listServices, listZones, type ServiceRow, setService } from "./queue/services.ts";
export type { Json } from "./queue/tasks.ts";
export { requestReap } from "./repositories/reap.ts";
export { requestRescan } from "./repositories/rescan.ts";
export { type Backup, type BackupRow, countDependents, getBackup } from "./rows/backups.ts";
export { assertInstanceGroup, type GroupRow, type GroupType, getGroup, instanceGroupType } from "./rows/groups.ts";
export type { MachineBackupRow, MachineCheckpointRow } from "./rows/machine-backups.ts";
export type { PolicyAssignment as PolicyAssignmentRow } from "./rows/policies.ts";
export type { PolicyRunItem as PolicyRunItemRow } from "./rows/policy-runs.ts";
export {
  getDefaultQuota,
  getQuota,
  getQuotaClass,
  type QuotaLimits,
  type QuotaLine,
  resetQuota,
  setQuota,
  setQuotaClass,
} from "./rows/quotas.ts";
export { getSnapshot, type SnapshotRow } from "./rows/snapshots.ts";
export { type Attachment, GiB, getVolume, gibOf, type VolumeRow } from "./rows/volumes.ts";
export { findToken, isOfCredential, issueToken, revokeToken } from "./sign-in/tokens.ts";
export { backupTransitions, snapshotTransitions, volumeTransitions } from "./states.ts";
export type { Logger } from "./telemetry/telemetry.ts";
export { devicePath, formatIn } from "./volume-backends.ts";
export { requestVolumeAdoption } from "./volumes/adopt.ts";
export {
  attachVolume,
  beginDetaching,
  detachVolume,
  reserveVolume,
  rollDetaching,
  setVolumeReadOnly,
  unreserveVolume,
} from "./volumes/attach.ts";
export {
  type AttachMode,
  type AttachmentFilter,
  type AttachmentRow,
  type AttachmentSortKey,
  type Connector,
  completeAttachment,
  createAttachment,
  deleteAttachment,
  getAttachment,
  listAttachments,
  updateAttachment,
} from "./volumes/attachments.ts";
export { requestVolume } from "./volumes/create.ts";
export { requestVolumeDelete } from "./volumes/delete.ts";
export { requestVolumeExport } from "./volumes/export.ts";
export { requestVolumeExtend } from "./volumes/extend.ts";
export { requestVolumeImport } from "./volumes/import.ts";
export {
  listVolumes,
  summarizeVolumes,
  type TimeCondition,
  type VolumeFilter,
  type VolumeSortKey,
} from "./volumes/list.ts";
export {
  changeSnapshotMetadata,
  changeVolumeMetadata,
  type Metadata,
  type MetadataChange,
} from "./volumes/metadata.ts";
export { type HostUse, listPools, type Pool, useOfHost } from "./volumes/pools.ts";
export { requestSnapshotDelete } from "./volumes/snapshot-delete.ts";
export {
  listSnapshots,
  requestSnapshot,
  type SnapshotFilter,
  type SnapshotSortKey,
  updateSnapshot,
} from "./volumes/snapshots.ts";
export {
  acceptTransfer,
  createTransfer,
  deleteTransfer,
  getTransfer,
  listTransfers,
  type TransferFilter,
  type TransferRow,
  type TransferSortKey,
} from "./volumes/transfers.ts";
export { updateVolume } from "./volumes/update.ts";
