export { toldContainer } from "@tephra/format";
export type { BackupReference } from "./backup-reference.ts";
export {
  type Compression,
  codecOf,
  compressions,
  levelDefault,
  parseCompression,
  requireEncoder,
  type ZlibEncoder,
  zlibEncoders,
} from "./compression.ts";
export type { MasterKeySource } from "./encryption/master-keys.ts";
export { type Engine, openEngine } from "./engine.ts";
export * from "./errors.ts";
export { type ExportRecordInput, encodeExportRecord } from "./export-record.ts";
export { cutRanges, type Extent } from "./extents.ts";
export { findPlaces, type ListedPlace } from "./find-places.ts";
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
export { type HypervisorSettings, openHypervisor } from "./hypervisor/open-hypervisor.ts";
export { idsIn } from "./ids-in.ts";
export {
  decodeExportRecord,
  findRecord,
  type ImportRecord,
  keepRecord,
  locateRecord,
  parseRecordText,
  serviceMatches,
} from "./import-record.ts";
export { type BackupLayout, checkLayout, checkPrefix } from "./layout.ts";
export {
  describeBackup,
  findBackups,
  holdsOnlyBackups,
  isOnlyHere,
  isStored,
  type ListedBackup,
} from "./list-backups.ts";
export type { RangeReport } from "./range-report.ts";
export { openRepository, type RepositorySettings } from "./repository/open-repository.ts";
export {
  type Leftover,
  type ObjectKey,
  parseContainer,
  type Repository,
  stagingContainer,
} from "./repository/repository.ts";
export { redactRepositoryUrl } from "./repository/repository-url.ts";
export { type RescannedBackup, recordOf, rescan } from "./rescan.ts";
export type { RestoreRange } from "./restore.ts";
export { type RewrapResult, rewrap } from "./rewrap.ts";
export { type RunContext, type WriteContext, writableForever } from "./run-context.ts";
export type { SealResult } from "./seal.ts";
export { type Drill, type VerifyResult, verifyListing } from "./verify.ts";
export { type ExportRun, exportLeftovers, removeExportDrafts } from "./volume/export-file.ts";
export { type BackendLeftover, FileBackend, openFileBackend } from "./volume/file-backend.ts";
export { openFileSource, openOperatorSource } from "./volume/file-source.ts";
export { openPathTarget, type PathTarget } from "./volume/file-target.ts";
export type { UserPlaces } from "./volume/user-path.ts";
export type { VolumeSource, VolumeTarget } from "./volume/volume.ts";
export { encodeVolumeMeta, type VolumeMetaInput } from "./volume-meta.ts";
