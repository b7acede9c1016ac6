import {
  forceDeleteVolume,
  getBackup,
  getGroup,
  getSnapshot,
  getVolume,
  requestVolume,
  requestVolumeDelete,
  requestVolumeFromBackup,
  updateVolume,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { allow } from "../../http/policy.ts";
import { badRequest, Refusal } from "../../http/refusals.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { flagOf } from "../../openstack/listing.ts";
import { malformedRequest, since } from "../../openstack/microversions.ts";
import { listVolumesAs, summarize } from "./list.ts";
import { type CreateVolumeBody, createVolumeBody, updateVolumeBody } from "./schemas.ts";
import { defaultVolumeType, volumeCore, volumeDetail, volumeSummary } from "./views.ts";

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = (context: Context, call: Call) => getVolume(context.database, call.principal, idOf(call));

/** 2^53 bytes in GiB: larger lengths cannot be represented exactly. */
export const volumeGibMax = 8_388_607;

const groupOf = (volume: CreateVolumeBody["volume"]): string | null =>
  volume.group_id || volume.consistencygroup_id || null;

/** Everything a request refers to must exist; checked in Cinder's order, before anything else. @throws NotFoundError, Refusal */
async function checkNamed({ database }: Context, call: Call<CreateVolumeBody>): Promise<void> {
  const { volume } = call.body;
  const type = volume.volume_type;
  if (type && type !== defaultVolumeType.name && type !== defaultVolumeType.id) {
    throw new Refusal(404, `Volume type with name ${type} could not be found.`);
  }
  if (volume.snapshot_id !== null) await getSnapshot(database, call.principal, volume.snapshot_id);
  if (volume.source_volid !== null) await getVolume(database, call.principal, volume.source_volid);
  const group = groupOf(volume);
  if (group) await getGroup(database, call.principal, group);
  if (volume.image_id !== null || volume.imageRef !== null) {
    throw badRequest("Invalid image identifier or unable to access requested image.");
  }
  if (volume.backup_id) await getBackup(database, call.principal, volume.backup_id);
  if (volume.multiattach) {
    throw badRequest(
      "multiattach parameter has been removed. The default behavior is to use multiattach enabled volume types. Contact your " +
        "administrator to create a multiattach enabled volume type and use it to create multiattach volumes.",
    );
  }
}

/** @throws Refusal 400 */
function checkSize(size: number | null): void {
  if (size === null || size <= volumeGibMax) return;
  const wanted = "(size argument must be an integer (or string representation of an integer) and greater than zero)";
  throw badRequest(`Invalid input received: Invalid volume size provided for create request: ${size} ${wanted}.`);
}

/** @throws Refusal 400 */
function checkZone(context: Context, zone: string | null): void {
  const zones = [context.config.availability_zone, ...context.config.repositories.map((r) => r.zone)];
  if (zone !== null && !zones.includes(zone)) throw badRequest(`Availability zone '${zone}' is invalid.`);
}

type Text = string | null | undefined;
type Names = { name: Text; description: Text; display_name: Text; display_description: Text };

/** The fields that were sent; `name` takes precedence over its older alias. */
function namesOf(sent: Names): { name?: string | null; description?: string | null } {
  const name = sent.name === undefined ? sent.display_name : sent.name;
  const description = sent.description === undefined ? sent.display_description : sent.description;
  return { ...(name !== undefined && { name }), ...(description !== undefined && { description }) };
}

export const volumes = {
  list: defineAction({ handle: listVolumesAs(volumeSummary) }),
  detail: defineAction({ handle: listVolumesAs(volumeDetail) }),
  summary: defineAction({ since: since.volumeSummary, handle: summarize }),
  show: defineAction({
    load,
    handle: async (context, call) => ({ status: 200, body: { volume: volumeDetail(call, await load(context, call)) } }),
  }),
  create: defineAction({
    body: createVolumeBody,
    handle: async (context, call) => {
      const { database, config } = context;
      const { volume } = call.body;
      await checkNamed(context, call);
      const size = volume.size ?? null;
      const zone = volume.availability_zone ?? null;
      checkSize(size);
      const { backup_id: backupId, snapshot_id: snapshotId, source_volid: volumeId } = volume;
      if (size === null && !backupId && snapshotId === null && volumeId === null) {
        throw malformedRequest();
      }
      if (groupOf(volume) && !volume.volume_type) {
        throw badRequest("Invalid input received: volume_type must be provided when creating a volume in a group.");
      }
      if ([snapshotId, volumeId, backupId].filter(Boolean).length > 1) {
        const sources = "backup, imageRef, snapshot, source volume";
        throw badRequest(`Invalid input received: May specify only one of ${sources}`);
      }
      checkZone(context, zone);
      const wanted = {
        name: null,
        description: null,
        ...namesOf(volume),
        sizeGib: size,
        metadata: volume.metadata,
        availabilityZone: zone,
        groupId: groupOf(volume),
      };
      const copied = snapshotId === null ? volumeId && { volumeId } : { snapshotId };
      const row =
        backupId && !copied
          ? await requestVolumeFromBackup(database, config, call.principal, { ...wanted, backupId })
          : await requestVolume(database, config, call.principal, { ...wanted, source: copied || null });
      return { status: 202, body: { volume: volumeCore(call, row) } };
    },
  }),
  update: defineAction({
    body: updateVolumeBody,
    load,
    handle: async ({ database }, call) => {
      const { volume } = call.body;
      const change = { ...namesOf(volume), ...(volume.metadata && { metadata: volume.metadata }) };
      const row = await updateVolume(database, call.principal, idOf(call), change);
      return { status: 200, body: { volume: volumeCore(call, row) } };
    },
  }),
  remove: defineAction({
    load,
    handle: async (context, call) => {
      const cascade = flagOf(call.query, "cascade");
      const force = call.version >= since.volumeDeleteForce && flagOf(call.query, "force");
      await load(context, call);
      if (force) allow(call.principal, "volume:force_delete");
      await (force ? forceDeleteVolume : requestVolumeDelete)(context.database, call.principal, idOf(call), {
        cascade,
      });
      return { status: 202 };
    },
  }),
  /** Volumes are not encrypted here; Cinder's response for an unencrypted one. */
  encryption: defineAction({
    load,
    handle: async (context, call) => {
      await load(context, call);
      return { status: 200, body: { encryption_key_id: null } };
    },
  }),
};
