import { getBackup, getVolume, listBackups, requestBackup, requestBackupDelete, requestRestore } from "@tephra/control";
import type { Context } from "../context.ts";
import { type Answer, type Call, defineAction } from "./call.ts";
import { type ListSpec, listAnswer, parseList } from "./listing.ts";
import { since } from "./microversions.ts";
import { createBackupBody, restoreBackupBody } from "./schemas.ts";
import { backupDetail, backupSummary } from "./views.ts";

type SortKey = Parameters<typeof listBackups>[2]["page"]["sort"][number]["key"];

const listSpec: ListSpec<SortKey> = {
  sortKeys: {
    id: "id",
    created_at: "createdAt",
    updated_at: "updatedAt",
    name: "name",
    display_name: "name",
    status: "status",
    size: "sizeGib",
    volume_id: "volumeId",
    container: "container",
    availability_zone: "availabilityZone",
    snapshot_id: "snapshotId",
    data_timestamp: "dataTimestamp",
    object_count: "objectCount",
    parent_id: "parentId",
    fail_reason: "failReason",
  },
  sortKeysSince: { name: since.backupSortByName },
  filters: ["name", "status", "volume_id"],
  adminFilters: ["project_id", "id", "parent_id", "snapshot_id", "container", "availability_zone"],
};

const list =
  (view: typeof backupSummary | typeof backupDetail) =>
  async (context: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, listSpec);
    const { filters } = query;
    const filter = {
      ...(filters["name"] !== undefined && { name: filters["name"] }),
      ...(filters["status"] !== undefined && { status: filters["status"].toLowerCase() }),
      ...(filters["volume_id"] !== undefined && { volumeId: filters["volume_id"] }),
      ...(filters["project_id"] !== undefined && { projectId: filters["project_id"] }),
      ...(filters["id"] !== undefined && { id: filters["id"] }),
      ...(filters["parent_id"] !== undefined && { parentId: filters["parent_id"] }),
      ...(filters["snapshot_id"] !== undefined && { snapshotId: filters["snapshot_id"] }),
      ...(filters["container"] !== undefined && { container: filters["container"] }),
      ...(filters["availability_zone"] !== undefined && { availabilityZone: filters["availability_zone"] }),
    };
    const { page, allProjects } = query;
    const found = query.nothing
      ? { rows: [], count: 0 }
      : await listBackups(context.database, call.principal, { filter, allProjects, withCount: query.withCount, page });
    return listAnswer(call, query, { name: "backups", ...found, view });
  };

const load = (context: Context, call: Call) => getBackup(context.database, call.principal, call.params["id"] ?? "");

export const backups = {
  list: defineAction({ handle: list(backupSummary) }),
  detail: defineAction({ handle: list(backupDetail) }),
  show: defineAction({
    load,
    handle: async (context, call) => ({ status: 200, body: { backup: backupDetail(call, await load(context, call)) } }),
  }),
  create: defineAction({
    body: createBackupBody,
    load: ({ database }, call) => getVolume(database, call.principal, call.body.backup.volume_id),
    handle: async ({ database, config }, call) => {
      const { backup } = call.body;
      const row = await requestBackup(database, config, call.principal, {
        volumeId: backup.volume_id,
        snapshotId: backup.snapshot_id,
        name: backup.name,
        description: backup.description,
        container: backup.container || null,
        incremental: backup.incremental,
        force: backup.force,
        metadata: backup.metadata ?? {},
        availabilityZone: backup.availability_zone || null,
      });
      return { status: 202, body: { backup: backupSummary(call, row) } };
    },
  }),
  remove: defineAction({
    load,
    handle: async ({ database }, call) => {
      await requestBackupDelete(database, call.principal, call.params["id"] ?? "");
      return { status: 202 };
    },
  }),
  restore: defineAction({
    body: restoreBackupBody,
    load,
    handle: async ({ database, config }, call) => {
      const { volume_id: volumeId, name } = call.body.restore;
      const accepted = await requestRestore(database, config, call.principal, {
        backupId: call.params["id"] ?? "",
        volumeId,
        name,
      });
      const restore = { backup_id: accepted.backupId, volume_id: accepted.volumeId, volume_name: accepted.volumeName };
      return { status: 202, body: { restore } };
    },
  }),
};
