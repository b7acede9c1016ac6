import {
  ControlError,
  InvalidError,
  type InvalidSubject,
  NoServiceError,
  NotFoundError,
  QuotaExceededError,
  StateConflictError,
} from "@tephra/control";
import { type Fault, outageFault, unexpectedFault } from "../fault.ts";
import { isDatabaseOutage } from "../outage.ts";
import { Refusal } from "../refusals.ts";

/** Class prefixes that are part of Cinder's message texts (API spec 2.2). */
const prefixes: Record<InvalidSubject, string> = {
  volume: "Invalid volume: ",
  snapshot: "Invalid snapshot: ",
  backup: "Invalid backup: ",
  input: "Invalid input received: ",
};

/** Texts of API spec 10 and 6.6. Only those of a backup carry the name of Cinder's exception. */
function quotaText({ resource, requested, limit, used }: QuotaExceededError): string {
  const gigabytes = `Requested ${requested}G, quota is ${limit}G and ${used}G has been consumed.`;
  switch (resource) {
    case "backups":
      return `BackupLimitExceeded: Maximum number of backups allowed (${limit}) exceeded`;
    case "backup_gigabytes":
      return `VolumeBackupSizeExceedsAvailableQuota: Requested backup exceeds allowed Backup gigabytes quota. ${gigabytes}`;
    case "per_volume_gigabytes":
      return `VolumeSizeExceedsLimit: Requested volume size ${requested}G is larger than maximum allowed limit ${limit}G.`;
    case "gigabytes":
      return `Requested volume or snapshot exceeds allowed gigabytes quota. ${gigabytes}`;
    case "volumes":
    case "snapshots":
      return `Maximum number of ${resource} allowed (${limit}) exceeded for quota '${resource}'.`;
    default:
      return resource satisfies never;
  }
}

/** The one map from an error to what a Cinder client sees. A fault of 500 is one that nobody foresaw: the caller of this logs it. */
export function faultOf(error: unknown): Fault {
  if (error instanceof Refusal) return { status: error.status, message: error.message };
  if (error instanceof NotFoundError) return { status: 404, message: error.message };
  if (error instanceof InvalidError) return { status: 400, message: `${prefixes[error.subject]}${error.message}` };
  if (error instanceof QuotaExceededError) return { status: 413, message: quotaText(error), retryAfter: 0 };
  if (error instanceof NoServiceError) return { status: 503, message: error.message };
  if (error instanceof StateConflictError) return { status: 409, message: error.message };
  if (!(error instanceof ControlError) && isDatabaseOutage(error)) return outageFault;
  return unexpectedFault;
}
