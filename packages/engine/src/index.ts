export { toldContainer } from "@tephra/format";
export { type ChangedParts, divideChanges, readChanges } from "./backup/changed-parts.ts";
export type { SealResult } from "./backup/seal.ts";
export { findPlaces, type ListedPlace } from "./catalogue/find-places.ts";
export {
  decodeExportRecord,
  findRecord,
  type ImportRecord,
  keepRecord,
  locateRecord,
  parseRecordText,
  serviceMatches,
} from "./catalogue/import-record.ts";
export {
  describeBackup,
  findBackups,
  holdsOnlyBackups,
  isOnlyHere,
  isStored,
  type ListedBackup,
  withoutReplaced,
} from "./catalogue/list-backups.ts";
export { type RescannedBackup, recordOf, rescan } from "./catalogue/rescan.ts";
export { type RewrapResult, rewrap } from "./catalogue/rewrap.ts";
export type { BackupReference } from "./chain/backup-reference.ts";
export { verifyListing } from "./chain/compare-listing.ts";
export {
  type Compression,
  codecOf,
  compressions,
  levelDefault,
  parseCompression,
  requireEncoder,
  type ZlibEncoder,
  zlibEncoders,
} from "./codec/compression.ts";
export type { MasterKeySource } from "./encryption/master-keys.ts";
export { type Engine, openEngine } from "./engine.ts";
export * from "./errors.ts";
export type { ListedFile } from "./files/answer.ts";
export type { PartitionDetails } from "./files/detect.ts";
export { type DiskBytes, type FileContent, FileReaders } from "./files/file-readers.ts";
export { type ExportRecordInput, encodeExportRecord } from "./format/export-record.ts";
export { cutRanges, type Extent } from "./format/extents.ts";
export { idsIn } from "./format/ids-in.ts";
export { type BackupLayout, checkLayout, checkPrefix } from "./format/layout.ts";
export type { RangeReport } from "./format/range-report.ts";
export { encodeVolumeMeta, type VolumeMetaInput } from "./format/volume-meta.ts";
export { chooseHashing } from "./hashing/choose-hashing.ts";
export {
  type Consistency,
  type Disk,
  type Hypervisor,
  type PowerState,
  powerStates,
  type TogetherOptions,
  type TogetherResult,
} from "./hypervisor/hypervisor.ts";
export type {
  BackupOptions,
  Daemon,
  DiskExport,
  MachineBackup,
  MachineDisk,
  MachineDisks,
  MergeOptions,
  Moment,
  MomentOptions,
  PluggedDisk,
  StartedBackup,
} from "./hypervisor/machine-disks.ts";
export { removeScratchFiles } from "./hypervisor/qmp/disks/backup.ts";
export { freezeGuest, type GuestSettings, thawGuest } from "./hypervisor/qmp/freeze-guest.ts";
export { endDaemon } from "./hypervisor/qmp/pool.ts";
export {
  type HypervisorSettings,
  type MachineDisksSettings,
  openHypervisor,
  openMachineDisks,
  openRunningDisks,
} from "./open-hypervisor.ts";
export { openRepository, type RepositorySettings } from "./open-repository.ts";
export { openVolumeBackend, type VolumeBackendSettings } from "./open-volume-backend.ts";
export {
  type Leftover,
  type ObjectKey,
  parseContainer,
  type Repository,
  stagingContainer,
} from "./repository/repository.ts";
export { redactRepositoryUrl } from "./repository/repository-url.ts";
export type { RestoreRange } from "./restore/restore.ts";
export type { Drill, VerifyResult } from "./restore/verify.ts";
export { type RunContext, type WriteContext, writableForever } from "./run/run-context.ts";
export type { SquashCounts, SquashShape } from "./squash/squash.ts";
export type {
  BackendLeftover,
  ExportRun,
  HeldTarget,
  RestoredProperties,
  RunningLayer,
  SourceReference,
  UserPlaces,
  VolumeBackend,
} from "./volume/backend.ts";
export { exportLeftovers, removeExportDrafts } from "./volume/file/export-file.ts";
export { openFileSource } from "./volume/file/file-source.ts";
export type { PathTarget } from "./volume/file/file-target.ts";
export { BackupExport } from "./volume/nbd/backup-export.ts";
export { openNamedSource, openNamedTarget } from "./volume/operator-volume.ts";
export { imageOf } from "./volume/qemu/image-of-source.ts";
export { unpackImage } from "./volume/qemu/unpack-image.ts";
export type { VolumeSource, VolumeTarget } from "./volume/volume.ts";
