import {
  activeDescription,
  activeSnapshotId,
  commitMachineSnapshot,
  describeMachine,
  getMachine,
  getMachineSnapshot,
  listMachineSnapshots,
  type MachineRow,
  type MachineSnapshot,
  nicsOfSnapshot,
  previewMachineSnapshot,
  removeMachineSnapshot,
  restoreMachineSnapshot,
  takeMachineSnapshot,
  undoMachineSnapshot,
} from "@tephra/control";
import type { Context } from "../context.ts";
import type { Body } from "./body.ts";
import { type Call, created, creationStatus, done, type Handle, type Route, shown, whenSettled } from "./call.ts";
import { diskFields, diskFormat } from "./disks.ts";
import { type Element, type Fields, group, type List, listOf, reference } from "./element.ts";
import { BareStatus, incomplete, invalidValue, whenRefused } from "./faults.ts";
import { type FollowTree, followed, refuseFollow } from "./follow.ts";
import { nicList } from "./machine-nics.ts";

const descriptionMax = 4_096;

/** A configuration as clients keep it, to make the machine of it again. */
export const initialization = (ovf: string): Fields => ({
  initialization: group({ configuration: group({ data: ovf, type: "ovf" }) }),
});

/** While an operation shows a snapshot, or takes that back, it is locked, and so is what is kept of the machine as it was before. */
function statusOf({ id, status, previewOfId }: MachineSnapshot, { preview, heldBy }: Previewing): string {
  if (status === "creating" || status === "deleting") return "locked";
  const isShown = preview?.of === id;
  if ((isShown || previewOfId !== null) && heldBy !== null) return "locked";
  return isShown ? "in_preview" : "ok";
}

type Previewing = Pick<MachineRow, "preview" | "heldBy">;

/** Of a machine that has just been locked for a snapshot. */
const notPreviewing: Previewing = { preview: null, heldBy: null };

const view = (
  snapshot: MachineSnapshot,
  machineId: string,
  allContent: boolean,
  machine: Previewing = notPreviewing,
): Element => ({
  id: snapshot.id,
  path: `/vms/${machineId}/snapshots/${snapshot.id}`,
  actions: ["restore"],
  links: ["cdroms", "disks", "nics"],
  fields: {
    description: snapshot.description ?? "",
    vm: reference("vms", machineId),
    date: snapshot.takenAt ?? snapshot.createdAt,
    persist_memorystate: false,
    snapshot_status: statusOf(snapshot, machine),
    ...(allContent && snapshot.ovf !== null && initialization(snapshot.ovf)),
    snapshot_type: snapshot.previewOfId === null ? "regular" : "preview",
  },
});

/** The machine as it is now is one of its snapshots, too. */
async function activeView(context: Context, machine: MachineRow, allContent: boolean): Promise<Element> {
  const id = activeSnapshotId(machine);
  return {
    id,
    path: `/vms/${machine.instance.id}/snapshots/${id}`,
    links: ["cdroms", "disks", "nics"],
    fields: {
      description: activeDescription,
      date: machine.instance.createdAt,
      persist_memorystate: false,
      snapshot_status: "ok",
      ...(allContent &&
        initialization(
          await describeMachine(context.database, machine, (backend) => diskFormat(context, backend), null),
        )),
      snapshot_type: "active",
    },
  };
}

const machineIn = ({ database }: Context, { principal, params }: Call): Promise<MachineRow> =>
  getMachine(database, principal, params["vm"] ?? "");

const snapshotIn = ({ database }: Context, { principal, params }: Call): Promise<MachineSnapshot> =>
  getMachineSnapshot(database, principal, params["vm"] ?? "", params["snapshot"] ?? "");

const isActive = (machine: MachineRow, { params }: Call): boolean =>
  activeSnapshotId(machine) === params["snapshot"]?.toLowerCase();

/** A snapshot, or with null the machine as it is now, with what is asked for in place of its links. */
async function viewOf(context: Context, call: Call, machine: MachineRow, snapshot: MachineSnapshot | null) {
  const element =
    snapshot === null
      ? await activeView(context, machine, call.allContent)
      : view(snapshot, machine.instance.id, call.allContent, machine);
  return followed(element, snapshot, call.follow, {
    disks: async (of, deeper) => {
      refuseFollow(deeper);
      return listOf("disk", diskViews(context, call, machine, of));
    },
    nics: async (of, deeper) => nicsOf(machine, of, deeper),
  });
}

const list: Handle = async (context, call) => {
  const machine = await machineIn(context, call);
  const rows = await listMachineSnapshots(context.database, call.principal, machine.instance.id);
  const views = [null, ...rows].map((row) => viewOf(context, call, machine, row));
  return shown("snapshots", listOf("snapshot", await Promise.all(views)));
};

/** The snapshot that the path names; null: the machine as it is now. */
const shownIn = async (context: Context, call: Call, machine: MachineRow): Promise<MachineSnapshot | null> =>
  isActive(machine, call) ? null : snapshotIn(context, call);

const show: Handle = async (context, call) => {
  const machine = await machineIn(context, call);
  return shown("snapshot", await viewOf(context, call, machine, await shownIn(context, call, machine)));
};

/** Disks that a request chooses, by their ids or those of their layers. Null: it does not choose; none: the configuration alone. */
function chosenIn(body: Body): string[] | null {
  const attachments = body.items("disk_attachments", "disk_attachment")?.map((each) => each.at("disk"));
  const disks = attachments ?? body.items("disks", "disk");
  return disks?.map((disk) => disk?.string("image_id") ?? disk?.id ?? "") ?? null;
}

const add: Handle = async (context, call) => {
  const { principal, params, body } = call;
  const machineId = params["vm"] ?? "";
  const description = body.string("description");
  if (description === undefined) throw incomplete("Snapshot", ["description"], "add");
  if (description.length > descriptionMax) throw invalidValue("description: too long");
  const request = { description, disks: chosenIn(body), formatOf: (backend: string) => diskFormat(context, backend) };
  const made = await whenRefused("create Snapshot", () =>
    takeMachineSnapshot(context.database, context.config, principal, machineId, request),
  );
  const seen = call.waits ? await whenTaken(context, call, made) : made;
  return created("snapshot", view(seen, seen.instanceId ?? machineId, false), seen.status !== "available");
};

/** @throws BareStatus 404 for one that could not be taken: it is gone */
const whenTaken = ({ database }: Context, call: Call, made: MachineSnapshot): Promise<MachineSnapshot> =>
  whenSettled(
    call,
    made,
    ({ status }) => status !== "creating",
    () => getMachineSnapshot(database, call.principal, call.params["vm"] ?? "", made.id),
  );

const remove: Handle = async ({ database, config }, { principal, params }) => {
  const which = { machineId: params["vm"] ?? "", id: params["snapshot"] ?? "" };
  return done(await whenRefused("remove Snapshot", () => removeMachineSnapshot(database, config, principal, which)));
};

/** The configuration and the disks, at once: there is nothing to commit or undo. Memory is not kept. */
const restore: Handle = async ({ database, config }, { principal, params }) => {
  const which = { machineId: params["vm"] ?? "", id: params["snapshot"] ?? "" };
  return done(
    await whenRefused("revert to Snapshot", () => restoreMachineSnapshot(database, config, principal, which)),
  );
};

/** @throws OvirtFault 400 for what cannot be chosen here: some of the disks, or other snapshots of them */
function refuseChoice({ body }: Call): void {
  for (const name of ["disks", "lease"]) {
    if (body.has(name)) throw invalidValue(`${name}: a snapshot is previewed as a whole`);
  }
}

const preview: Handle = async (context, call) => {
  const { principal, params, body } = call;
  const machineId = params["vm"] ?? "";
  await machineIn(context, call);
  const id = body.at("snapshot")?.id;
  if (id === undefined) throw incomplete("Action", ["snapshot.id"], "previewSnapshot");
  refuseChoice(call);
  const request = { machineId, id, formatOf: (backend: string) => diskFormat(context, backend) };
  return done(
    await whenRefused("preview Snapshot", () =>
      previewMachineSnapshot(context.database, context.config, principal, request),
    ),
  );
};

const commit: Handle = async ({ database }, { principal, params }) => {
  await whenRefused("revert to Snapshot", () => commitMachineSnapshot(database, principal, params["vm"] ?? ""));
  return done();
};

const undo: Handle = async ({ database, config }, { principal, params }) =>
  done(
    await whenRefused("revert to Snapshot", () => undoMachineSnapshot(database, config, principal, params["vm"] ?? "")),
  );

function diskViews(context: Context, call: Call, machine: MachineRow, snapshot: MachineSnapshot | null): Element[] {
  const path = `/vms/${machine.instance.id}/snapshots/${snapshot?.id ?? activeSnapshotId(machine)}/disks`;
  const kindOf = (volumeId: string) => machine.disks.find((disk) => disk.volumeId === volumeId)?.interface ?? "virtio";
  const ofThree = (volumeId: string) => (call.version === 3 ? { interface: kindOf(volumeId) } : {});
  if (snapshot === null) {
    const active = { id: activeSnapshotId(machine) };
    return machine.disks.map(({ volume }) => ({
      id: volume.id,
      path: `${path}/${volume.id}`,
      fields: { ...diskFields(context, volume), snapshot: active, ...ofThree(volume.id) },
    }));
  }
  return snapshot.snapshots.map(({ id, sizeBytes, volume, status }) => ({
    id: volume.id,
    path: `${path}/${volume.id}`,
    fields: {
      ...diskFields(context, volume, { id, bytes: sizeBytes }),
      status:
        status === "available" || status === "backing-up" ? "ok" : status.startsWith("error") ? "illegal" : "locked",
      snapshot: { id: snapshot.id },
      ...ofThree(volume.id),
    },
  }));
}

const disksIn = async (context: Context, call: Call): Promise<Element[]> => {
  const machine = await machineIn(context, call);
  return diskViews(context, call, machine, await shownIn(context, call, machine));
};

const listDisks: Handle = async (context, call) => {
  refuseFollow(call.follow);
  return shown("disks", listOf("disk", await disksIn(context, call)));
};

const showDisk: Handle = async (context, call) => {
  refuseFollow(call.follow);
  const found = (await disksIn(context, call)).find(({ id }) => id === call.params["disk"]?.toLowerCase());
  if (!found) throw new BareStatus(404);
  return shown("disk", found);
};

const noCdroms: Handle = async (context, call) => {
  await show(context, call);
  return shown("cdroms", listOf("cdrom", []));
};

/** Network interfaces as they were then: they are in the configuration alone. */
async function nicsOf(machine: MachineRow, snapshot: MachineSnapshot | null, tree: FollowTree): Promise<List> {
  if (snapshot === null) return nicList(machine, tree);
  refuseFollow(tree);
  const nics = nicsOfSnapshot(snapshot).map(({ id, name, mac, interface: kind, linked, plugged }) => ({
    id,
    fields: { name, interface: kind, linked, mac: group({ address: mac }), plugged },
  }));
  return listOf("nic", nics);
}

const listNics: Handle = async (context, call) => {
  const machine = await machineIn(context, call);
  return shown("nics", await nicsOf(machine, await shownIn(context, call, machine), call.follow));
};

/** One that cannot be taken is removed: there is no failed one. */
const showCreation: Handle = async (context, call) =>
  creationStatus((await snapshotIn(context, call)).status === "creating" ? "in_progress" : "complete");

export const machineSnapshotRoutes: readonly Route[] = [
  ["GET", "/vms/:vm/snapshots", "ovirt:get", list],
  ["POST", "/vms/:vm/snapshots", "ovirt:change", add],
  ["GET", "/vms/:vm/snapshots/:snapshot", "ovirt:get", show],
  ["DELETE", "/vms/:vm/snapshots/:snapshot", "ovirt:change", remove],
  ["ACTION", "/vms/:vm/snapshots/:snapshot/restore", "ovirt:change", restore],
  ["ACTION", "/vms/:vm/previewsnapshot", "ovirt:change", preview],
  ["ACTION", "/vms/:vm/commitsnapshot", "ovirt:change", commit],
  ["ACTION", "/vms/:vm/undosnapshot", "ovirt:change", undo],
  ["GET", "/vms/:vm/snapshots/:snapshot/disks", "ovirt:get", listDisks],
  ["GET", "/vms/:vm/snapshots/:snapshot/disks/:disk", "ovirt:get", showDisk],
  ["GET", "/vms/:vm/snapshots/:snapshot/cdroms", "ovirt:get", noCdroms],
  ["GET", "/vms/:vm/snapshots/:snapshot/nics", "ovirt:get", listNics],
  ["GET", "/vms/:vm/snapshots/:snapshot/creation_status", "ovirt:get", showCreation],
];
