import { getSnapshot, getVolume, listSnapshots, requestSnapshot, requestSnapshotDelete } from "@tephra/control";
import type { Context } from "../context.ts";
import { badRequest } from "../refusals.ts";
import { type Answer, type Call, defineAction } from "./call.ts";
import { type ListSpec, listAnswer, parseList } from "./listing.ts";
import { since } from "./microversions.ts";
import { createSnapshotBody } from "./schemas.ts";
import { snapshotDetail, snapshotSummary } from "./views.ts";

type SortKey = Parameters<typeof listSnapshots>[2]["page"]["sort"][number]["key"];

const listSpec: ListSpec<SortKey> = {
  sortKeys: {
    id: "id",
    created_at: "createdAt",
    updated_at: "updatedAt",
    name: "name",
    display_name: "name",
    status: "status",
    volume_size: "sizeGib",
    volume_id: "volumeId",
  },
  sortKeysSince: { name: since.snapshotSortByName },
  filters: ["name", "status", "volume_id"],
  adminFilters: ["project_id"],
};

const list =
  (view: typeof snapshotSummary) =>
  async (context: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, listSpec);
    const { filters } = query;
    const filter = {
      ...(filters["name"] !== undefined && { name: filters["name"] }),
      ...(filters["status"] !== undefined && { status: filters["status"].toLowerCase() }),
      ...(filters["volume_id"] !== undefined && { volumeId: filters["volume_id"] }),
      ...(filters["project_id"] !== undefined && { projectId: filters["project_id"] }),
    };
    const { page, allProjects } = query;
    const found = query.nothing
      ? { rows: [], count: 0 }
      : await listSnapshots(context.database, call.principal, {
          filter,
          allProjects,
          withCount: query.withCount,
          page,
        });
    return listAnswer(call, query, { name: "snapshots", ...found, view });
  };

const load = (context: Context, call: Call) => getSnapshot(context.database, call.principal, call.params["id"] ?? "");

/** From 3.66 on an in-use volume needs no force, and `false` is refused (API spec 4). */
function forced(call: Call, force: boolean | null): boolean {
  if (call.version < since.snapshotInUse) return force ?? false;
  if (force === false) throw badRequest("Invalid input received: force cannot be false since microversion 3.66.");
  return true;
}

export const snapshots = {
  list: defineAction({ handle: list(snapshotSummary) }),
  detail: defineAction({ handle: list(snapshotDetail) }),
  show: defineAction({
    load,
    handle: async (context, call) => {
      return { status: 200, body: { snapshot: snapshotDetail(call, await load(context, call)) } };
    },
  }),
  create: defineAction({
    body: createSnapshotBody,
    load: ({ database }, call) => getVolume(database, call.principal, call.body.snapshot.volume_id),
    handle: async ({ database, config }, call) => {
      const { snapshot } = call.body;
      const row = await requestSnapshot(database, config, call.principal, {
        volumeId: snapshot.volume_id,
        name: snapshot.name ?? snapshot.display_name,
        description: snapshot.description ?? snapshot.display_description,
        metadata: snapshot.metadata,
        force: forced(call, snapshot.force),
      });
      return { status: 202, body: { snapshot: snapshotDetail(call, row) } };
    },
  }),
  remove: defineAction({
    load,
    handle: async ({ database }, call) => {
      await requestSnapshotDelete(database, call.principal, call.params["id"] ?? "");
      return { status: 202 };
    },
  }),
};
