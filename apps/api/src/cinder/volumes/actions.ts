import {
  attachVolume,
  beginDetaching,
  type Database,
  detachVolume,
  forceDeleteVolume,
  getVolume,
  type Principal,
  requestVolumeExtend,
  reserveVolume,
  resetVolume,
  rollDetaching,
  setVolumeReadOnly,
  unreserveVolume,
  updateVolume,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { badRequest } from "../../http/refusals.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { since } from "../../openstack/microversions.ts";
import {
  attachVolumeBody,
  detachVolumeBody,
  extendVolumeBody,
  forceDetachVolumeBody,
  resetVolumeBody,
  setBootableBody,
  setReadOnlyBody,
} from "./schemas.ts";
import { volumeGibMax } from "./volumes.ts";

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = (context: Context, call: Call) => getVolume(context.database, call.principal, idOf(call));

/** An action whose body contains nothing but its name. */
const plain = (verb: (database: Database, principal: Principal, id: string) => Promise<void>) =>
  defineAction({
    load,
    handle: async ({ database }, call) => {
      await verb(database, call.principal, idOf(call));
      return { status: 202 };
    },
  });

/** Volume actions (cinder-api 7.4). */
export const volumeActions = {
  reserve: plain(reserveVolume),
  unreserve: plain(unreserveVolume),
  beginDetaching: plain(beginDetaching),
  rollDetaching: plain(rollDetaching),
  forceDelete: plain((database, principal, id) => forceDeleteVolume(database, principal, id, { cascade: false })),
  attach: defineAction({
    body: attachVolumeBody,
    load,
    handle: async ({ database }, call) => {
      const attach = call.body["os-attach"];
      await attachVolume(database, call.principal, idOf(call), {
        serverId: attach.instance_uuid ?? null,
        hostName: attach.host_name ?? null,
        device: attach.mountpoint,
        mode: attach.mode ?? "rw",
      });
      return { status: 202 };
    },
  }),
  detach: defineAction({
    body: detachVolumeBody,
    load,
    handle: async ({ database }, call) => {
      await detachVolume(database, call.principal, idOf(call), call.body["os-detach"].attachment_id);
      return { status: 202 };
    },
  }),
  forceDetach: defineAction({
    body: forceDetachVolumeBody,
    load,
    handle: async ({ database }, call) => {
      await detachVolume(database, call.principal, idOf(call), call.body["os-force_detach"].attachment_id);
      return { status: 202 };
    },
  }),
  extend: defineAction({
    body: extendVolumeBody,
    load,
    handle: async ({ database, config }, call) => {
      const sizeGib = call.body["os-extend"].new_size;
      if (sizeGib > volumeGibMax) throw badRequest(`Invalid input received: No volume can have ${sizeGib} GiB here.`);
      const inUse = call.version >= since.volumeExtendInUse;
      await requestVolumeExtend(database, config, call.principal, idOf(call), { sizeGib, inUse });
      return { status: 202 };
    },
  }),
  setBootable: defineAction({
    body: setBootableBody,
    load,
    handle: async ({ database }, call) => {
      await updateVolume(database, call.principal, idOf(call), call.body["os-set_bootable"]);
      return { status: 200 };
    },
  }),
  setReadOnly: defineAction({
    body: setReadOnlyBody,
    load,
    handle: async ({ database }, call) => {
      await setVolumeReadOnly(database, call.principal, idOf(call), call.body["os-update_readonly_flag"].readonly);
      return { status: 202 };
    },
  }),
  resetStatus: defineAction({
    body: resetVolumeBody,
    load,
    handle: async ({ database }, call) => {
      const { status, attach_status: attachStatus } = call.body["os-reset_status"];
      await resetVolume(database, call.principal, idOf(call), { status, detached: attachStatus === "detached" });
      return { status: 202 };
    },
  }),
};
