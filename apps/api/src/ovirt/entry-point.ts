import { listServices } from "@tephra/control";
import type { Handle } from "./call.ts";
import { type Element, group, reference } from "./element.ts";
import { zeroId } from "./fixed-ids.ts";

/** Collections that are linked from the root. */
const collections = [
  "vms",
  "disks",
  "storagedomains",
  "datacenters",
  "clusters",
  "hosts",
  "imagetransfers",
  "events",
  "jobs",
  "networks",
  "vnicprofiles",
  "tags",
  "templates",
] as const;

/** Those that can be searched, for clients that look for the template of a search. */
const searchable = ["vms", "disks", "storagedomains", "datacenters", "clusters", "hosts", "events", "jobs"] as const;

/** The version of the API that clients believe to talk to: some turn features on and off by it. */
const engineVersion = { build: 7, full_version: "4.5.7-1.el9", major: 4, minor: 5, revision: 0 };

/** What every client asks for first. */
export const showEntryPoint: Handle = async ({ database, config }, { principal }) => {
  const [hosts, vms, active] = await Promise.all([
    listServices(database, config, { binary: "cinder-backup" }),
    database.instance.count({ where: { projectId: principal.projectId } }),
    database.instance.count({ where: { projectId: principal.projectId, powerState: "ACTIVE" } }),
  ]);
  const names = new Map(hosts.map(({ host, up }) => [host, up]));
  const count = (activeCount: number, total: number) => group({ active: activeCount, total });
  const value: Element = {
    links: [
      ...collections.map((name) => [name, `/${name}`] as const),
      ...searchable.map((name) => [`${name}/search`, `/${name}?search={query}`] as const),
    ],
    fields: {
      product_info: group({
        instance_id: zeroId,
        name: "oVirt Engine",
        vendor: "ovirt.org",
        version: group(engineVersion),
      }),
      special_objects: group({
        blank_template: reference("templates", zeroId),
        root_tag: reference("tags", zeroId),
      }),
      summary: group({
        hosts: count([...names.values()].filter(Boolean).length, names.size),
        vms: count(active, vms),
      }),
      time: new Date(),
    },
  };
  return { kind: "shown", root: { name: "api", value }, inHeader: true };
};
