import {
  addNic,
  getMachine,
  isNicInterface,
  type MachineRow,
  type NicChange,
  removeNic,
  updateNic,
} from "@tephra/control";
import type { Context } from "../context.ts";
import type { Body } from "./body.ts";
import { type Call, created, done, type Handle, type Route, shown } from "./call.ts";
import { type Element, group, listOf, reference } from "./element.ts";
import { BareStatus, incomplete, invalidValue, refused, whenRefused } from "./faults.ts";
import { fixedId } from "./fixed-ids.ts";
import { type Followed, type FollowTree, followed } from "./follow.ts";

type Nic = MachineRow["nics"][number];

/** The profile of a network, which has its name (infrastructure.ts). */
const profileOf = (network: string): string => fixedId("vnic-profile", network);

const view = (nic: Nic): Element => ({
  id: nic.id,
  path: `/vms/${nic.instanceId}/nics/${nic.id}`,
  actions: ["activate", "deactivate"],
  links: ["reporteddevices"],
  fields: {
    name: nic.name,
    interface: nic.interface,
    linked: nic.linked,
    mac: group({ address: nic.mac }),
    plugged: nic.plugged,
    vm: reference("vms", nic.instanceId),
    ...(nic.network !== null && { vnic_profile: reference("vnicprofiles", profileOf(nic.network)) }),
  },
});

const nothing = (item: string) => async () => listOf(item, []);
const links: Followed<Nic> = {
  reporteddevices: nothing("reported_device"),
  reported_devices: nothing("reported_device"),
};

/** The network interfaces of a machine, with what is asked for in place of links. */
export const nicList = async ({ nics }: MachineRow, tree: FollowTree) =>
  listOf("nic", await Promise.all(nics.map((nic) => followed(view(nic), nic, tree, links))));

const machineIn = ({ database }: Context, { principal, params }: Call): Promise<MachineRow> =>
  getMachine(database, principal, params["vm"] ?? "");

const list: Handle = async (context, call) => shown("nics", await nicList(await machineIn(context, call), call.follow));

const show: Handle = async (context, call) => {
  const { nics } = await machineIn(context, call);
  const nic = nics.find(({ id }) => id === call.params["nic"]?.toLowerCase());
  if (!nic) throw new BareStatus(404);
  return shown("nic", await followed(view(nic), nic, call.follow, links));
};

const devices: Handle = async (context, call) => {
  await show(context, call);
  return shown("reported_devices", listOf("reported_device", []));
};

/** The network that a body names: by its profile, or by name. Null: none. @throws OvirtFault 400 for a profile that there is not */
function networkOf({ config }: Context, body: Body): string | null | undefined {
  const named = body.string("network", "name");
  if (named !== undefined) return named || null;
  const profile = body.at("vnic_profile");
  if (!profile) return undefined;
  const wanted = profile.id?.toLowerCase() ?? profile.string("name");
  if (!wanted) return null;
  const found = config.ovirt.networks.find((name) => name === wanted || profileOf(name) === wanted);
  if (found === undefined) throw refused(["bad-parameters", "The vNIC profile does not exist."]);
  return found;
}

function changeOf(context: Context, body: Body): NicChange {
  const kind = body.string("interface")?.toLowerCase();
  if (kind !== undefined && !isNicInterface(kind)) {
    throw invalidValue(`interface: '${kind.slice(0, 64)}' is not a network interface`);
  }
  const [name, mac, network] = [body.string("name"), body.string("mac", "address"), networkOf(context, body)];
  const [linked, plugged] = [body.boolean("linked"), body.boolean("plugged")];
  return {
    ...(name !== undefined && { name }),
    ...(mac && { mac: mac.toLowerCase() }),
    ...(network !== undefined && { network }),
    ...(kind !== undefined && { interface: kind }),
    ...(linked !== undefined && { linked }),
    ...(plugged !== undefined && { plugged }),
  };
}

const add: Handle = async (context, call) => {
  const { name, ...change } = changeOf(context, call.body);
  await machineIn(context, call);
  if (!name) throw incomplete("Nic", ["name"], "add");
  const nic = await whenRefused("add Network Interface", () =>
    addNic(context.database, call.principal, call.params["vm"] ?? "", { ...change, name }),
  );
  return created("nic", view(nic), false);
};

const update: Handle = async (context, call) => {
  const { principal, params, body } = call;
  const change = changeOf(context, body);
  const nic = await whenRefused("edit Network Interface", () =>
    updateNic(context.database, principal, params["vm"] ?? "", params["nic"] ?? "", change),
  );
  return shown("nic", view(nic));
};

const plugging =
  (plugged: boolean): Handle =>
  async ({ database }, { principal, params }) => {
    await whenRefused(`${plugged ? "activate" : "deactivate"} Network Interface`, () =>
      updateNic(database, principal, params["vm"] ?? "", params["nic"] ?? "", { plugged }),
    );
    return done();
  };

const remove: Handle = async ({ database }, { principal, params }) => {
  await whenRefused("remove Network Interface", () =>
    removeNic(database, principal, params["vm"] ?? "", params["nic"] ?? ""),
  );
  return done();
};

export const nicRoutes: readonly Route[] = [
  ["GET", "/vms/:vm/nics", "ovirt:get", list],
  ["POST", "/vms/:vm/nics", "ovirt:change", add],
  ["GET", "/vms/:vm/nics/:nic", "ovirt:get", show],
  ["PUT", "/vms/:vm/nics/:nic", "ovirt:change", update],
  ["DELETE", "/vms/:vm/nics/:nic", "ovirt:change", remove],
  ["ACTION", "/vms/:vm/nics/:nic/activate", "ovirt:change", plugging(true)],
  ["ACTION", "/vms/:vm/nics/:nic/deactivate", "ovirt:change", plugging(false)],
  ["GET", "/vms/:vm/nics/:nic/reporteddevices", "ovirt:get", devices],
];
