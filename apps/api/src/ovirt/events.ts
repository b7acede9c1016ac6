import {
  addCustomEvent,
  getMachine,
  getOvirtEvent,
  IdTakenError,
  listOvirtEvents,
  NotFoundError,
  type OvirtEventKind,
  type OvirtEventRow,
  removeOvirtEvent,
} from "@tephra/control";
import type { Context } from "../context.ts";
import { type Call, created, done, type Handle, type Route, shown } from "./call.ts";
import { type Element, listOf, reference } from "./element.ts";
import { incomplete, invalidValue, refused } from "./faults.ts";
import { fixedId } from "./fixed-ids.ts";
import { refuseFollow } from "./follow.ts";
import { type Searchable, searched } from "./search.ts";

const severities = ["normal", "warning", "error", "alert"] as const;
type Severity = (typeof severities)[number];

/** What a sentence is made of. */
interface Told {
  user: string;
  machine: string;
  disk: string;
  domain: string;
  snapshot: string;
  /** `Upload` or `Download`. */
  transfer: string;
  address: string;
  nic: string;
  mac: string;
  other: string;
  backup: string;
  checkpoint: string;
  /** With a space before it, where there is one. */
  reason: string;
}

/** oVirt's code, severity and sentence of each kind. */
const words: Readonly<Record<Exclude<OvirtEventKind, "custom">, readonly [number, Severity, (told: Told) => string]>> =
  {
    "disk-add": [2020, "normal", ({ disk, user }) => `Add-Disk operation of '${disk}' was initiated by ${user}.`],
    "disk-added": [2021, "normal", ({ disk }) => `The disk '${disk}' was successfully added.`],
    "disk-add-failed": [2022, "error", ({ disk }) => `Add-Disk operation of '${disk}' failed to complete.`],
    "disk-removed": [
      2014,
      "normal",
      ({ disk, domain, user }) => `Disk ${disk} was successfully removed from domain ${domain} (User ${user}).`,
    ],
    "disk-remove-failed": [
      2015,
      "warning",
      ({ disk, domain, user }) => `Failed to remove disk ${disk} from storage domain ${domain} (User: ${user}).`,
    ],
    "disk-attached": [
      2016,
      "normal",
      ({ disk, machine, user }) => `Disk ${disk} was successfully attached to VM ${machine} by ${user}.`,
    ],
    "disk-detached": [
      2018,
      "normal",
      ({ disk, machine, user }) => `Disk ${disk} was successfully detached from VM ${machine} by ${user}.`,
    ],
    "disk-skipped": [
      144,
      "warning",
      ({ disk, machine }) =>
        `Disk ${disk} of the configuration of VM ${machine} was not attached: it does not exist, or is in use.`,
    ],
    "mac-clash": [
      144,
      "warning",
      ({ nic, machine, mac, other }) =>
        `Interface ${nic} of VM ${machine} was left unplugged: its MAC address ${mac} is in use by VM ${other}.`,
    ],
    "machine-added": [34, "normal", ({ machine, user }) => `VM ${machine} was created by ${user}.`],
    "machine-removed": [113, "normal", ({ machine }) => `VM ${machine} was successfully removed.`],
    "machine-started": [153, "normal", ({ machine, user }) => `VM ${machine} was started by ${user}.`],
    "machine-stopped": [33, "normal", ({ machine, user }) => `VM ${machine} powered off by ${user}.`],
    "snapshot-create": [
      45,
      "normal",
      ({ snapshot, machine, user }) => `Snapshot '${snapshot}' creation for VM '${machine}' was initiated by ${user}.`,
    ],
    "snapshot-created": [
      68,
      "normal",
      ({ snapshot, machine }) => `Snapshot '${snapshot}' creation for VM '${machine}' has been completed.`,
    ],
    "snapshot-create-failed": [
      69,
      "error",
      ({ snapshot, machine }) => `Failed to complete snapshot '${snapshot}' creation for VM '${machine}'.`,
    ],
    "snapshot-remove": [
      342,
      "normal",
      ({ snapshot, machine, user }) => `Snapshot '${snapshot}' deletion for VM '${machine}' was initiated by ${user}.`,
    ],
    "snapshot-removed": [
      356,
      "normal",
      ({ snapshot, machine }) => `Snapshot '${snapshot}' deletion for VM '${machine}' has been completed.`,
    ],
    "snapshot-remove-failed": [
      357,
      "error",
      ({ snapshot, machine }) => `Failed to delete snapshot '${snapshot}' for VM '${machine}'.`,
    ],
    "transfer-begun": [
      1031,
      "normal",
      ({ transfer, disk, user }) => `Image ${transfer} with disk ${disk} was initiated by ${user}.`,
    ],
    "transfer-succeeded": [1032, "normal", ({ transfer, disk }) => `Image ${transfer} with disk ${disk} succeeded.`],
    "transfer-cancelled": [
      1033,
      "normal",
      ({ transfer, disk }) => `Image ${transfer} with disk ${disk} was cancelled.`,
    ],
    "transfer-failed": [
      1034,
      "error",
      ({ transfer, disk, reason }) => `Image ${transfer} with disk ${disk} failed.${reason}`,
    ],
    "transfer-paused": [
      1035,
      "warning",
      ({ transfer, disk, reason }) => `Image ${transfer} with disk ${disk} was paused by the system.${reason}`,
    ],
    "backup-started": [
      10_790,
      "normal",
      ({ backup, machine, user }) => `Backup ${backup} for VM ${machine} started (User: ${user}).`,
    ],
    "backup-start-failed": [
      10_791,
      "error",
      ({ backup, machine, user, reason }) =>
        `Failed to start backup ${backup} for VM ${machine} (User: ${user}).${reason}`,
    ],
    "backup-finalized": [
      10_792,
      "normal",
      ({ backup, machine, user }) => `Backup ${backup} for VM ${machine} finalized (User: ${user}).`,
    ],
    "backup-failed": [
      10_793,
      "error",
      ({ backup, machine, user, reason }) =>
        `Failed to finalize backup ${backup} for VM ${machine} (User: ${user}).${reason}`,
    ],
    "checkpoint-invalid": [
      144,
      "warning",
      ({ checkpoint, machine }) =>
        `Checkpoint ${checkpoint} of VM ${machine} was lost: it is invalid and should be removed.`,
    ],
    "checkpoint-expired": [
      144,
      "warning",
      ({ checkpoint, machine }) => `Checkpoint ${checkpoint} of VM ${machine} was removed, since the VM had too many.`,
    ],
    login: [30, "normal", ({ user, address }) => `User ${user} connecting from '${address}' logged in.`],
    "login-failed": [
      114,
      "error",
      ({ user, address }) => `User ${user} connecting from '${address}' failed to log in.`,
    ],
  };

const customCode = 9999;

const toldOf = ({ details, userId }: OvirtEventRow): Told => {
  const { machine, disk, domain, snapshot, direction, address, nic, mac, other, backup, checkpoint, reason } = details;
  return {
    user: userId ?? "SYSTEM",
    machine: machine ?? "",
    disk: disk ?? "",
    domain: domain ?? "",
    snapshot: snapshot ?? "",
    transfer: direction === "upload" ? "Upload" : "Download",
    address: address ?? "",
    nic: nic ?? "",
    mac: mac ?? "",
    other: other ?? "",
    backup: backup ?? "",
    checkpoint: checkpoint ?? "",
    reason: reason ? ` ${reason}` : "",
  };
};

interface Event {
  row: OvirtEventRow;
  code: number;
  severity: string;
  description: string;
}

/** A kind that only a newer release knows is told by its name. */
function eventOf(row: OvirtEventRow): Event {
  if (row.kind === "custom") {
    return { row, code: customCode, severity: row.severity ?? "normal", description: row.description ?? "" };
  }
  const known = Object.hasOwn(words, row.kind) ? words[row.kind as keyof typeof words] : undefined;
  if (!known) return { row, code: 0, severity: "normal", description: row.kind };
  const [code, severity, sentence] = known;
  return { row, code, severity, description: sentence(toldOf(row)) };
}

const view = ({ row, code, severity, description }: Event): Element => ({
  id: String(row.id),
  path: `/events/${row.id}`,
  fields: {
    code,
    correlation_id: row.requestId,
    custom_id: row.customId,
    description,
    origin: row.origin ?? "oVirt",
    severity,
    time: row.at,
    ...(row.volumeId !== null && { disk: reference("disks", row.volumeId) }),
    ...(row.userId !== null && { user: { id: fixedId("user", row.userId), fields: { name: row.userId } } }),
    ...(row.instanceId !== null && { vm: reference("vms", row.instanceId) }),
  },
});

const machineName = ({ row }: Event) => [row.details["machine"]];

const searchable: Searchable<Event> = {
  fields: {
    id: ({ row }) => [String(row.id)],
    message: ({ description }) => [description],
    description: ({ description }) => [description],
    severity: ({ severity }) => [severity],
    type: ({ code }) => [String(code)],
    code: ({ code }) => [String(code)],
    correlation_id: ({ row }) => [row.requestId],
    usrname: ({ row }) => [row.userId],
    "vm.id": ({ row }) => [row.instanceId],
    "vm.name": machineName,
    event_vm: machineName,
    vms: machineName,
    "disk.id": ({ row }) => [row.volumeId],
    origin: ({ row }) => [row.origin ?? "oVirt"],
    custom_id: ({ row }) => [row.customId === null ? null : String(row.customId)],
    ids: ({ row }) => [row.instanceId, row.volumeId, row.requestId, row.details["transfer"]],
    time: ({ row }) => [row.at.toISOString()],
  },
  bare: ["message", "ids"],
};

/** The id after which a list begins. @throws OvirtFault 400 */
function fromOf({ parameters }: Call): bigint | null {
  const text = parameters.text("from")?.trim() ?? "";
  if (text === "") return null;
  if (!/^\d{1,18}$/.test(text)) throw invalidValue(`from: '${text.slice(0, 64)}' is not the number of an event`);
  return BigInt(text);
}

const list: Handle = async ({ database }, call) => {
  refuseFollow(call.follow);
  const from = fromOf(call);
  const max = call.parameters.text("search") ? null : (call.parameters.max() ?? null);
  const events = (await listOvirtEvents(database, call.principal, { from, max })).map(eventOf);
  return shown("events", listOf("event", searched(call, events, searchable).map(view)));
};

const idOf = ({ params }: Call): string => params["id"] ?? "";

const show: Handle = async ({ database }, call) => {
  refuseFollow(call.follow);
  return shown("event", view(eventOf(await getOvirtEvent(database, call.principal, idOf(call)))));
};

const remove: Handle = async ({ database }, call) => {
  await removeOvirtEvent(database, call.principal, idOf(call));
  return done();
};

/** The machine that a client's event is about. @throws OvirtFault 400 for one that there is not */
async function machineOf({ database }: Context, { principal, body }: Call): Promise<string | null> {
  const id = body.at("vm")?.id;
  if (id === undefined) return null;
  try {
    return (await getMachine(database, principal, id)).instance.id;
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error;
    throw refused(["bad-parameters", "Cannot add External Event. VM does not exist."]);
  }
}

const textMax = 4_096;
const originMax = 255;

const add: Handle = async (context, call) => {
  const { body } = call;
  const [origin, description] = [body.string("origin"), body.string("description")];
  const severity = body.oneOf(["severity"], severities);
  const customId = body.integer(["custom_id"], { min: 0, max: 2_147_483_647 });
  if (!origin || severity === undefined || customId === undefined || !description) {
    const wanted = { origin, severity, customId, description };
    const missing = Object.entries(wanted).flatMap(([name, value]) =>
      value === undefined || value === "" ? [name] : [],
    );
    throw incomplete("Event", missing, "add");
  }
  if (origin.length > originMax || description.length > textMax) throw invalidValue("origin or description: too long");
  const event = { origin, severity, customId, description, instanceId: await machineOf(context, call) };
  try {
    return created("event", view(eventOf(await addCustomEvent(context.database, call.principal, event))), false);
  } catch (error) {
    if (!(error instanceof IdTakenError)) throw error;
    throw refused(["conflict", "Cannot add External Event. Custom Event ID already exists."]);
  }
};

/** What has happened in the project (ovirt 4.7). */
export const eventRoutes: readonly Route[] = [
  ["GET", "/events", "ovirt:get", list],
  ["POST", "/events", "ovirt:change", add],
  ["GET", "/events/:id", "ovirt:get", show],
  ["DELETE", "/events/:id", "ovirt:change", remove],
];
