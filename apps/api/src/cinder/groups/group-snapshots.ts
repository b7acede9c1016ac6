import {
  type GroupSnapshotFilter,
  type GroupSnapshotSortKey,
  getGroupSnapshot,
  listGroupSnapshots,
  requestGroupSnapshot,
  requestGroupSnapshotDelete,
  resetGroupSnapshot,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { type Answer, type Call, defineAction } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { createGroupSnapshotBody, resetGroupSnapshotBody } from "./schemas.ts";
import { groupSnapshotDetail, groupSummary } from "./views.ts";

const listSpec: ListSpec<GroupSnapshotSortKey> = {
  sortKeys: { id: "id", created_at: "createdAt", name: "name", status: "status", updated_at: "updatedAt" },
  filters: enabledFilters.group_snapshot,
  adminFilters: ["id", "name", "group_type_id", "project_id"],
};

const columns: Readonly<Record<string, keyof GroupSnapshotFilter>> = {
  id: "id",
  name: "name",
  status: "status",
  group_id: "groupId",
  group_type_id: "groupTypeId",
  project_id: "projectId",
};

const list =
  (view: typeof groupSnapshotDetail) =>
  async ({ database }: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, listSpec);
    const pairs = Object.entries(query.filters).flatMap(([key, value]) =>
      columns[key] === undefined ? [] : [[columns[key], value] as const],
    );
    const filter: GroupSnapshotFilter = Object.fromEntries(pairs);
    const { page, allProjects } = query;
    const rows = query.nothing ? [] : await listGroupSnapshots(database, call.principal, { filter, allProjects, page });
    const links = "group_snapshot_links";
    return listAnswer(call, query, { name: "group_snapshots", links, rows, count: rows.length, view });
  };

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = (context: Context, call: Call) => getGroupSnapshot(context.database, call.principal, idOf(call));

/** Snapshots of all volumes of a group at one point in time, through Cinder's own API. */
export const groupSnapshots = {
  list: defineAction({ since: since.groupSnapshots, handle: list(groupSummary) }),
  detail: defineAction({ since: since.groupSnapshots, handle: list(groupSnapshotDetail) }),
  show: defineAction({
    since: since.groupSnapshots,
    load,
    handle: async (context, call) => {
      return { status: 200, body: { group_snapshot: groupSnapshotDetail(call, await load(context, call)) } };
    },
  }),
  create: defineAction({
    since: since.groupSnapshots,
    body: createGroupSnapshotBody,
    handle: async ({ database, config }, call) => {
      const { group_id: groupId, name, description } = call.body.group_snapshot;
      const row = await requestGroupSnapshot(database, config, call.principal, { groupId, name, description });
      const view = { ...groupSummary(call, row), group_type_id: row.groupTypeId };
      return { status: 202, body: { group_snapshot: view } };
    },
  }),
  remove: defineAction({
    since: since.groupSnapshots,
    load,
    handle: async ({ database, config }, call) => {
      await requestGroupSnapshotDelete(database, config, call.principal, idOf(call));
      return { status: 202 };
    },
  }),
  resetStatus: defineAction({
    since: since.groupSnapshotResetStatus,
    body: resetGroupSnapshotBody,
    load,
    handle: async ({ database }, call) => {
      await resetGroupSnapshot(database, call.principal, idOf(call), call.body.reset_status.status);
      return { status: 202 };
    },
  }),
};
