import {
  ControlError,
  ImageTransferError,
  InvalidError,
  NoServiceError,
  NotFoundError,
  QuotaExceededError,
  type RefusalRule,
  RefusedError,
} from "@tephra/control";
import { mayPass } from "@tephra/control/process";
import { NoRouteError, Refusal } from "../http/refusals.ts";
import { group, type Root } from "./element.ts";

/** How bad a message is; of several the first of these determines the status (ovirt 5.1). */
const severities = { "bad-parameters": 400, conflict: 409, internal: 500, permission: 403 } as const;
export type Severity = keyof typeof severities;

/**
 * A request that is refused with a fault. `details`: the sentences; `bracketed`: whether they stand in one `[a, b]`, as the engine joins
 * what its validation finds.
 */
export class OvirtFault extends Error {
  readonly status: number;
  readonly reason: string;
  readonly detail: string;
  /** Seconds. */
  readonly retryAfter: number | undefined;
  constructor(
    status: number,
    reason: string,
    details: readonly string[],
    options: { bracketed?: boolean; retryAfter?: number; cause?: unknown } = {},
  ) {
    const joined = details.join(", ");
    super(joined, { cause: options.cause });
    this.status = status;
    this.reason = reason;
    this.detail = options.bracketed ? `[${joined}]` : joined;
    this.retryAfter = options.retryAfter;
  }
  override get name(): string {
    return "OvirtFault";
  }
}

/** A status without a body: 401, 404, a version that is not served, formats that are not written. */
export class BareStatus extends Error {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  constructor(status: number, headers: Readonly<Record<string, string>> = {}) {
    super(`status ${status}`);
    this.status = status;
    this.headers = headers;
  }
  override get name(): string {
    return "BareStatus";
  }
}

/** `Snapshot [description] required for add`: fields that a request lacks. `type` as in oVirt's model, `verb` as `add`. */
export const incomplete = (type: string, fields: readonly string[], verb: string): OvirtFault =>
  new OvirtFault(400, "Incomplete parameters", [`${type} [${fields.join(", ")}] required for ${verb}`]);

/** A value that cannot be what it stands for. */
export const invalidValue = (detail: string): OvirtFault => new OvirtFault(400, "Invalid value", [detail]);

/** What the engine's validation found; the worst message determines the status. */
export function refused(...messages: readonly (readonly [Severity, string])[]): OvirtFault {
  const order = Object.keys(severities) as Severity[];
  const worst = order.find((severity) => messages.some(([each]) => each === severity)) ?? "bad-parameters";
  const sentences = messages.map(([, sentence]) => sentence);
  return new OvirtFault(severities[worst], "Operation Failed", sentences, { bracketed: true });
}

type Details = Readonly<Record<string, string>>;

/** What a refusal of machines, disks and snapshots is told as: a whole sentence, or one behind what cannot be done. */
const words: Readonly<
  Record<RefusalRule, readonly [Severity, (details: Details, doing: string, message: string) => string]>
> = {
  "squash-going-on": ["conflict", (_, doing, message) => `Cannot ${doing}. ${message}`],
  "not-cancellable": ["conflict", (_, doing, message) => `Cannot ${doing}. ${message}`],
  "not-retryable": ["conflict", (_, doing, message) => `Cannot ${doing}. ${message}`],
  "not-live": ["conflict", (_, doing, message) => `Cannot ${doing}. ${message}`],
  "machine-locked": ["conflict", (_, doing) => `Cannot ${doing}: VM is locked. Please try again in a few minutes.`],
  "machine-running": ["conflict", (_, doing) => `Cannot ${doing}. VM is running.`],
  "machine-not-running": ["conflict", (_, doing) => `Cannot ${doing}. VM is not running.`],
  "machine-not-down": [
    "conflict",
    ({ powerState = "" }, doing) =>
      `Cannot ${doing} because the VM is in ${statusWords[powerState] ?? "Unknown"} status.`,
  ],
  "in-preview": ["conflict", (_, doing) => `Cannot ${doing}. VM is previewing a Snapshot.`],
  "machine-unreachable": ["conflict", (_, doing) => `Cannot ${doing}. VM is not reachable.`],
  "machine-has-backups": [
    "conflict",
    (_, doing) => `Cannot ${doing}. The VM has backups, which must be deleted first.`,
  ],
  "machine-protected": [
    "conflict",
    (_, doing) => `Cannot ${doing}. Delete protection is enabled. In order to delete, disable Delete protection first.`,
  ],
  "machine-id-taken": [
    "conflict",
    ({ name }) =>
      `Import VM failed - VM ID already exists in the system. Please remove the VM (${name}) from the system first`,
  ],
  "machine-name-taken": [
    "conflict",
    (_, doing) => `Cannot ${doing}. The VM name is already in use, please choose a unique name and try again.`,
  ],
  "power-not-controlled": [
    "conflict",
    (_, doing) => `Cannot ${doing}. The VM is started and stopped by its hypervisor.`,
  ],
  "configuration-invalid": ["bad-parameters", (_, doing, message) => `Cannot ${doing}. ${message}`],
  "ovf-unreadable": ["conflict", () => "The OVF configuration could not be parsed."],
  "during-backup": ["conflict", (_, doing) => `Cannot ${doing}. The VM is during a backup operation.`],
  "during-snapshot": [
    "conflict",
    (_, doing) =>
      `Cannot ${doing}. The VM is performing an operation on a Snapshot. Please wait for the operation to finish, and try again.`,
  ],
  "disks-locked": [
    "conflict",
    ({ disks }, doing) =>
      `Cannot ${doing}: The following disks are locked: ${disks}. Please try again in a few minutes.`,
  ],
  "disk-unknown": [
    "bad-parameters",
    ({ disk }, doing) => `Cannot ${doing}. The following disk(s) ID(s) does not exist: ${disk}.`,
  ],
  "disk-attached": ["conflict", (_, doing) => `Cannot ${doing}. The disk is already attached to VM.`],
  "disk-attached-elsewhere": [
    "conflict",
    (_, doing) => `Cannot ${doing}. The disk is not shareable and is already attached to a VM.`,
  ],
  "disk-illegal": [
    "bad-parameters",
    ({ disk }, doing) => `Cannot ${doing}. The operation is not allowed for the illegal disk ${disk}.`,
  ],
  "disk-active": ["conflict", () => "Disk is already activated."],
  "disk-inactive": ["conflict", () => "Disk is already deactivated."],
  "disk-plugged": ["conflict", (_, doing) => `Cannot ${doing}. The disk is active, deactivate it first.`],
  "disk-of-snapshot": ["conflict", (_, doing) => `Cannot ${doing}. The disk is a snapshot's, specify detach.`],
  "snapshot-unknown": ["bad-parameters", (_, doing) => `Cannot ${doing}. VM's Snapshot does not exist.`],
  "snapshot-not-regular": [
    "conflict",
    (_, doing) => `Cannot ${doing}. The operation is only allowed for regular snapshots.`,
  ],
  "snapshot-locked": [
    "conflict",
    (_, doing) => `Cannot ${doing}: The snapshot is locked. Please try again in a few minutes.`,
  ],
  "snapshot-lacks-disk": [
    "bad-parameters",
    (_, doing) => `Cannot ${doing}. The specified disk does not exist in the specified snapshot.`,
  ],
  "snapshot-attached": [
    "conflict",
    ({ attached = "" }, doing) =>
      `Cannot ${doing}. The following VM's disks snapshots are plugged to other VMs (Disk Alias/Snapshot Description/VM attached to):` +
      `\n\n${attached
        .split("\n")
        .map((line) => ` ${line} `)
        .join("\n")}\n\nPlease deactivate/detach them from those VMs and try again.`,
  ],
  "restore-unsupported": ["conflict", (_, doing) => `Cannot ${doing}. The storage cannot go back to a snapshot.`],
  "disks-unknown": [
    "bad-parameters",
    ({ disks }, doing) => `Cannot ${doing}. The following disk(s) ID(s) does not exist: ${disks}.`,
  ],
  "disks-not-attached": [
    "conflict",
    ({ disks, machine }, doing) => `Cannot ${doing}. The following disks are not attached to VM ${machine}: ${disks}.`,
  ],
  "disks-inactive": [
    "conflict",
    ({ disks, machine }, doing) => `Cannot ${doing}. The following disks are not active on VM ${machine}: ${disks}.`,
  ],
  "disks-not-backed-up": [
    "conflict",
    ({ disks }, doing) => `Cannot ${doing}. The storage of the following disks does not support VM backups: ${disks}.`,
  ],
  "checkpoint-unknown": [
    "bad-parameters",
    ({ checkpoint }, doing) => `Cannot ${doing}. Checkpoint ID ${checkpoint} doesn't exist.`,
  ],
  "checkpoint-invalid": [
    "bad-parameters",
    ({ checkpoint }, doing) => `Cannot ${doing}. Checkpoint ID ${checkpoint} is invalid and should be removed.`,
  ],
  "backup-id-taken": [
    "bad-parameters",
    ({ backup }, doing) => `Cannot ${doing}. VM backup ID ${backup} already exists.`,
  ],
  "no-backup-host": ["conflict", (_, doing) => `Cannot ${doing}. There is no host that can back up the VM.`],
  "backup-has-transfer": ["conflict", (_, doing) => `Cannot ${doing}. There is an active image transfer for VM backup`],
  "nic-name-taken": [
    "conflict",
    ({ name }, doing) => `Cannot ${doing}. The network interface name ${name} is already in use.`,
  ],
  "mac-taken": ["conflict", ({ mac }, doing) => `Cannot ${doing}. MAC Address ${mac} is already in use.`],
};

/** Power states as the engine's sentences name them. */
const statusWords: Readonly<Record<string, string>> = {
  ACTIVE: "Up",
  SHUTOFF: "Down",
  PAUSED: "Paused",
  SUSPENDED: "Suspended",
  MIGRATING: "Migrating",
};

const refusalOf = ({ rule, details, message }: RefusedError, doing: string): OvirtFault => {
  const [severity, sentence] = words[rule];
  return refused([severity, sentence(details, doing, message)]);
};

/** What a refusal says cannot be done, where the error itself does not know: `create Snapshot`. */
export async function whenRefused<Result>(doing: string, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    throw error instanceof RefusedError ? refusalOf(error, doing) : error;
  }
}

/**
 * The only mapping from errors to what an oVirt client sees. Status 500 means an unexpected error, which the caller must log. An error that
 * a verb reports of the resource in the path is 404 without a body; of one that the body names it is 400: routes catch that.
 */
export function faultOf(error: unknown): OvirtFault | BareStatus {
  if (error instanceof OvirtFault || error instanceof BareStatus) return error;
  if (error instanceof NoRouteError || error instanceof NotFoundError) return new BareStatus(404);
  if (error instanceof Refusal) {
    const { status, message, retryAfter } = error;
    return new OvirtFault(status === 413 && retryAfter !== undefined ? 429 : status, "Operation Failed", [message], {
      ...(retryAfter !== undefined && { retryAfter }),
    });
  }
  if (error instanceof RefusedError) return refusalOf(error, "do this");
  if (error instanceof QuotaExceededError) return refused(["conflict", `Quota exceeded: ${error.message}`]);
  if (error instanceof NoServiceError) return refused(["conflict", error.message]);
  if (error instanceof ImageTransferError) return transferFault(error);
  if (error instanceof InvalidError) return refused(["conflict", error.message]);
  if (mayPass(error)) {
    return new OvirtFault(503, "Operation Failed", ["The database cannot be reached. Try again later."], {
      retryAfter: 2,
      cause: error,
    });
  }
  if (error instanceof ControlError) return refused(["conflict", error.message]);
  return bodyFault(error) ?? new OvirtFault(500, "Operation Failed", ["Internal Engine Error"], { cause: error });
}

/** What is said of each reason, by the disk and the machines that it names. */
const transferWords: Readonly<
  Record<ImageTransferError["problem"], (d: ImageTransferError["details"]) => readonly [Severity, string]>
> = {
  "disk-unknown": () => ["bad-parameters", "Cannot transfer Virtual Disk. The specified disk does not exist."],
  "disk-illegal": ({ disk }) => [
    "bad-parameters",
    `Cannot transfer Virtual Disk. The following disks are in ILLEGAL status: ${disk}`,
  ],
  "disk-locked": ({ disk }) => [
    "conflict",
    `Cannot transfer Virtual Disk: The following disks are locked: ${disk}. Please try again in a few minutes.`,
  ],
  "disk-plugged": ({ disk, machines = [] }) => [
    "conflict",
    `Cannot transfer Virtual Disk. The disk ${disk} is plugged to non-Down VMs: ${machines.join(", ")}`,
  ],
  "disk-transferring": ({ disk }) => ["conflict", `Cannot transfer Virtual Disk. Disk ${disk} is being transferred.`],
  "format-not-applicable": () => [
    "bad-parameters",
    "Cannot transfer Virtual Disk. The specified format is not applicable for the disk.",
  ],
  "snapshot-read-only": () => [
    "bad-parameters",
    "Cannot transfer Virtual Disk. A disk snapshot can only be downloaded.",
  ],
  "no-server": () => ["conflict", "Cannot transfer Virtual Disk. There is no host that can transfer the disk."],
  "backup-unknown": () => ["bad-parameters", "Cannot transfer Virtual Disk. The specified VM backup does not exist."],
  "backup-not-ready": ({ phase = "" }) => [
    "conflict",
    `Cannot transfer Virtual Disk. The VM backup is not in READY phase, backup phase is ${phase.toUpperCase()}.`,
  ],
  "backup-lacks-disk": () => [
    "bad-parameters",
    "Cannot transfer Virtual Disk. The specified disk is not part of the specified VM backup.",
  ],
  "backup-format": () => [
    "bad-parameters",
    "Cannot transfer Virtual Disk. The specified format is not applicable for VM backup.",
  ],
  "backup-upload": () => [
    "bad-parameters",
    "Cannot transfer Virtual Disk. Disks of a VM backup can only be downloaded.",
  ],
  "download-cannot-pause": () => [
    "bad-parameters",
    "Cannot pause image download as it's handled by the client. Note that it can be canceled if you wish to stop it.",
  ],
  "not-pausable": ({ phase }) => ["conflict", `Cannot pause image transfer as it's in phase ${phase}.`],
  "not-paused": () => ["conflict", "Cannot resume image transfer as it's not in a paused state."],
  "not-finalizable": ({ phase }) => ["conflict", `Cannot finalize image transfer as it's in phase ${phase}.`],
  ended: ({ phase }) => ["conflict", `Cannot change image transfer as it has ended in phase ${phase}.`],
};

const transferFault = ({ problem, details }: ImageTransferError): OvirtFault =>
  refused(transferWords[problem](details));

/** Errors thrown by the body parser: too long, truncated, or in an unknown encoding. */
function bodyFault(error: unknown): OvirtFault | null {
  const { type, status } = error as { type?: unknown; status?: unknown };
  if (typeof type !== "string" || typeof status !== "number" || status >= 500) return null;
  const detail = type === "entity.too.large" ? "The body is too long" : "The body cannot be read";
  return new OvirtFault(status, "Malformed request body", [detail], { cause: error });
}

export const faultFields = ({ detail, reason }: OvirtFault) => group({ detail, reason });

/** A fault as a body; of an action it is inside the action. */
export const faultRoot = (fault: OvirtFault, ofAction: boolean): Root =>
  ofAction
    ? { name: "action", value: group({ fault: faultFields(fault), status: "failed" }) }
    : { name: "fault", value: faultFields(fault) };
