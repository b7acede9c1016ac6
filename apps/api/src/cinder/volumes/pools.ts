import { type HostUse, listPools, listServices, type Pool, useOfHost } from "@tephra/control";
import type { Context } from "../../context.ts";
import { Refusal } from "../../http/refusals.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { flagOf } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { timeText } from "../../openstack/times.ts";
import { defaultVolumeType, poolName } from "./views.ts";

/** Capabilities that Cinder's schedulers see; a folder has no fixed capacity. */

const driverOf = ({ protocol }: Pool) => ({ vendor_name: "Tephra", driver_version: "1.0", storage_protocol: protocol });

const gib = (bytes: number): number => Math.round((bytes / 1024 ** 3) * 100) / 100;

const capabilitiesOf = (pool: Pool): Record<string, unknown> => ({
  pool_name: pool.backend,
  volume_backend_name: pool.backend,
  ...driverOf(pool),
  total_capacity_gb: "unknown",
  free_capacity_gb: pool.freeBytes === null ? "unknown" : gib(pool.freeBytes),
  allocated_capacity_gb: pool.allocatedGib,
  provisioned_capacity_gb: pool.allocatedGib,
  total_volumes: pool.volumes,
  reserved_percentage: 0,
  max_over_subscription_ratio: "20.0",
  thin_provisioning_support: pool.provisions,
  thick_provisioning_support: false,
  volume_creation_support: pool.provisions,
  snapshot_support: pool.provisions,
  location_info: null,
  QoS_support: false,
  multiattach: false,
  backend_state: pool.up ? "up" : "down",
});

/** Whether a pool matches the query: its name, its volume type, or any of its capabilities as text. */
function isAsked({ query, version }: Call, pool: Pool): boolean {
  if (version < since.poolFilter) return true;
  const { id, name } = defaultVolumeType;
  const known: Record<string, unknown> = { ...capabilitiesOf(pool), name: poolName(pool.backend) };
  return [...query].every(([key, value]) => {
    if (key === "detail") return true;
    if (key === "volume_type") return version < since.poolTypeFilter || value === id || value === name;
    return String(known[key]).toLowerCase() === value.toLowerCase();
  });
}

export const pools = {
  list: defineAction({
    handle: async ({ database, config }, call) => {
      const detail = flagOf(call.query, "detail");
      const found = (await listPools(database, config)).filter((pool) => isAsked(call, pool));
      const view = (pool: Pool) => ({
        name: poolName(pool.backend),
        ...(detail && { capabilities: capabilitiesOf(pool) }),
      });
      return { status: 200, body: { pools: found.map(view) } };
    },
  }),
};

/** The backend that a host identifies: `HOST@BACKEND`, optionally followed by `#` and the pool. */
async function poolOfHost({ database, config }: Context, host: string): Promise<Pool> {
  const services = await listServices(database, config, { binary: "cinder-volume" });
  const [place = ""] = host.split("#");
  const found = (await listPools(database, config)).find(
    ({ backend }) =>
      poolName(backend).startsWith(`${place}#`) ||
      services.some((s) => s.host === place && s.host.endsWith(`@${backend}`)),
  );
  if (!found) throw new Refusal(404, `Can't find service: ${host}`);
  return found;
}

export const capabilities = {
  show: defineAction({
    handle: async (context, call) => {
      const host = call.params["host"] ?? "";
      const pool = await poolOfHost(context, host);
      const body = {
        namespace: `OS::Storage::Capabilities::${host}`,
        ...driverOf(pool),
        volume_backend_name: pool.backend,
        pool_name: pool.backend,
        display_name: null,
        description: null,
        visibility: null,
        replication_targets: [],
        properties: {},
      };
      return { status: 200, body };
    },
  }),
};

const useView = (host: string, project: string, use: Omit<HostUse, "projectId">) => ({
  resource: {
    host,
    project,
    volume_count: String(use.volumes),
    total_volume_gb: String(use.volumeGib),
    snapshot_count: String(use.snapshots),
    total_snapshot_gb: String(use.snapshotGib),
  },
});

export const hosts = {
  list: defineAction({
    handle: async ({ database, config }, { query }) => {
      const zone = query.get("zone");
      const rows = (await listServices(database, config, {})).filter(
        (row) => !row.disabled && (!zone || row.zone === zone),
      );
      const view = (row: (typeof rows)[number]) => ({
        host_name: row.host,
        service: row.binary,
        zone: row.zone,
        "service-status": row.up ? "available" : "unavailable",
        "service-state": "enabled",
        "last-update": timeText(row.updatedAt),
      });
      return { status: 200, body: { hosts: rows.map(view) } };
    },
  }),
  show: defineAction({
    handle: async ({ database, config }, call) => {
      const host = call.params["host"] ?? "";
      const uses = await useOfHost(database, config, host);
      if (uses === null) throw new Refusal(404, `Service cinder-volume could not be found on host ${host}.`);
      const none = { volumes: 0, volumeGib: 0, snapshots: 0, snapshotGib: 0 };
      const total = uses.reduce(
        (sum, use) => ({
          volumes: sum.volumes + use.volumes,
          volumeGib: sum.volumeGib + use.volumeGib,
          snapshots: sum.snapshots + use.snapshots,
          snapshotGib: sum.snapshotGib + use.snapshotGib,
        }),
        none,
      );
      const lines = uses.map((use) => useView(host, use.projectId, use));
      return { status: 200, body: { host: [useView(host, "(total)", total), ...lines] } };
    },
  }),
};
