import { type Config, listServices } from "@tephra/control";
import type { Context } from "../context.ts";
import { type Call, type Handle, type Route, shown } from "./call.ts";
import { type Element, group, listOf, reference } from "./element.ts";
import { BareStatus } from "./faults.ts";
import { fixedId, zeroId } from "./fixed-ids.ts";
import { refuseFollow } from "./follow.ts";
import { type Searchable, searched } from "./search.ts";

/**
 * What surrounds machines and disks in oVirt and has no row here: one data center, and the clusters and networks of the configuration, with
 * ids made of their names; hosts, which are those of the registered workers; the template Blank and the root of tags.
 */

interface Named {
  id: string;
  name: string;
}

/** A collection of such objects: the name of its elements, how it is made, shown and searched. */
interface Collection<Item extends Named> {
  path: string;
  names: readonly [list: string, item: string];
  load: (context: Context, call: Call) => Promise<readonly Item[]> | readonly Item[];
  view: (item: Item, context: Context) => Element;
  fields: Searchable<Item>["fields"];
}

const level = { major: 4, minor: 7 } as const;

const dataCenterOf = ({ ovirt }: Config): Named => ({
  id: fixedId("data-center", ovirt.data_center),
  name: ovirt.data_center,
});

export const dataCenterReference = (config: Config): Element => reference("datacenters", dataCenterOf(config).id);

export const clustersOf = ({ ovirt }: Config): Named[] =>
  ovirt.clusters.map((name) => ({ id: fixedId("cluster", name), name }));

const networksOf = ({ ovirt }: Config): Named[] =>
  ovirt.networks.map((name) => ({ id: fixedId("network", name), name }));

/** The id of a host of workers, by its name. */
export const hostIdOf = (host: string): string => fixedId("host", host);

const always = (value: string) => (): readonly string[] => [value];

const byName = { name: (item: Named) => [item.name], id: (item: Named) => [item.id] };

const dataCenters: Collection<Named> = {
  path: "/datacenters",
  names: ["data_centers", "data_center"],
  load: ({ config }) => [dataCenterOf(config)],
  view: ({ id, name }) => ({
    id,
    path: `/datacenters/${id}`,
    links: ["storagedomains", "clusters", "networks"],
    fields: {
      name,
      local: false,
      quota_mode: "disabled",
      status: "up",
      storage_format: "v5",
      version: group(level),
    },
  }),
  fields: { ...byName, status: always("up") },
};

const clusters: Collection<Named> = {
  path: "/clusters",
  names: ["clusters", "cluster"],
  load: ({ config }) => clustersOf(config),
  view: ({ id, name }, { config }) => ({
    id,
    path: `/clusters/${id}`,
    links: ["networks"],
    fields: {
      name,
      cpu: group({ architecture: "x86_64", type: "Secure Intel" }),
      version: group(level),
      data_center: dataCenterReference(config),
    },
  }),
  fields: byName,
};

const networks: Collection<Named> = {
  path: "/networks",
  names: ["networks", "network"],
  load: ({ config }) => networksOf(config),
  view: ({ id, name }, { config }) => ({
    id,
    path: `/networks/${id}`,
    links: ["vnicprofiles"],
    fields: {
      name,
      mtu: 0,
      stp: false,
      usages: listOf("usage", ["vm"]),
      data_center: dataCenterReference(config),
    },
  }),
  fields: byName,
};

const profiles: Collection<Named & { network: string }> = {
  path: "/vnicprofiles",
  names: ["vnic_profiles", "vnic_profile"],
  load: ({ config }) =>
    networksOf(config).map(({ id, name }) => ({ id: fixedId("vnic-profile", name), name, network: id })),
  view: ({ id, name, network }) => ({
    id,
    path: `/vnicprofiles/${id}`,
    fields: {
      name,
      pass_through: group({ mode: "disabled" }),
      port_mirroring: false,
      network: reference("networks", network),
    },
  }),
  fields: byName,
};

const hosts: Collection<Named & { up: boolean }> = {
  path: "/hosts",
  names: ["hosts", "host"],
  load: async ({ database, config }) => {
    const services = await listServices(database, config, { binary: "cinder-backup" });
    const states = new Map<string, boolean>();
    for (const { host, up } of services) states.set(host, up || states.get(host) === true);
    return [...states].map(([name, up]) => ({ id: hostIdOf(name), name, up }));
  },
  view: ({ id, name, up }, { config }) => ({
    id,
    path: `/hosts/${id}`,
    fields: {
      name,
      address: name,
      status: up ? "up" : "non_responsive",
      type: "ovirt_node",
      cluster: reference("clusters", clustersOf(config)[0]?.id ?? ""),
    },
  }),
  fields: {
    ...byName,
    address: (host) => [host.name],
    hw_id: (host) => [host.id],
    status: (host) => [host.up ? "up" : "non_responsive"],
  },
};

/** The id of the first host with workers that live; null where there is none. */
export async function hostThatIsUp({ database, config }: Context): Promise<string | null> {
  const services = await listServices(database, config, { binary: "cinder-backup" });
  const host = services.find(({ up }) => up)?.host;
  return host === undefined ? null : hostIdOf(host);
}

const tags: Collection<Named> = {
  path: "/tags",
  names: ["tags", "tag"],
  load: () => [{ id: zeroId, name: "root" }],
  view: ({ id, name }) => ({ id, path: `/tags/${id}`, fields: { name, description: "root" } }),
  fields: byName,
};

const templates: Collection<Named> = {
  path: "/templates",
  names: ["templates", "template"],
  load: () => [{ id: zeroId, name: "Blank" }],
  view: ({ id, name }, { config }) => ({
    id,
    path: `/templates/${id}`,
    links: ["diskattachments", "nics", "tags"],
    fields: {
      name,
      description: "Blank template",
      status: "ok",
      version: group({ version_name: "base version", version_number: 1 }),
      cluster: reference("clusters", clustersOf(config)[0]?.id ?? ""),
    },
  }),
  fields: { ...byName, status: always("ok") },
};

/** By data center: everything belongs to the only one. */
const searchOf = <Item extends Named>({ fields }: Collection<Item>, { config }: Context): Searchable<Item> => ({
  fields: {
    datacenter: always(config.ovirt.data_center),
    cluster: always(config.ovirt.clusters[0] ?? ""),
    "clusters.name": () => config.ovirt.clusters,
    "storage.name": () => config.volume_backends.map(({ name }) => name),
    ...fields,
  },
  bare: ["name"],
});

const list =
  <Item extends Named>(collection: Collection<Item>): Handle =>
  async (context, call) => {
    refuseFollow(call.follow);
    const [name, item] = collection.names;
    const found = searched(call, await collection.load(context, call), searchOf(collection, context));
    return shown(
      name,
      listOf(
        item,
        found.map((each) => collection.view(each, context)),
      ),
    );
  };

const show =
  <Item extends Named>(collection: Collection<Item>): Handle =>
  async (context, call) => {
    const found = (await collection.load(context, call)).find(({ id }) => id === call.params["id"]?.toLowerCase());
    if (!found) throw new BareStatus(404);
    refuseFollow(call.follow);
    return shown(collection.names[1], collection.view(found, context));
  };

/** What is below an object: all of `inner`, where there is but one `outer`, or an empty list. */
const below =
  <Outer extends Named, Inner extends Named>(outer: Collection<Outer>, inner: Collection<Inner>): Handle =>
  async (context, call) => {
    await show(outer)(context, call);
    return list(inner)(context, call);
  };

const nothingBelow =
  <Outer extends Named>(outer: Collection<Outer>, name: string, item: string): Handle =>
  async (context, call) => {
    await show(outer)(context, call);
    return shown(name, listOf(item, []));
  };

const routesOf = <Item extends Named>(collection: Collection<Item>): readonly Route[] => [
  ["GET", collection.path, "ovirt:get", list(collection)],
  ["GET", `${collection.path}/:id`, "ovirt:get", show(collection)],
];

const profilesOfNetwork: Handle = async (context, call) => {
  await show(networks)(context, call);
  const all = await profiles.load(context, call);
  const views = all.filter(({ network }) => network === call.params["id"]).map((each) => profiles.view(each, context));
  return shown("vnic_profiles", listOf("vnic_profile", views));
};

export const infrastructureRoutes: readonly Route[] = [
  ...routesOf(dataCenters),
  ...routesOf(clusters),
  ...routesOf(networks),
  ...routesOf(profiles),
  ...routesOf(hosts),
  ...routesOf(tags),
  ...routesOf(templates),
  ["GET", "/datacenters/:id/clusters", "ovirt:get", below(dataCenters, clusters)],
  ["GET", "/datacenters/:id/networks", "ovirt:get", below(dataCenters, networks)],
  ["GET", "/clusters/:id/networks", "ovirt:get", below(clusters, networks)],
  ["GET", "/networks/:id/vnicprofiles", "ovirt:get", profilesOfNetwork],
  [
    "GET",
    "/templates/:id/diskattachments",
    "ovirt:get",
    nothingBelow(templates, "disk_attachments", "disk_attachment"),
  ],
  ["GET", "/templates/:id/nics", "ovirt:get", nothingBelow(templates, "nics", "nic")],
  ["GET", "/templates/:id/tags", "ovirt:get", nothingBelow(templates, "tags", "tag")],
];
