/** The requests to the routes below `/ops`, and their answers. Nothing but schemas and types, so that a browser program can import it, too. */
export type { About } from "./about.ts";
export { type AnswerOf, answers, type OpsAnswers, type OpsRouteKey } from "./answers.ts";
export type { AuditEntry } from "./audit.ts";
export {
  type BackupChain,
  type BackupDetails,
  type BackupHealth,
  type DeletedBackup,
  type ListedBackup,
  proofAges,
  type RestoreCheck,
} from "./backups.ts";
export type { Change, Pulse } from "./changes.ts";
export type { ListedFile, Partition } from "./files.ts";
export type { GroupSnapshot, Instance, ListedInstance } from "./instances.ts";
export { type BandwidthLimit, weekDays } from "./limits.ts";
export type { Notification } from "./notifications.ts";
export type { Operation, OperationDetails, OperationResult } from "./operations.ts";
export type { Alert, Overview, WorkerCard } from "./overview.ts";
export type {
  Policy,
  PolicyAssignment,
  PolicyDetails,
  PolicyRun,
  PolicyRunItem,
  PolicySimulation,
  RetentionPreview,
  VolumePolicy,
} from "./policies.ts";
export type { Project } from "./projects.ts";
export type { QueueState } from "./queue.ts";
export { queuePlaces } from "./queue-places.ts";
export type { Proof, Repository, RepositoryDetails, RepositorySummary } from "./repositories.ts";
export { type BodyOf, requests } from "./requests.ts";
export { type Samples, sampleSeries } from "./samples.ts";
export type { Session, SignIn } from "./sessions.ts";
export type { ProtectedVolume, VolumeDetails, VolumeProtection } from "./volumes.ts";
