import {
  createGroup,
  deleteGroup,
  type GroupFilter,
  type GroupSortKey,
  getGroup,
  listGroups,
  requestGroupFromSource,
  resetGroup,
  updateGroup,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { Refusal } from "../../http/refusals.ts";
import { type Answer, type Call, defineAction } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { asPlainQuotaError } from "../../openstack/errors.ts";
import { type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { defaultVolumeType } from "../volumes/views.ts";
import { createFromSourceBody, createGroupBody, deleteGroupBody, resetGroupBody, updateGroupBody } from "./schemas.ts";
import { groupDetail, groupSummary } from "./views.ts";

const listSpec: ListSpec<GroupSortKey> = {
  sortKeys: { id: "id", created_at: "createdAt", name: "name", status: "status", updated_at: "updatedAt" },
  filters: [...enabledFilters.group, "list_volume"],
  adminFilters: ["id", "name", "status", "group_type_id", "availability_zone", "project_id"],
};

const columns: Readonly<Record<string, keyof GroupFilter>> = {
  id: "id",
  name: "name",
  status: "status",
  group_type_id: "groupTypeId",
  availability_zone: "availabilityZone",
  project_id: "projectId",
};

const list =
  (view: typeof groupDetail) =>
  async ({ database }: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, listSpec);
    const pairs = Object.entries(query.filters).flatMap(([key, value]) =>
      columns[key] === undefined ? [] : [[columns[key], value] as const],
    );
    const filter: GroupFilter = Object.fromEntries(pairs);
    const { page, allProjects } = query;
    const rows = query.nothing ? [] : await listGroups(database, call.principal, { filter, allProjects, page });
    return listAnswer(call, query, { name: "groups", links: "group_links", rows, count: rows.length, view });
  };

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = (context: Context, call: Call) => getGroup(context.database, call.principal, idOf(call));

/** There is only one volume type, which every group has. @throws Refusal 404 */
function checkVolumeTypes(types: readonly string[]): void {
  const unknown = types.find((type) => type !== defaultVolumeType.id && type !== defaultVolumeType.name);
  if (unknown !== undefined) throw new Refusal(404, `Volume type ${unknown} could not be found.`);
}

/** Groups of volumes, through Cinder's own API. */
export const groups = {
  list: defineAction({ since: since.groups, handle: list(groupSummary) }),
  detail: defineAction({ since: since.groups, handle: list(groupDetail) }),
  show: defineAction({
    since: since.groups,
    load,
    handle: async (context, call) => ({ status: 200, body: { group: groupDetail(call, await load(context, call)) } }),
  }),
  create: defineAction({
    since: since.groups,
    body: createGroupBody,
    handle: async ({ database, config }, call) => {
      const { group } = call.body;
      checkVolumeTypes(group.volume_types);
      const row = await createGroup(database, config, call.principal, {
        name: group.name,
        description: group.description,
        groupType: group.group_type,
        availabilityZone: group.availability_zone,
      });
      return { status: 202, body: { group: groupSummary(call, row) } };
    },
  }),
  update: defineAction({
    since: since.groups,
    body: updateGroupBody,
    load,
    handle: async ({ database }, call) => {
      const { name, description, add_volumes: addVolumes, remove_volumes: removeVolumes } = call.body.group;
      await updateGroup(database, call.principal, idOf(call), {
        ...(name !== undefined && { name }),
        ...(description !== undefined && { description }),
        addVolumes,
        removeVolumes,
      });
      return { status: 202 };
    },
  }),
  remove: defineAction({
    since: since.groups,
    body: deleteGroupBody,
    load,
    handle: async ({ database }, call) => {
      await deleteGroup(database, call.principal, idOf(call));
      return { status: 202 };
    },
  }),
  resetStatus: defineAction({
    since: since.groupResetStatus,
    body: resetGroupBody,
    load,
    handle: async ({ database }, call) => {
      await resetGroup(database, call.principal, idOf(call), call.body.reset_status.status);
      return { status: 202 };
    },
  }),
  createFromSource: defineAction({
    since: since.groupSnapshots,
    body: createFromSourceBody,
    handle: async ({ database, config }, call) => {
      const wanted = call.body["create-from-src"];
      const row = await requestGroupFromSource(database, config, call.principal, wanted).catch((error: unknown) => {
        throw asPlainQuotaError(error, 400);
      });
      return { status: 202, body: { group: groupSummary(call, row) } };
    },
  }),
};
