import { z } from "zod";
import { NbdSource } from "../nbd/nbd-volume.ts";
import { monitorsOf } from "../rbd/rbd-command.ts";
import type { RbdImage } from "../rbd/rbd-name.ts";
import { openRbdToRewrite } from "../rbd/rbd-volume.ts";
import { serveRbd } from "../rbd/serve-rbd.ts";
import { type CephPlace, type ConnectionInfo, type Connector, type ConnectorPlaces, refused } from "./connector.ts";

/** Names as Cinder makes them: nothing in them separates anything for Ceph or QEMU. */
const imageName = /^([^/@\s]{1,128})\/([A-Za-z0-9][A-Za-z0-9._-]{0,254})$/;

const RbdInfo = z.object({
  name: z.string(),
  hosts: z.array(z.string()).min(1),
  ports: z.array(z.union([z.string(), z.int()])),
});

/** By cluster, as its monitors' addresses are at first, or when an attachment has named none of them. */
const known = new WeakMap<CephPlace, ReadonlySet<string>>();

/**
 * An image of Ceph's RBD, as Cinder's own driver attaches it: pool, name and monitors, without a key. Who we are there, and where the
 * cluster is, is configured; what Cinder says must be of one of those clusters and pools.
 */
export const rbd = ({ ceph }: ConnectorPlaces): Connector => ({
  async openSource(info, { frozenAs }) {
    const served = await serveRbd(await imageOf(info, ceph), { writable: false });
    const source = new NbdSource(served.client, async () => frozenAs);
    return Object.assign(source, { [Symbol.asyncDispose]: () => served[Symbol.asyncDispose]() });
  },
  openTarget: async (info, { writers }) => openRbdToRewrite(await imageOf(info, ceph), writers),
});

async function imageOf(info: ConnectionInfo, places: readonly CephPlace[]): Promise<RbdImage> {
  const parsed = RbdInfo.safeParse(info);
  if (!parsed.success) throw refused(`${parsed.error.issues[0]?.path.join(".")} is missing or not of its form`);
  const { name, hosts, ports } = parsed.data;
  const [, pool = "", image = ""] = imageName.exec(name) ?? [];
  if (image === "") throw refused("name is not of the form POOL/IMAGE");
  const having = places.filter(({ pools }) => pools.includes(pool));
  if (having.length === 0) throw refused("the pool in name is none of those that are configured (ceph[].pools)");
  const named = hosts.map((host, at) => `${host.replace(/^\[(.*)\]$/, "$1")}:${ports[at]}`);
  for (const place of having) {
    if (await isOf(place, pool, named)) {
      const { conf = null, user = null, keyring = null } = place;
      return { pool, image, snapshot: null, namespace: null, conf, user, keyring };
    }
  }
  throw refused("hosts and ports name no monitor of a cluster that is configured for that pool");
}

/** Whether one of the addresses is a monitor of that cluster. */
async function isOf(place: CephPlace, pool: string, addresses: readonly string[]): Promise<boolean> {
  const isAmong = (monitors: ReadonlySet<string>): boolean => addresses.some((address) => monitors.has(address));
  const before = known.get(place);
  if (before && isAmong(before)) return true;
  const { conf = null, user = null, keyring = null } = place;
  const monitors = await monitorsOf({ pool, namespace: null, conf, user, keyring });
  known.set(place, monitors);
  return isAmong(monitors);
}
