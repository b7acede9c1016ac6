/** Every error a verb of the control plane can throw. Each dialect maps `code` to its own form in one place. */
export abstract class ControlError extends Error {
  abstract readonly code: string;
  override get name(): string {
    return this.constructor.name;
  }
}

export interface ConfigProblem {
  key: string;
  problem: string;
}

/** The configuration cannot be used; `problems` has every reason with its key. */
export class ConfigError extends ControlError {
  readonly code = "config";
  readonly problems: readonly ConfigProblem[];
  constructor(problems: readonly ConfigProblem[], options?: ErrorOptions) {
    super(`Invalid configuration:\n${problems.map((p) => `  ${p.key}: ${p.problem}`).join("\n")}`, options);
    this.problems = problems;
  }
}

export type ResourceKind =
  | "Backup"
  | "Deleted backup"
  | "Volume"
  | "Snapshot"
  | "Instance"
  | "Network interface"
  | "Group"
  | "Group type"
  | "GroupSnapshot"
  | "Operation"
  | "Message"
  | "Transfer"
  | "Event"
  | "Image transfer"
  | "Machine backup"
  | "Machine checkpoint"
  | "Notification"
  | "Repository"
  | "Policy"
  | "Policy assignment"
  | "Limit"
  | "Alert"
  | "Snooze"
  | "Policy run";

/** Why an image transfer is refused, or cannot do what is asked. `disk-…` are about the volume, `backup-…` about a backup of it. */
export type ImageTransferProblem =
  | "disk-unknown"
  | "disk-illegal"
  | "disk-locked"
  | "disk-plugged"
  | "disk-transferring"
  | "format-not-applicable"
  | "snapshot-read-only"
  | "no-server"
  | "backup-unknown"
  | "backup-not-ready"
  | "backup-lacks-disk"
  | "backup-format"
  | "backup-upload"
  | "download-cannot-pause"
  | "not-pausable"
  | "not-paused"
  | "not-finalizable"
  | "ended";

export interface ImageTransferDetails {
  /** The volume's name, or its id where it has none. */
  disk?: string;
  /** The machines that run with it, by name. */
  machines?: readonly string[];
  /** The transfer's. */
  phase?: string;
}

export class ImageTransferError extends ControlError {
  readonly code = "image-transfer";
  readonly problem: ImageTransferProblem;
  readonly details: ImageTransferDetails;
  constructor(problem: ImageTransferProblem, details: ImageTransferDetails = {}) {
    super(`Image transfer refused: ${problem} ${JSON.stringify(details)}`);
    this.problem = problem;
    this.details = details;
  }
}

/** Unknown id, or one that the caller may not see: the two are not told apart. */
export class NotFoundError extends ControlError {
  readonly code = "not-found";
  readonly resource: ResourceKind;
  readonly id: string;
  constructor(resource: ResourceKind, id: string) {
    super(`${resource} ${id} could not be found.`);
    this.resource = resource;
    this.id = id;
  }
}

/** An attachment that does not exist, or that the caller may not see: Cinder's message for it has another form. */
export class AttachmentNotFoundError extends ControlError {
  readonly code = "not-found";
  constructor(id: string) {
    super(`Volume attachment could not be found with filter: attachment_id = ${id}.`);
  }
}

/** `request` is for messages that Cinder sends without a class prefix. */
export type InvalidSubject = "volume" | "snapshot" | "backup" | "group" | "group-snapshot" | "input" | "request";

/** The request does not fit the state of its subject, or the values given. `message` is Cinder's own text without its class prefix. */
export class InvalidError extends ControlError {
  readonly code = "invalid";
  readonly subject: InvalidSubject;
  constructor(subject: InvalidSubject, message: string) {
    super(message);
    this.subject = subject;
  }
}

/** Why a verb on a machine, its disks or its snapshots is refused: each dialect has words of its own for it. */
export type RefusalRule =
  | "squash-going-on"
  | "not-cancellable"
  | "not-retryable"
  | "not-live"
  | "machine-locked"
  | "machine-running"
  | "machine-not-running"
  | "machine-not-down"
  | "in-preview"
  | "machine-unreachable"
  | "machine-has-backups"
  | "machine-protected"
  | "machine-id-taken"
  | "machine-name-taken"
  | "power-not-controlled"
  | "configuration-invalid"
  | "ovf-unreadable"
  | "during-backup"
  | "during-snapshot"
  | "disks-locked"
  | "disk-unknown"
  | "disk-attached"
  | "disk-attached-elsewhere"
  | "disk-illegal"
  | "disk-active"
  | "disk-inactive"
  | "disk-of-snapshot"
  | "disk-plugged"
  | "snapshot-unknown"
  | "snapshot-not-regular"
  | "snapshot-locked"
  | "snapshot-lacks-disk"
  | "snapshot-attached"
  | "restore-unsupported"
  | "disks-unknown"
  | "disks-not-attached"
  | "disks-inactive"
  | "disks-not-backed-up"
  | "checkpoint-unknown"
  | "checkpoint-invalid"
  | "backup-id-taken"
  | "no-backup-host"
  | "backup-has-transfer"
  | "nic-name-taken"
  | "mac-taken";

/** A request that the state of a machine, or the values given, do not allow. `details`: names and ids for the dialect's own words. */
export class RefusedError extends ControlError {
  readonly code = "refused";
  readonly rule: RefusalRule;
  readonly details: Readonly<Record<string, string>>;
  constructor(rule: RefusalRule, message: string, details: Readonly<Record<string, string>> = {}) {
    super(message);
    this.rule = rule;
    this.details = details;
  }
}

/** The files of a backup or snapshot cannot be looked at now. */
export class FilesUnreadableError extends ControlError {
  readonly code = "files-unreadable";
}

/** Resources that count against a project's quota. */
export type QuotaResource = "volumes" | "snapshots" | "gigabytes" | "backups" | "backup_gigabytes" | "groups";
/** Limits: those of resources, those of the only volume type, and the maximum size of one volume. */
export type QuotaLimit =
  | QuotaResource
  | "volumes_of_type"
  | "snapshots_of_type"
  | "gigabytes_of_type"
  | "per_volume_gigabytes";

/** `requested`, `limit` and `used` in units of the resource (count or GiB). */
export class QuotaExceededError extends ControlError {
  readonly code = "quota-exceeded";
  readonly resource: QuotaLimit;
  readonly requested: number;
  readonly limit: number;
  readonly used: number;
  constructor(resource: QuotaLimit, amounts: { requested: number; limit: number; used: number }) {
    super(`Quota ${resource} exceeded: requested ${amounts.requested}, limit ${amounts.limit}, used ${amounts.used}`);
    this.resource = resource;
    this.requested = amounts.requested;
    this.limit = amounts.limit;
    this.used = amounts.used;
  }
}

/** A limit cannot be set below what is in use. */
export class QuotaInUseError extends ControlError {
  readonly code = "quota-in-use";
  readonly resource: QuotaLimit;
  readonly limit: number;
  readonly used: number;
  constructor(resource: QuotaLimit, { limit, used }: { limit: number; used: number }) {
    super(`Quota ${resource} cannot be ${limit}: ${used} are in use`);
    this.resource = resource;
    this.limit = limit;
    this.used = used;
  }
}

/** No worker is alive to do what was requested. */
export class NoServiceError extends ControlError {
  readonly code = "no-service";
  constructor(service: string) {
    super(`Service ${service} could not be found.`);
  }
}

/** The task is no longer this worker's: another claim was made, or the operation ended. Drop the work. */
export class ClaimLostError extends ControlError {
  readonly code = "claim-lost";
  constructor(taskId: string) {
    super(`Task ${taskId} is no longer claimed by this worker`);
  }
}

/** The id belongs to another volume, or once did: it cannot be given to a new one. */
export class IdTakenError extends ControlError {
  readonly code = "id-taken";
}

/** The operation has ended in the meantime (cancelled, failed): the task's work is dropped. */
export class OperationEndedError extends ControlError {
  readonly code = "operation-ended";
  constructor(operationId: string) {
    super(`Operation ${operationId} has ended`);
  }
}

/** A plan, input or report that no release has written: whoever needs it ends with this as its reason. */
export class MalformedDocumentError extends ControlError {
  readonly code = "malformed-document";
  constructor(what: string, problem: string) {
    super(`The ${what} stored for the operation cannot be read: ${problem}.`);
  }
}

/** A plan, input or report of a later release: it is left to that release's workers. */
export class NewerDocumentError extends ControlError {
  readonly code = "newer-document";
  constructor(what: string, version: number) {
    super(`The ${what} stored for the operation has version ${version}, which only a newer release can read.`);
  }
}
