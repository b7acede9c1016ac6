import {
  attachVolume,
  detachVolume,
  getVolume,
  listVolumes,
  requestVolume,
  requestVolumeDelete,
} from "@tephra/control";
import type { Context } from "../context.ts";
import { badRequest, Refusal } from "../refusals.ts";
import { type Answer, type Call, defineAction } from "./call.ts";
import { booleanWord, type ListSpec, listAnswer, parseList } from "./listing.ts";
import { attachVolumeBody, type CreateVolumeBody, createVolumeBody, detachVolumeBody } from "./schemas.ts";
import { defaultVolumeType, volumeDetail, volumeSummary } from "./views.ts";

type SortKey = Parameters<typeof listVolumes>[2]["page"]["sort"][number]["key"];

const listSpec: ListSpec<SortKey> = {
  sortKeys: {
    id: "id",
    created_at: "createdAt",
    updated_at: "updatedAt",
    name: "name",
    display_name: "name",
    status: "status",
    size: "sizeGib",
    availability_zone: "availabilityZone",
    bootable: "bootable",
  },
  filters: ["name", "status", "bootable", "availability_zone", "size", "id"],
  adminFilters: ["project_id"],
};

const list =
  (view: typeof volumeSummary) =>
  async (context: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, listSpec);
    const { filters } = query;
    const bootable = filters["bootable"] === undefined ? null : booleanWord(filters["bootable"]);
    if (filters["bootable"] !== undefined && bootable === null) {
      throw badRequest(`Invalid input received: bootable={'${filters["bootable"]}'}`);
    }
    const filter = {
      ...(filters["name"] !== undefined && { name: filters["name"] }),
      ...(filters["status"] !== undefined && { status: filters["status"].toLowerCase() }),
      ...(filters["id"] !== undefined && { ids: [filters["id"]] }),
      ...(filters["availability_zone"] !== undefined && { availabilityZone: filters["availability_zone"] }),
      ...(filters["project_id"] !== undefined && { projectId: filters["project_id"] }),
      ...(bootable !== null && { bootable }),
      ...(filters["size"] !== undefined && { sizeGib: Number(filters["size"]) }),
    };
    const { page, allProjects } = query;
    const empty = query.nothing || (filter.sizeGib !== undefined && !(filter.sizeGib <= 2_147_483_647));
    const found = empty
      ? { rows: [], count: 0 }
      : await listVolumes(context.database, call.principal, { filter, allProjects, withCount: query.withCount, page });
    return listAnswer(call, query, { name: "volumes", ...found, view });
  };

const load = (context: Context, call: Call) => getVolume(context.database, call.principal, call.params["id"] ?? "");

/** Where a volume's first bytes could come from, were there such volumes: refused, for an empty volume would be a lie. */
const contents = [
  "snapshot_id",
  "source_volid",
  "consistencygroup_id",
  "group_id",
  "backup_id",
  "imageRef",
  "image_id",
] as const;

function checkVolume(context: Context, volume: CreateVolumeBody["volume"]): number {
  if (volume.size === null) {
    const wanted = "(size argument must be an integer (or string representation of an integer) and greater than zero)";
    throw badRequest(`Invalid input received: Invalid volume size provided for create request: None ${wanted}.`);
  }
  for (const key of contents) {
    if (volume[key]) throw badRequest(`Invalid input received: A volume cannot be created from ${key} here.`);
  }
  if (volume.multiattach) throw badRequest("Invalid input received: Volumes cannot be multiattach here.");
  const type = volume.volume_type;
  if (type !== null && type !== defaultVolumeType.name && type !== defaultVolumeType.id) {
    throw new Refusal(404, `Volume type with name ${type} could not be found.`);
  }
  const zones = [context.config.availability_zone, ...context.config.repositories.map((r) => r.zone)];
  if (volume.availability_zone && !zones.includes(volume.availability_zone)) {
    throw badRequest(`Availability zone '${volume.availability_zone}' is invalid.`);
  }
  return volume.size;
}

export const volumes = {
  list: defineAction({ handle: list(volumeSummary) }),
  detail: defineAction({ handle: list(volumeDetail) }),
  show: defineAction({
    load,
    handle: async (context, call) => ({ status: 200, body: { volume: volumeDetail(call, await load(context, call)) } }),
  }),
  create: defineAction({
    body: createVolumeBody,
    handle: async (context, call) => {
      const { volume } = call.body;
      const row = await requestVolume(context.database, context.config, call.principal, {
        sizeGib: checkVolume(context, volume),
        name: volume.name ?? volume.display_name,
        description: volume.description ?? volume.display_description,
        metadata: volume.metadata,
        availabilityZone: volume.availability_zone || null,
      });
      return { status: 202, body: { volume: volumeDetail(call, row) } };
    },
  }),
  remove: defineAction({
    load,
    handle: async ({ database }, call) => {
      await requestVolumeDelete(database, call.principal, call.params["id"] ?? "");
      return { status: 202 };
    },
  }),
  attach: defineAction({
    body: attachVolumeBody,
    load,
    handle: async ({ database }, call) => {
      const attach = call.body["os-attach"];
      if (attach.instance_uuid === null && !attach.host_name) {
        throw badRequest("Invalid request to attach volume to an invalid target");
      }
      await attachVolume(database, call.principal, call.params["id"] ?? "", {
        serverId: attach.instance_uuid,
        hostName: attach.host_name,
        device: attach.mountpoint,
      });
      return { status: 202 };
    },
  }),
  detach: defineAction({
    body: detachVolumeBody,
    load,
    handle: async ({ database }, call) => {
      const { attachment_id: attachmentId } = call.body["os-detach"];
      await detachVolume(database, call.principal, call.params["id"] ?? "", attachmentId);
      return { status: 202 };
    },
  }),
};
