import {
  containing,
  equalText,
  listSnapshots,
  listVolumes,
  type SnapshotFilter,
  type SnapshotSortKey,
  summarizeVolumes,
  type TimeCondition,
  type VolumeFilter,
  type VolumeSortKey,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { badRequest } from "../../http/refusals.ts";
import type { Answer, Call } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { booleanWord, type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { type Microversion, since } from "../../openstack/microversions.ts";
import { parsePythonDict } from "../../openstack/python-text.ts";
import { type snapshotSummary, type volumeSummary, volumesSummary } from "./views.ts";

const volumeList: ListSpec<VolumeSortKey> = {
  sortKeys: {
    id: "id",
    created_at: "createdAt",
    updated_at: "updatedAt",
    launched_at: "launchedAt",
    name: "name",
    display_name: "name",
    display_description: "description",
    status: "status",
    size: "sizeGib",
    user_id: "userId",
    project_id: "projectId",
    snapshot_id: "snapshotId",
    source_volid: "sourceVolumeId",
    availability_zone: "availabilityZone",
    bootable: "bootable",
  },
  filters: enabledFilters.volume,
  adminFilters: ["id", "project_id", "user_id", "snapshot_id", "source_volid", "display_name", "display_description"],
  likeFilters: ["name", "display_name", "description", "display_description", "status", "availability_zone"],
  notBoolean: (text) => {
    throw badRequest(`Value '${text}' for 'all_tenants' is not a boolean.`);
  },
};

const snapshotList: ListSpec<SnapshotSortKey> = {
  sortKeys: {
    id: "id",
    created_at: "createdAt",
    updated_at: "updatedAt",
    name: "name",
    display_name: "name",
    display_description: "description",
    status: "status",
    volume_size: "sizeGib",
    volume_id: "volumeId",
    user_id: "userId",
    project_id: "projectId",
  },
  sortKeysSince: { name: since.snapshotSortByName },
  filters: enabledFilters.snapshot,
  adminFilters: ["id", "project_id", "user_id", "volume_size", "display_name", "display_description"],
  likeFilters: ["name", "display_name", "description", "display_description", "status"],
  notBoolean: () => false,
};

const operators: Readonly<Record<string, TimeCondition["operator"]>> = {
  gt: "gt",
  gte: "gte",
  lt: "lt",
  lte: "lte",
  eq: "equals",
  neq: "not",
};

/** `gt:2026-01-01T00:00:00,lt:…` → conditions. A time without a zone is UTC. @throws Refusal 400 */
function timesOf(name: string, text: string): TimeCondition[] {
  return text.split(",").map((part) => {
    const [word = "", ...rest] = part.split(":");
    const operator = Object.hasOwn(operators, word) ? operators[word] : undefined;
    if (operator === undefined) throw badRequest(`Invalid ${word} operator`);
    const stated = rest.join(":");
    if (stated === "") throw badRequest(`Invalid ${name} value`);
    const zoned = /(?:Z|[+-]\d\d:?\d\d)$/i.test(stated) || !stated.includes("T") ? stated : `${stated}Z`;
    const time = new Date(zoned);
    if (Number.isNaN(time.getTime())) throw badRequest(`Invalid ${stated} value`);
    return { operator, time };
  });
}

/** Before 3.2 every value but `false` is true; from then on only the usual boolean words are accepted (cinder-api 7.1). */
function bootableOf(call: Call, text: string): boolean {
  if (call.version < since.volumeBootableStrict) return !["False", "false", "FALSE", ""].includes(text);
  const bootable = booleanWord(text);
  if (bootable === null) throw badRequest(`Invalid input received: 'bootable = ${text}'`);
  return bootable;
}

/** The column that a filter names, and whether it matches substrings (`key~`). */
function columnOf(key: string): { name: string; like: boolean } {
  const like = key.endsWith("~");
  const name = (like ? key.slice(0, -1) : key).replace(/^display_/, "");
  return { name, like };
}

const textOf = (like: boolean, value: string) => (like ? containing(value) : equalText(value));

const numberOf = (value: string): number => (/^\d{1,9}$/.test(value) ? Number(value) : -1);

/** One filter as conditions on rows; null when no row can match. */
function volumeFilterOf(call: Call, key: string, value: string): VolumeFilter | null {
  const { name, like } = columnOf(key);
  switch (name) {
    case "group_id":
      return { groupId: value };
    case "availability_zone":
      return { availabilityZone: textOf(like, value) };
    case "bootable":
      return { bootable: bootableOf(call, value) };
    case "size":
      return { sizeGib: numberOf(value) };
    case "created_at":
      return { createdAt: timesOf(name, value) };
    case "updated_at":
      return { updatedAt: timesOf(name, value) };
    case "snapshot_id":
      return { snapshotId: value };
    case "source_volid":
      return { sourceVolumeId: value };
    default:
      return filterOfBoth(name, like, value);
  }
}

function snapshotFilterOf(key: string, value: string): SnapshotFilter | null {
  const { name, like } = columnOf(key);
  switch (name) {
    case "availability_zone":
      return { availabilityZone: equalText(value) };
    case "volume_id":
      return { volumeId: value };
    case "volume_size":
      return { sizeGib: numberOf(value) };
    default:
      return filterOfBoth(name, like, value);
  }
}

/** Filters common to volumes and snapshots. */
function filterOfBoth(name: string, like: boolean, value: string): (VolumeFilter & SnapshotFilter) | null {
  switch (name) {
    case "name":
    case "description":
      return { [name]: textOf(like, value) };
    case "status":
      return { status: like ? containing(value) : value };
    case "metadata": {
      const metadata = parsePythonDict(value);
      return metadata && { metadata };
    }
    case "id":
      return { id: value };
    case "project_id":
      return { projectId: value };
    case "user_id":
      return { userId: value };
    case "consumes_quota":
      return booleanWord(value) === true ? {} : null;
    default:
      return null;
  }
}

/** Combines a list's filters; null when no row can match. */
function together<Filter extends object>(filters: readonly (Filter | null)[]): Filter | null {
  return filters.includes(null) ? null : (Object.assign({}, ...filters) as Filter);
}

/** The first version of each filter; older versions silently drop it. From 3.31 on the table of resource filters applies. */
type FiltersSince = Readonly<Record<string, Microversion>>;
const volumeFiltersSince: FiltersSince = {
  group_id: since.volumeFilterGroup,
  created_at: since.unknownFilterRefused,
  updated_at: since.unknownFilterRefused,
  consumes_quota: since.unknownFilterRefused,
};
const snapshotFiltersSince: FiltersSince = {
  metadata: since.snapshotFilterMetadata,
  consumes_quota: since.unknownFilterRefused,
};
const known = (call: Call, filters: Readonly<Record<string, string>>, first: FiltersSince) =>
  Object.entries(filters).filter(([key]) => call.version >= (first[key] ?? 0));

export const listVolumesAs =
  (view: typeof volumeSummary) =>
  async ({ database }: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, volumeList);
    const { page, allProjects, withCount } = query;
    const filters = known(call, query.filters, volumeFiltersSince);
    const filter = together(filters.map(([key, value]) => volumeFilterOf(call, key, value)));
    const found =
      query.nothing || filter === null
        ? { rows: [], cut: false, count: 0 }
        : await listVolumes(database, call.principal, { filter, allProjects, withCount, page });
    return listAnswer(call, query, { name: "volumes", ...found, view });
  };

export const listSnapshotsAs =
  (view: typeof snapshotSummary) =>
  async ({ database }: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, snapshotList);
    const { page, allProjects, withCount } = query;
    const filters = known(call, query.filters, snapshotFiltersSince);
    const filter = together(filters.map(([key, value]) => snapshotFilterOf(key, value)));
    const found =
      query.nothing || filter === null
        ? { rows: [], cut: false, count: 0 }
        : await listSnapshots(database, call.principal, { filter, allProjects, withCount, page });
    return listAnswer(call, query, { name: "snapshots", ...found, view });
  };

/** Number and total size of volumes. */
export async function summarize({ database }: Context, call: Call): Promise<Answer> {
  const { allProjects } = parseList(call, volumeList);
  return { status: 200, body: volumesSummary(call, await summarizeVolumes(database, call.principal, { allProjects })) };
}
