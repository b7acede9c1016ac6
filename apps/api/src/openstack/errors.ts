import {
  AttachmentNotFoundError,
  ControlError,
  InvalidError,
  type InvalidSubject,
  NoServiceError,
  NotFoundError,
  QuotaExceededError,
  QuotaInUseError,
  type QuotaLimit,
  RefusedError,
} from "@tephra/control";
import { mayPass } from "@tephra/control/process";
import { type Fault, outageFault, unexpectedFault } from "../http/fault.ts";
import { Refusal } from "../http/refusals.ts";
import { quotaKeyOf } from "./quota-keys.ts";

/** Prefixes that Cinder's exception classes add to messages (cinder-api 4.2). */
const prefixes: Record<InvalidSubject, string> = {
  volume: "Invalid volume: ",
  snapshot: "Invalid snapshot: ",
  backup: "Invalid backup: ",
  group: "Invalid Group: ",
  "group-snapshot": "Invalid GroupSnapshot: ",
  input: "Invalid input received: ",
  request: "",
};

/** Cinder's exception name for each quota, put before the text unless Cinder's route catches it (cinder-api 4.3). */
const quotaClasses: Record<QuotaLimit, string> = {
  backups: "BackupLimitExceeded",
  backup_gigabytes: "VolumeBackupSizeExceedsAvailableQuota",
  volumes: "VolumeLimitExceeded",
  snapshots: "SnapshotLimitExceeded",
  gigabytes: "VolumeSizeExceedsAvailableQuota",
  per_volume_gigabytes: "VolumeSizeExceedsLimit",
  volumes_of_type: "VolumeLimitExceeded",
  snapshots_of_type: "SnapshotLimitExceeded",
  gigabytes_of_type: "VolumeSizeExceedsAvailableQuota",
  groups: "GroupLimitExceeded",
};

/** Cinder's messages (cinder-api 4.3). */
function quotaText({ resource, requested, limit, used }: QuotaExceededError): string {
  const gigabytes = `Requested ${requested}G, quota is ${limit}G and ${used}G has been consumed.`;
  switch (resource) {
    case "backup_gigabytes":
      return `Requested backup exceeds allowed Backup gigabytes quota. ${gigabytes}`;
    case "per_volume_gigabytes":
      return `Requested volume size ${requested}G is larger than maximum allowed limit ${limit}G.`;
    case "gigabytes":
    case "gigabytes_of_type":
      return `Requested volume or snapshot exceeds allowed ${quotaKeyOf(resource)} quota. ${gigabytes}`;
    case "volumes":
    case "volumes_of_type":
      return `Maximum number of volumes allowed (${limit}) exceeded for quota '${quotaKeyOf(resource)}'.`;
    case "snapshots_of_type":
      return `Maximum number of snapshots allowed (${limit}) exceeded`;
    case "backups":
    case "snapshots":
    case "groups":
      return `Maximum number of ${resource} allowed (${limit}) exceeded`;
    default:
      return resource satisfies never;
  }
}

/**
 * A quota error without the name of Cinder's exception, for cases where Cinder's route catches it: a restore answers 413; creating a
 * group from a source answers 400, as it does for every error. Other errors pass unchanged.
 */
export const asPlainQuotaError = (error: unknown, status: 400 | 413): unknown =>
  error instanceof QuotaExceededError
    ? new Refusal(status, quotaText(error), status === 413 ? { retryAfter: 0 } : {})
    : error;

/** The only mapping from errors to what a Cinder client sees. Status 500 means an unexpected error, which the caller must log. */
export function faultOf(error: unknown): Fault {
  if (error instanceof Refusal) {
    const { status, message, retryAfter } = error;
    return { status, message, ...(retryAfter !== undefined && { retryAfter }) };
  }
  if (error instanceof NotFoundError || error instanceof AttachmentNotFoundError) {
    return { status: 404, message: error.message };
  }
  if (error instanceof RefusedError) return { status: 400, message: error.message };
  if (error instanceof InvalidError) return { status: 400, message: `${prefixes[error.subject]}${error.message}` };
  if (error instanceof QuotaExceededError) {
    return { status: 413, message: `${quotaClasses[error.resource]}: ${quotaText(error)}`, retryAfter: 0 };
  }
  if (error instanceof QuotaInUseError) {
    const { resource, used, limit } = error;
    const usage = `Current usage is ${used} and the requested limit is ${limit}.`;
    const message = `Quota ${quotaKeyOf(resource)} limit must be equal or greater than existing resources. ${usage}`;
    return { status: 400, message };
  }
  if (error instanceof NoServiceError) return { status: 503, message: error.message };
  if (!(error instanceof ControlError) && mayPass(error)) return outageFault;
  return unexpectedFault;
}
