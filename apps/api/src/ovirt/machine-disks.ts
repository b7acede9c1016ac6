import {
  attachDisk,
  attachSnapshotDisk,
  changeDisk,
  type DiskChange,
  type DiskSettings,
  detachDisk,
  getMachine,
  isDiskInterface,
  type MachineRow,
  needsSocket,
  requestVolumeDelete,
  type VolumeRow,
} from "@tephra/control";
import type { Context } from "../context.ts";
import { endOf } from "../http/operation-end.ts";
import type { Body } from "./body.ts";
import { type Call, created, done, type Handle, type Route, shown } from "./call.ts";
import { addDisk, diskEdit, diskFields, whenMade } from "./disks.ts";
import { type Element, type Fields, listOf, reference } from "./element.ts";
import { BareStatus, incomplete, invalidValue, refused, whenRefused } from "./faults.ts";
import { type Followed, type FollowTree, followed, refuseFollow } from "./follow.ts";

type DiskVolume = Omit<VolumeRow, "attachments">;

/** A disk that a machine has: its own, or that of a snapshot. */
export interface AttachedDisk {
  volume: DiskVolume;
  plugged: boolean;
  interface: string;
  readOnly: boolean;
  snapshotId: string | null;
}

export const attachedDisks = ({ disks, borrowed }: MachineRow): AttachedDisk[] => [
  ...disks.map(({ volume, plugged, interface: kind, mode }) => ({
    volume,
    plugged,
    interface: kind,
    readOnly: mode === "ro",
    snapshotId: null,
  })),
  ...borrowed.map(({ volume, plugged, interface: kind, groupSnapshotId }) => ({
    volume,
    plugged,
    interface: kind,
    readOnly: false,
    snapshotId: groupSnapshotId,
  })),
];

/** The guest finds a disk by its serial number, the first characters of its id. */
const attachmentFields = ({ instance }: MachineRow, disk: AttachedDisk): Fields => {
  return {
    active: disk.plugged,
    bootable: disk.snapshotId === null && disk.volume.id === instance.bootVolumeId,
    interface: disk.interface,
  };
};

/** Its name in a guest that runs. */
const logicalName = ({ instance }: MachineRow, { plugged, volume }: AttachedDisk): Fields =>
  plugged && instance.powerState === "ACTIVE"
    ? { logical_name: `/dev/disk/by-id/virtio-${volume.id.slice(0, 20)}` }
    : {};

const attachmentView = (machine: MachineRow, disk: AttachedDisk): Element => ({
  id: disk.volume.id,
  path: `/vms/${machine.instance.id}/diskattachments/${disk.volume.id}`,
  fields: {
    ...attachmentFields(machine, disk),
    ...logicalName(machine, disk),
    pass_discard: false,
    read_only: disk.readOnly,
    uses_scsi_reservation: false,
    disk: reference("disks", disk.volume.id),
    vm: reference("vms", machine.instance.id),
  },
});

/** As version 3 shows it below a machine. */
const diskView = (context: Context, machine: MachineRow, disk: AttachedDisk): Element => ({
  id: disk.volume.id,
  path: `/vms/${machine.instance.id}/disks/${disk.volume.id}`,
  actions: ["activate", "deactivate", "export", "move"],
  links: [
    ["permissions", `/disks/${disk.volume.id}/permissions`],
    ["disksnapshots", `/disks/${disk.volume.id}/disksnapshots`],
    ["statistics", `/disks/${disk.volume.id}/statistics`],
  ],
  fields: {
    ...diskFields(context, disk.volume),
    ...attachmentFields(machine, disk),
    vm: reference("vms", machine.instance.id),
    ...(disk.snapshotId !== null && { snapshot: { id: disk.snapshotId } }),
    ...logicalName(machine, disk),
  },
});

const links = (context: Context): Followed<AttachedDisk> => ({
  disk: async ({ volume }, deeper) => {
    refuseFollow(deeper);
    return { id: volume.id, path: `/disks/${volume.id}`, fields: diskFields(context, volume) };
  },
});

/** The attachments of a machine, with what is asked for in place of links. */
export async function attachmentList(context: Context, machine: MachineRow, tree: FollowTree) {
  const views = attachedDisks(machine).map((disk) =>
    followed(attachmentView(machine, disk), disk, tree, links(context)),
  );
  return listOf("disk_attachment", await Promise.all(views));
}

const machineIn = ({ database }: Context, { principal, params }: Call): Promise<MachineRow> =>
  getMachine(database, principal, params["vm"] ?? "");

function diskIn(machine: MachineRow, { params }: Call): AttachedDisk {
  const found = attachedDisks(machine).find(({ volume }) => volume.id === params["disk"]?.toLowerCase());
  if (!found) throw new BareStatus(404);
  return found;
}

const listAttachments: Handle = async (context, call) =>
  shown("disk_attachments", await attachmentList(context, await machineIn(context, call), call.follow));

const showAttachment: Handle = async (context, call) => {
  const machine = await machineIn(context, call);
  const disk = diskIn(machine, call);
  return shown("disk_attachment", await followed(attachmentView(machine, disk), disk, call.follow, links(context)));
};

const listDisks: Handle = async (context, call) => {
  const machine = await machineIn(context, call);
  return shown(
    "disks",
    listOf(
      "disk",
      attachedDisks(machine).map((disk) => diskView(context, machine, disk)),
    ),
  );
};

const showDisk: Handle = async (context, call) => {
  const machine = await machineIn(context, call);
  return shown("disk", diskView(context, machine, diskIn(machine, call)));
};

function interfaceOf(body: Body) {
  const text = body.string("interface")?.toLowerCase();
  if (text === undefined) return undefined;
  if (!isDiskInterface(text)) throw invalidValue(`interface: '${text.slice(0, 64)}' is not a disk interface`);
  return text;
}

/** How long a hypervisor may take to plug a disk in or to take it away: clients give up after a minute. */
const plugMs = 30_000;

/** Waits until a hypervisor has done it. @throws OvirtFault when it cannot, or does not answer */
async function whenPlugged(context: Context, call: Call, operationId: string | null, doing: string): Promise<void> {
  if (operationId === null) return;
  const end = await endOf(context, operationId, plugMs, call.gone);
  if (end?.state === "succeeded") return;
  const why = end === null ? "" : ` ${end.failReason ?? ""}`;
  throw refused(["conflict", `Cannot ${doing}. VM is not reachable.${why}`]);
}

/** @param active where the body does not say it. @throws OvirtFault 400 */
const settingsOf = (body: Body, active: boolean): DiskSettings => ({
  active: body.boolean("active") ?? active,
  bootable: body.boolean("bootable") ?? false,
  readOnly: body.boolean("read_only") ?? false,
  interface: interfaceOf(body) ?? "virtio",
});

/** Attaches what the body names by its id, whatever else of the disk it repeats. One that is to be active and cannot be is detached again. */
async function attach(
  context: Context,
  call: Call,
  { instance }: MachineRow,
  disk: { diskId: string; snapshotId?: string | undefined; settings: DiskSettings },
): Promise<void> {
  const { database } = context;
  const { principal, params } = call;
  const machineId = params["vm"] ?? "";
  const { diskId, snapshotId, settings } = disk;
  await whenRefused("attach Virtual Disk", () =>
    snapshotId === undefined
      ? attachDisk(database, principal, machineId, diskId, settings)
      : attachSnapshotDisk(database, principal, machineId, { diskId, snapshotId, ...settings }),
  );
  if (!settings.active || !needsSocket(instance.driver)) return;
  try {
    await change(context, { ...call, params: { ...params, disk: diskId } }, { active: true });
  } catch (error) {
    await detachDisk(database, principal, machineId, diskId).catch(() => {}); // What was wrong first is told.
    throw error;
  }
}

/**
 * Makes a disk as the body describes it, and attaches it; unless the body says otherwise it is active in a machine that is down. Where it
 * cannot be made, or attached, there is no disk.
 */
async function attachNew(context: Context, call: Call, machine: MachineRow, disk: Body): Promise<string> {
  const settings = settingsOf(call.body, machine.instance.powerState === "SHUTOFF");
  const row = await addDisk(context, call, disk);
  const remove = (): Promise<unknown> =>
    requestVolumeDelete(context.database, call.principal, row.id, { cascade: false });
  const made = await whenMade(context, call, row);
  try {
    await attach(context, call, machine, { diskId: made.id, settings });
  } catch (error) {
    await remove().catch(() => {}); // What was wrong first is told; a disk that is still being made stays.
    throw error;
  }
  return made.id;
}

/** Attaches the disk that the request names, or makes one, and returns it with its machine as that is then. */
async function addTo(context: Context, call: Call, disk: Body): Promise<{ machine: MachineRow; disk: AttachedDisk }> {
  const machine = await machineIn(context, call);
  const { id } = disk;
  if (id !== undefined) {
    const settings = settingsOf(call.body, false);
    await attach(context, call, machine, { diskId: id, snapshotId: disk.at("snapshot")?.id, settings });
  }
  const diskId = id ?? (await attachNew(context, call, machine, disk));
  const after = await machineIn(context, call);
  return { machine: after, disk: diskIn(after, { ...call, params: { ...call.params, disk: diskId } }) };
}

const addAttachment: Handle = async (context, call) => {
  const disk = call.body.at("disk");
  if (disk === undefined) {
    await machineIn(context, call);
    throw incomplete("DiskAttachment", ["disk"], "add");
  }
  const made = await addTo(context, call, disk);
  return created("disk_attachment", attachmentView(made.machine, made.disk), false);
};

const addBelow: Handle = async (context, call) => {
  const made = await addTo(context, call, call.body);
  return created("disk", diskView(context, made.machine, made.disk), false);
};

/** @returns the operation by which a hypervisor was told, where there was one */
async function change(context: Context, call: Call, to: DiskChange, refuseSame = false): Promise<string | null> {
  const { params, principal } = call;
  const doing = to.active === undefined ? "edit Virtual Disk" : `${to.active ? "hot plug" : "hot unplug"} Virtual Disk`;
  const operationId = await whenRefused(doing, () =>
    changeDisk(context.database, principal, params["vm"] ?? "", params["disk"] ?? "", to, { refuseSame }),
  );
  await whenPlugged(context, call, operationId, doing);
  return operationId;
}

function changeOf({ body }: Call): DiskChange {
  const [active, bootable, kind] = [body.boolean("active"), body.boolean("bootable"), interfaceOf(body)];
  return {
    ...(active !== undefined && { active }),
    ...(bootable !== undefined && { bootable }),
    ...(kind !== undefined && { interface: kind }),
  };
}

/** Changes how a machine has a disk, and the disk itself where the request says something of it. Through a snapshot's disk it stays as it is. */
async function update(context: Context, call: Call, disk: Body | undefined): Promise<void> {
  const to = changeOf(call);
  const { volume, snapshotId } = diskIn(await machineIn(context, call), call);
  const isOwn = disk !== undefined && snapshotId === null;
  const edit = isOwn ? await diskEdit(context, call.principal, volume.id, disk) : null;
  await change(context, call, to);
  await edit?.();
}

const updateAttachment: Handle = async (context, call) => {
  await update(context, call, call.body.at("disk"));
  return showAttachment(context, call);
};

const updateDisk: Handle = async (context, call) => {
  await update(context, call, call.body);
  return showDisk(context, call);
};

const plug =
  (active: boolean): Handle =>
  async (context, call) => {
    return done(await change(context, call, { active }, true));
  };

/** Detaches a disk; its volume is removed only where the request says so. A snapshot's disk is never removed through another machine. */
async function detach(context: Context, call: Call, keepVolume: boolean): Promise<void> {
  const { database } = context;
  const { principal, params } = call;
  const diskId = params["disk"] ?? "";
  const machine = await machineIn(context, call);
  // Whatever a hypervisor has is taken away from it first.
  if (needsSocket(machine.instance.driver) && diskIn(machine, call).plugged) {
    await change(context, call, { active: false });
  }
  await whenRefused("remove Virtual Disk", () =>
    detachDisk(database, principal, params["vm"] ?? "", diskId, { volumesOnly: !keepVolume }),
  );
  if (!keepVolume) await requestVolumeDelete(database, principal, diskId.toLowerCase(), { cascade: false });
}

const removeAttachment: Handle = async (context, call) => {
  await detach(context, call, call.parameters.flag("detach_only") ?? call.parameters.flag("detach") ?? true);
  return done();
};

/** Version 3 of the engine removes the disk unless it is told to detach it: here it has to be told which. */
const removeDisk: Handle = async (context, call) => {
  diskIn(await machineIn(context, call), call);
  const { body, parameters } = call;
  const keeps = body.boolean("detach") ?? parameters.flag("detach") ?? parameters.flag("detach_only") ?? false;
  if (!keeps) throw refused(["conflict", "Cannot remove Virtual Disk. Specify detach: disks are removed at /disks."]);
  await detach(context, call, true);
  return done();
};

/** Disks of machines: attachments in version 4, disks below the machine in version 3; both are served in each. */
export const diskAttachmentRoutes: readonly Route[] = [
  ["GET", "/vms/:vm/diskattachments", "ovirt:get", listAttachments],
  ["POST", "/vms/:vm/diskattachments", "ovirt:change", addAttachment],
  ["GET", "/vms/:vm/diskattachments/:disk", "ovirt:get", showAttachment],
  ["PUT", "/vms/:vm/diskattachments/:disk", "ovirt:change", updateAttachment],
  ["DELETE", "/vms/:vm/diskattachments/:disk", "ovirt:change", removeAttachment],
  ["GET", "/vms/:vm/disks", "ovirt:get", listDisks],
  ["POST", "/vms/:vm/disks", "ovirt:change", addBelow],
  ["GET", "/vms/:vm/disks/:disk", "ovirt:get", showDisk],
  ["PUT", "/vms/:vm/disks/:disk", "ovirt:change", updateDisk],
  ["DELETE", "/vms/:vm/disks/:disk", "ovirt:change", removeDisk],
  ["ACTION", "/vms/:vm/disks/:disk/activate", "ovirt:change", plug(true)],
  ["ACTION", "/vms/:vm/disks/:disk/deactivate", "ovirt:change", plug(false)],
];
