import { BlockList, isIPv4, isIPv6 } from "node:net";
import { z } from "zod";
import { type IscsiLogin, isPassword, isTargetName, lunMax, serveLun } from "../iscsi/iscsi-volume.ts";
import { NbdSource, openInPlace } from "../nbd/nbd-volume.ts";
import type { VolumeTarget } from "../volume.ts";
import { type ConnectionInfo, type Connector, type ConnectorPlaces, refused } from "./connector.ts";
import { lockHere } from "./lock-here.ts";

const IscsiInfo = z.object({
  target_portal: z.string(),
  target_iqn: z.string().refine(isTargetName),
  target_lun: z.int().min(0).max(lunMax),
  auth_method: z.enum(["CHAP", "None"]).nullish(),
  auth_username: z
    .string()
    .regex(/^[\x21-\x7e]{1,255}$/)
    .nullish(),
  auth_password: z.string().refine(isPassword).nullish(),
});

/** `192.0.2.1:3260`, `[2001:db8::1]:3260`: an address, as a name could lead elsewhere. */
const portalForm = /^(?:([0-9.]{7,15})|\[([0-9a-fA-F:.]{2,45})\]):([1-9][0-9]{0,4})$/;

/**
 * A LUN of iSCSI, by libiscsi in qemu-nbd: neither an initiator of the kernel nor root. One portal, which must be at one of the configured
 * addresses. The CHAP password comes with each answer of Cinder's, and goes to qemu-nbd as a descriptor.
 */
export const iscsi = ({ iscsiPortals, lockFolder }: ConnectorPlaces): Connector => ({
  async openSource(info, { frozenAs, initiator }) {
    const { served } = await serveLun({ ...lunOf(info, iscsiPortals), initiator }, { writable: false });
    const source = new NbdSource(served.client, async () => frozenAs);
    return Object.assign(source, { [Symbol.asyncDispose]: () => served[Symbol.asyncDispose]() });
  },
  async openTarget(info, { writers, initiator }) {
    const lun = lunOf(info, iscsiPortals);
    await using stack = new AsyncDisposableStack();
    // A target lets a second session of ours write, too. qemu-nbd has the lock as well: it may outlive a worker for a moment.
    const lock = stack.use(await lockHere(lockFolder, initiator, writers));
    const { served, shown } = await serveLun({ ...lun, initiator }, { writable: true, files: [lock] });
    stack.use(served);
    const { target } = await openInPlace(served.client, { name: shown, sizeBytes: 0, server: served });
    const owned = stack.move();
    return Object.assign(target, { [Symbol.asyncDispose]: () => owned.disposeAsync() }) satisfies VolumeTarget;
  },
});

function lunOf(
  info: ConnectionInfo,
  portals: readonly string[],
): { portal: string; target: string; lun: number; login: IscsiLogin | null } {
  const parsed = IscsiInfo.safeParse(info);
  if (!parsed.success) throw refused(`${parsed.error.issues[0]?.path.join(".")} is missing or not of its form`);
  const { target_portal: portal, target_iqn: target, target_lun: lun, auth_username, auth_password } = parsed.data;
  const [, v4 = "", v6 = "", port = ""] = portalForm.exec(portal) ?? [];
  if (!(isIPv4(v4) || isIPv6(v6)) || Number(port) > 65_535)
    throw refused("target_portal is not of the form ADDRESS:PORT");
  if (!isAmong(v4 || v6, portals)) throw refused("target_portal is none of those that are configured (iscsi_portals)");
  const [user, password] = [auth_username ?? null, auth_password ?? null];
  if (user === null && password === null) return { portal, target, lun, login: null };
  if (user === null || password === null)
    throw refused("it has one of auth_username and auth_password without the other");
  return { portal, target, lun, login: { user, password } };
}

function isAmong(address: string, places: readonly string[]): boolean {
  const list = new BlockList();
  for (const place of places) {
    const [base = "", bits] = place.split("/");
    const family = isIPv4(base) ? "ipv4" : "ipv6";
    if (bits === undefined) list.addAddress(base, family);
    else list.addSubnet(base, Number(bits), family);
  }
  return list.check(address, isIPv4(address) ? "ipv4" : "ipv6");
}
