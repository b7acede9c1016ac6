import { listPools, type Pool } from "@tephra/control";
import type { Context } from "../context.ts";
import { type Call, type Handle, type Route, shown } from "./call.ts";
import { type Element, group, listOf } from "./element.ts";
import { BareStatus } from "./faults.ts";
import { fixedId } from "./fixed-ids.ts";
import { refuseFollow } from "./follow.ts";
import { dataCenterReference } from "./infrastructure.ts";
import { type Searchable, searched } from "./search.ts";

const GiB = 2 ** 30;

/** The id of the storage domain that a volume backend is. */
export const storageDomainId = (backend: string): string => fixedId("storage-domain", backend);

const idOf = ({ backend }: Pool): string => storageDomainId(backend);

/** A volume backend as oVirt's storage domain. `available` is what workers report of it, 0 where none does. */
const view = (pool: Pool, isMaster: boolean, { config }: Context): Element => {
  const id = idOf(pool);
  const used = pool.allocatedGib * GiB;
  return {
    id,
    path: `/storagedomains/${id}`,
    links: ["disks", "disksnapshots"],
    fields: {
      name: pool.backend,
      description: "",
      comment: "",
      available: pool.freeBytes ?? 0,
      used,
      committed: used,
      external_status: "ok",
      master: isMaster,
      storage: group({ type: "posixfs" }),
      storage_format: "v5",
      type: "data",
      status: pool.up ? "active" : "inactive",
      data_centers: listOf("data_center", [dataCenterReference(config)]),
    },
  };
};

const searchOf = ({ config }: Context): Searchable<Pool> => ({
  fields: {
    name: (pool) => [pool.backend],
    id: (pool) => [idOf(pool)],
    status: (pool) => [pool.up ? "active" : "inactive"],
    datacenter: () => [config.ovirt.data_center],
    type: () => ["data"],
  },
  bare: ["name"],
});

const domainsOf = async (context: Context): Promise<{ pool: Pool; view: Element }[]> => {
  const pools = await listPools(context.database, context.config);
  return pools.map((pool, at) => ({ pool, view: view(pool, at === 0, context) }));
};

const listDomains: Handle = async (context, call) => {
  refuseFollow(call.follow);
  const domains = await domainsOf(context);
  const found = searched(
    call,
    domains.map(({ pool }) => pool),
    searchOf(context),
  );
  const views = domains.filter(({ pool }) => found.includes(pool)).map((domain) => domain.view);
  return shown("storage_domains", listOf("storage_domain", views));
};

/** @throws BareStatus 404 */
async function domainOf(context: Context, { params }: Call, name: string): Promise<Element> {
  const found = (await domainsOf(context)).find((domain) => domain.view.id === params[name]?.toLowerCase());
  if (!found) throw new BareStatus(404);
  return found.view;
}

const showDomain: Handle = async (context, call) => {
  refuseFollow(call.follow);
  return shown("storage_domain", await domainOf(context, call, "domain"));
};

/** Every domain is attached to the only data center. */
export const storageDomainRoutes: readonly Route[] = [
  ["GET", "/storagedomains", "ovirt:get", listDomains],
  ["GET", "/storagedomains/:domain", "ovirt:get", showDomain],
  ["GET", "/datacenters/:id/storagedomains", "ovirt:get", listDomains],
  ["GET", "/datacenters/:id/storagedomains/:domain", "ovirt:get", showDomain],
];
