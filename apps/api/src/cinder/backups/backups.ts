import {
  type BackupColumn,
  type BackupField,
  type BackupFilter,
  type BackupRow,
  getBackup,
  getVolume,
  listBackups,
  requestBackup,
  requestBackupBeside,
  requestBackupDelete,
  requestBackupForceDelete,
  requestRestore,
  resetBackupStatus,
  showBackup,
  updateBackup,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { type Answer, type Call, defineAction } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { asPlainQuotaError } from "../../openstack/errors.ts";
import { type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { type Microversion, since } from "../../openstack/microversions.ts";
import { restoreBeside } from "../beside/restore.ts";
import { seeVolume } from "../beside/see-volume.ts";
import {
  createBackupBody,
  forceDeleteBackupBody,
  resetBackupBody,
  restoreBackupBody,
  updateBackupBody,
} from "./schemas.ts";
import { backupDetail, backupSummary, detailFieldsOf, summaryFields } from "./views.ts";

/** Every column of Cinder's backups table, by its name there. Those without a counterpart here have the same value for every live row. */
const columns: Readonly<Record<string, BackupColumn>> = {
  id: "id",
  created_at: "createdAt",
  updated_at: "updatedAt",
  deleted_at: "deletedAt",
  deleted: "deletedAt",
  project_id: "projectId",
  user_id: "userId",
  display_name: "name",
  display_description: "description",
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
  host: "host",
  service: "service",
  service_metadata: "serviceMetadata",
  restore_volume_id: "restoreVolumeId",
  encryption_key_id: "encryptionKeyId",
  temp_volume_id: "deletedAt",
  temp_snapshot_id: "deletedAt",
  num_dependent_backups: "deletedAt",
};

/** Names that Cinder translates into column names. */
const filterColumns: typeof columns = { ...columns, name: "name" };

const listSpec: ListSpec<BackupColumn> = {
  sortKeys: { ...columns, name: "name" },
  sortKeysSince: { name: since.backupSortByName },
  filters: enabledFilters.backup,
  adminFilters: Object.keys(columns),
  likeFilters: [...Object.keys(columns), "name", "description"],
};

/** `key~` matches a substring of the value; `description` is a filter only in that form (cinder-api 5.3). */
function filterOf([key, value]: [string, string]): BackupFilter {
  const like = key.endsWith("~");
  const name = like ? key.slice(0, -1) : key;
  const column = like && name === "description" ? "description" : filterColumns[name];
  if (column === undefined) throw new Error(`the list of filters has ${key}, and no column is called so`);
  return { column, value, like };
}

const list =
  <Field extends BackupField>(
    fieldsOf: (version: Microversion) => readonly Field[],
    view: (call: Call, row: Pick<BackupRow, Field | "id">) => unknown,
  ) =>
  async (context: Context, call: Call): Promise<Answer> => {
    const query = parseList(call, listSpec);
    const { page, allProjects, withCount } = query;
    const filters = Object.entries(query.filters).map(filterOf);
    const fields = fieldsOf(call.version);
    const found = query.nothing
      ? { rows: [], cut: false, count: 0 }
      : await listBackups(context.database, call.principal, { fields, filters, allProjects, withCount, page });
    return listAnswer(call, query, { name: "backups", ...found, view });
  };

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = (context: Context, call: Call) => getBackup(context.database, call.principal, idOf(call));

export const backups = {
  list: defineAction({ handle: list(() => summaryFields, backupSummary) }),
  detail: defineAction({ handle: list(detailFieldsOf, backupDetail) }),
  show: defineAction({
    load,
    handle: async ({ database }, call) => {
      const asked = { id: idOf(call), fields: detailFieldsOf(call.version) };
      return { status: 200, body: { backup: backupDetail(call, await showBackup(database, call.principal, asked)) } };
    },
  }),
  create: defineAction({
    body: createBackupBody,
    load: (context, call) =>
      context.cinder === null
        ? getVolume(context.database, call.principal, call.body.backup.volume_id)
        : seeVolume(context, call, call.body.backup.volume_id),
    handle: async (context, call) => {
      const { database, config, cinder } = context;
      const { backup } = call.body;
      const request = {
        volumeId: backup.volume_id,
        snapshotId: backup.snapshot_id,
        name: backup.name,
        description: backup.description,
        container: backup.container || null,
        incremental: backup.incremental,
        force: backup.force,
        metadata: backup.metadata ?? {},
        availabilityZone: backup.availability_zone || null,
      };
      const row =
        cinder === null
          ? await requestBackup(database, config, call.principal, request)
          : await requestBackupBeside(database, config, call.principal, {
              request,
              seen: await seeVolume(context, call, backup.volume_id, backup.snapshot_id),
            });
      return { status: 202, body: { backup: backupSummary(call, row) } };
    },
  }),
  update: defineAction({
    since: since.backupUpdate,
    body: updateBackupBody,
    load,
    handle: async ({ database }, call) => {
      const row = await updateBackup(database, call.principal, idOf(call), call.body.backup);
      return { status: 200, body: { backup: backupSummary(call, row) } };
    },
  }),
  resetStatus: defineAction({
    body: resetBackupBody,
    load,
    handle: async ({ database }, call) => {
      await resetBackupStatus(database, call.principal, idOf(call), call.body["os-reset_status"].status);
      return { status: 202 };
    },
  }),
  forceDelete: defineAction({
    body: forceDeleteBackupBody,
    load,
    handle: async ({ database }, call) => {
      await requestBackupForceDelete(database, call.principal, idOf(call));
      return { status: 202 };
    },
  }),
  remove: defineAction({
    load,
    handle: async ({ database, config }, call) => {
      await requestBackupDelete(database, config, call.principal, idOf(call));
      return { status: 202 };
    },
  }),
  restore: defineAction({
    body: restoreBackupBody,
    load,
    handle: async (context, call) => {
      const { database, config, cinder } = context;
      const { volume_id: volumeId, name } = call.body.restore;
      const request = { backupId: idOf(call), volumeId, name };
      const accepted = await (cinder === null
        ? requestRestore(database, config, call.principal, request)
        : restoreBeside(context, call, request)
      ).catch((error: unknown) => {
        throw asPlainQuotaError(error, 413);
      });
      const restore = { backup_id: accepted.backupId, volume_id: accepted.volumeId, volume_name: accepted.volumeName };
      return { status: 202, body: { restore } };
    },
  }),
};
