import { setTimeout as sleep } from "node:timers/promises";
import {
  createMachine,
  createMachineFromOvf,
  describeMachine,
  getMachine,
  listMachines,
  type MachineRow,
  type PowerVerb,
  readFreeze,
  removeMachine,
  setFrozen,
  setPower,
  updateMachine,
} from "@tephra/control";
import type { Context } from "../context.ts";
import { endOf } from "../http/operation-end.ts";
import { type Call, created, done, emptyBelow, type Handle, type Route, shown } from "./call.ts";
import { diskFormat } from "./disks.ts";
import { type Element, listOf, reference } from "./element.ts";
import { BareStatus, incomplete, invalidValue, refused, whenRefused } from "./faults.ts";
import { zeroId } from "./fixed-ids.ts";
import { type Followed, followed } from "./follow.ts";
import { clustersOf, hostThatIsUp } from "./infrastructure.ts";
import { configurationFields, configurationOf } from "./machine-configuration.ts";
import { attachmentList } from "./machine-disks.ts";
import { nicList } from "./machine-nics.ts";
import { initialization } from "./machine-snapshots.ts";
import { type Searchable, searched } from "./search.ts";

const nameMax = 255;

/** Power state of an instance → status of a machine. */
const statuses: Readonly<Record<string, string>> = {
  ACTIVE: "up",
  SHUTOFF: "down",
  PAUSED: "paused",
  SUSPENDED: "suspended",
  MIGRATING: "migrating",
};

/** Clients of version 3 wait for a snapshot by the status of its machine. */
const statusOf = ({ instance, heldBy }: MachineRow, version: Call["version"]): string =>
  version === 3 && ["group-snapshot", "group-delete", "group-revert"].includes(heldBy ?? "")
    ? "image_locked"
    : (statuses[instance.powerState] ?? "unknown");

/** `host`: a host that is up, on which a machine that runs is shown. */
async function view(
  context: Context,
  machine: MachineRow,
  { version, allContent }: Call,
  host: string | null,
): Promise<Element> {
  const { instance, settings } = machine;
  const { id, name, createdAt } = instance;
  return {
    id,
    path: `/vms/${id}`,
    actions: [
      ...["start", "stop", "shutdown", "freezefilesystems", "thawfilesystems"],
      ...["commitsnapshot", "previewsnapshot", "undosnapshot"],
    ],
    links: ["backups", "checkpoints", "snapshots", "diskattachments", "nics", "tags", "permissions", "applications"],
    fields: {
      name,
      description: settings.description,
      comment: settings.comment,
      ...configurationFields(settings, createdAt, version === 4),
      status: statusOf(machine, version),
      cluster: reference("clusters", clustersOf(context.config)[0]?.id ?? ""),
      ...(allContent &&
        initialization(
          await describeMachine(context.database, machine, (backend) => diskFormat(context, backend), null),
        )),
      template: reference("templates", zeroId),
      ...(runs(machine) && host !== null && { host: reference("hosts", host) }),
    },
  };
}

const runs = ({ instance }: MachineRow): boolean => instance.powerState !== "SHUTOFF";

/** A host that is up, where one of the machines runs. */
const hostOf = async (context: Context, machines: readonly MachineRow[]): Promise<string | null> =>
  machines.some(runs) ? hostThatIsUp(context) : null;

const oneView = async (context: Context, machine: MachineRow, call: Call): Promise<Element> =>
  view(context, machine, call, await hostOf(context, [machine]));

const links = (context: Context): Followed<MachineRow> => ({
  disk_attachments: (machine, deeper) => attachmentList(context, machine, deeper),
  nics: (machine, deeper) => nicList(machine, deeper),
  tags: async () => listOf("tag", []),
});

const viewOf = async (context: Context, machine: MachineRow, call: Call, host: string | null): Promise<Element> =>
  followed(await view(context, machine, call, host), machine, call.follow, links(context));

const searchOf = ({ config }: Context, { version }: Call): Searchable<MachineRow> => ({
  fields: {
    name: ({ instance }) => [instance.name],
    id: ({ instance }) => [instance.id],
    status: (machine) => [statusOf(machine, version)],
    cluster: () => [config.ovirt.clusters[0] ?? ""],
    datacenter: () => [config.ovirt.data_center],
    description: ({ settings }) => [settings.description],
    tag: () => [],
  },
  bare: ["name", "description"],
});

const list: Handle = async (context, call) => {
  const machines = await listMachines(context.database, call.principal);
  const found = searched(call, machines, searchOf(context, call));
  const host = await hostOf(context, found);
  const views = await Promise.all(found.map((machine) => viewOf(context, machine, call, host)));
  return shown("vms", listOf("vm", views));
};

const show: Handle = async (context, call) => {
  const machine = await getMachine(context.database, call.principal, call.params["vm"] ?? "");
  return shown("vm", await viewOf(context, machine, call, await hostOf(context, [machine])));
};

/** @throws OvirtFault 400 without one; BareStatus 404 for one that there is not */
function checkCluster({ config }: Context, { body }: Call): void {
  const cluster = body.at("cluster");
  const [id, name] = [cluster?.id, cluster?.string("name")];
  if (!id && !name) throw incomplete("Vm", ["cluster.id|name"], "add");
  const known = clustersOf(config).some((each) => (id ? each.id === id.toLowerCase() : each.name === name));
  if (!known) throw new BareStatus(404);
}

function nameIn({ body }: Call): string | undefined {
  const name = body.string("name");
  if (name !== undefined && (name === "" || name.length > nameMax)) throw invalidValue("name: empty or too long");
  return name;
}

/** Where a new machine has no configuration yet. */
const blank = { cpu: { sockets: 1, cores: 1, threads: 1 }, highAvailability: { enabled: false, priority: 1 } };

const add: Handle = async (context, call) => {
  checkCluster(context, call);
  const name = nameIn(call);
  const configuration = configurationOf(call.body, blank);
  const given = call.body.at("initialization", "configuration");
  if (given) return addFromOvf(context, call, { name, configuration });
  if (call.body.items("snapshots", "snapshot")?.some(({ id }) => id !== undefined)) {
    throw invalidValue("snapshots: a VM cannot be cloned from a snapshot; attach its disks, or restore them");
  }
  if (name === undefined) throw incomplete("Vm", ["name"], "add");
  const machine = await whenRefused("add VM", () =>
    createMachine(context.database, context.config, call.principal, { id: null, name, configuration }),
  );
  return created("vm", await oneView(context, machine, call), false);
};

/** A machine of a configuration that a client has kept. What the request says besides wins. */
async function addFromOvf(
  context: Context,
  call: Call,
  { name, configuration }: { name: string | undefined; configuration: ReturnType<typeof configurationOf> },
) {
  const { body, parameters } = call;
  const kind = body.string("initialization", "configuration", "type")?.toLowerCase();
  const ovf = body.at("initialization", "configuration", "data")?.text.trim();
  const missing = [!kind && "type", !ovf && "data"].flatMap((field) =>
    field ? [`initialization.configuration.${field}`] : [],
  );
  if (missing.length > 0) throw incomplete("Vm", missing, "add");
  if (kind !== "ovf" && kind !== "ova")
    throw invalidValue(`initialization.configuration.type: '${kind?.slice(0, 64)}'`);
  const made = await whenRefused("import VM", () =>
    createMachineFromOvf(context.database, context.config, call.principal, {
      ovf: ovf ?? "",
      ...(name !== undefined && { name }),
      configuration,
      regenerateIds: body.boolean("initialization", "regenerate_ids") ?? false,
      reassignBadMacs: parameters.flag("reassign_bad_macs") ?? body.boolean("reassign_bad_macs") ?? false,
    }),
  );
  const { machine, clashes, skipped } = made;
  if (clashes.length + skipped.length > 0) {
    context.log.warn(
      { machine: machine.instance.id, clashes, skipped },
      "a machine was made of an OVF, but not all of it",
    );
  }
  return created("vm", await oneView(context, machine, call), false);
}

const update: Handle = async (context, call) => {
  const { database } = context;
  const { principal, params } = call;
  const before = await getMachine(database, principal, params["vm"] ?? "");
  const name = nameIn(call);
  const configuration = configurationOf(call.body, before.settings);
  const change = { configuration, ...(name !== undefined && { name }) };
  const machine = await whenRefused("edit VM", () => updateMachine(database, principal, before.instance.id, change));
  return shown("vm", await oneView(context, machine, call));
};

const remove: Handle = async ({ database }, { principal, params, parameters, body }) => {
  const inBody = body.boolean("vm", "disks", "detach_only") ?? body.boolean("disks", "detach_only");
  const keepDisks = parameters.flag("detach_only") ?? inBody ?? false;
  await whenRefused("remove VM", () => removeMachine(database, principal, params["vm"] ?? "", { keepDisks }));
  return done();
};

const power =
  (verb: PowerVerb, doing: string): Handle =>
  async ({ database }, { principal, params }) => {
    await whenRefused(doing, () => setPower(database, principal, params["vm"] ?? "", verb));
    return done();
  };

/** Longer than a guest agent may take to freeze, or to be asked three times to thaw. */
const freezeMs = 55_000;
const lookEveryMs = 50;

/** Answered once the guest is frozen, or thawed. */
const freezing =
  (freeze: boolean): Handle =>
  async (context, { principal, params, gone }) => {
    const doing = `${freeze ? "freeze" : "thaw"} VM filesystems`;
    const { database } = context;
    const id = await whenRefused(doing, () => setFrozen(database, principal, params["vm"] ?? "", freeze));
    const until = performance.now() + freezeMs;
    while (freeze && performance.now() < until && !gone.aborted) {
      const seen = await readFreeze(database, id);
      if (seen === "frozen") return done(id);
      if (seen === "over") break;
      await sleep(lookEveryMs);
    }
    const end = await endOf(context, id, Math.max(0, until - performance.now()), gone);
    if (end?.state === "succeeded") return done(id);
    throw refused(["conflict", `Cannot ${doing}. ${end?.failReason ?? "VM is not reachable."}`]);
  };

const nothingBelow = emptyBelow(({ database }, { principal, params }) =>
  getMachine(database, principal, params["vm"] ?? ""),
);

export const machineRoutes: readonly Route[] = [
  ["GET", "/vms", "ovirt:get", list],
  ["POST", "/vms", "ovirt:change", add],
  ["GET", "/vms/:vm", "ovirt:get", show],
  ["PUT", "/vms/:vm", "ovirt:change", update],
  ["DELETE", "/vms/:vm", "ovirt:change", remove],
  ["ACTION", "/vms/:vm/start", "ovirt:change", power("start", "run VM")],
  ["ACTION", "/vms/:vm/stop", "ovirt:change", power("stop", "stop VM")],
  ["ACTION", "/vms/:vm/shutdown", "ovirt:change", power("shutdown", "shutdown VM")],
  ["ACTION", "/vms/:vm/freezefilesystems", "ovirt:change", freezing(true)],
  ["ACTION", "/vms/:vm/thawfilesystems", "ovirt:change", freezing(false)],
  ["GET", "/vms/:vm/tags", "ovirt:get", nothingBelow("tags", "tag")],
  ["GET", "/vms/:vm/permissions", "ovirt:get", nothingBelow("permissions", "permission")],
  ["GET", "/vms/:vm/applications", "ovirt:get", nothingBelow("applications", "application")],
  ["GET", "/vms/:vm/cdroms", "ovirt:get", nothingBelow("cdroms", "cdrom")],
];
