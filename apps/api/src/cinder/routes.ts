import type { Route } from "../openstack/serve.ts";
import { backups } from "./backups/backups.ts";
import { records } from "./backups/records.ts";
import { volumeFromBackup } from "./beside/volume-from-backup.ts";
import { groupSnapshots } from "./groups/group-snapshots.ts";
import { groupTypes } from "./groups/group-types.ts";
import { groups } from "./groups/groups.ts";
import { messages } from "./service/messages.ts";
import { limits, quotaClasses, quotas } from "./service/quotas.ts";
import { resourceFilters } from "./service/resource-filters.ts";
import { extensions, services, zones } from "./service/services.ts";
import { unused } from "./service/unused.ts";
import { volumeActions } from "./volumes/actions.ts";
import { attachments } from "./volumes/attachments.ts";
import { snapshotMetadata, volumeMetadata } from "./volumes/metadata.ts";
import { capabilities, hosts, pools } from "./volumes/pools.ts";
import { snapshots } from "./volumes/snapshots.ts";
import { osVolumeTransfers, volumeTransfers } from "./volumes/transfers.ts";
import { volumeTypes } from "./volumes/volume-types.ts";
import { volumes } from "./volumes/volumes.ts";

/** Transfers of a volume to another project: the same routes under two names, the older of which is used more. */
const transferRoutes = (path: string, transfers: typeof volumeTransfers): readonly Route[] => [
  ["GET", path, "volume:get_all_transfers", transfers.list],
  ["GET", `${path}/detail`, "volume:get_all_transfers", transfers.detail],
  ["POST", path, "volume:create_transfer", transfers.create],
  ["GET", `${path}/:id`, "volume:get_transfer", transfers.show],
  ["DELETE", `${path}/:id`, "volume:delete_transfer", transfers.remove],
  ["POST", `${path}/:id/accept`, "volume:accept_transfer", transfers.accept],
];

/** Of an installation beside a Cinder: what that has itself is asked there. */
const mountedBeside = /^\/(?:backups|messages|extensions|resource_filters|os-services)(?:\/|$)/;

/** Cinder's v3 API. Each path exists below `/v3` and below `/v3/{project}`. */
export const cinderRoutes: readonly Route[] = [
  ["GET", "/backups", "backup:get_all", backups.list],
  ["GET", "/backups/detail", "backup:get_all", backups.detail],
  ["POST", "/backups", "backup:create", backups.create],
  ["POST", "/backups/import_record", "backup:backup-import", records.import],
  ["GET", "/backups/:id/export_record", "backup:export-import", records.export],
  ["GET", "/backups/:id", "backup:get", backups.show],
  ["PUT", "/backups/:id", "backup:update", backups.update],
  ["DELETE", "/backups/:id", "backup:delete", backups.remove],
  ["POST", "/backups/:id/restore", "backup:restore", backups.restore],
  [
    "ACTION",
    "/backups/:id/action",
    {
      "os-reset_status": ["volume_extension:backup_admin_actions:reset_status", backups.resetStatus],
      "os-force_delete": ["volume_extension:backup_admin_actions:force_delete", backups.forceDelete],
    },
  ],
  ["GET", "/volumes", "volume:get_all", volumes.list],
  ["GET", "/volumes/detail", "volume:get_all", volumes.detail],
  ["GET", "/volumes/summary", "volume:get_all", volumes.summary],
  ["POST", "/volumes", "volume:create", volumes.create],
  ["GET", "/volumes/:id", "volume:get", volumes.show],
  ["PUT", "/volumes/:id", "volume:update", volumes.update],
  ["DELETE", "/volumes/:id", "volume:delete", volumes.remove],
  [
    "ACTION",
    "/volumes/:id/action",
    {
      "os-attach": ["volume_extension:volume_actions:attach", volumeActions.attach],
      "os-detach": ["volume_extension:volume_actions:detach", volumeActions.detach],
      "os-reserve": ["volume_extension:volume_actions:reserve", volumeActions.reserve],
      "os-unreserve": ["volume_extension:volume_actions:unreserve", volumeActions.unreserve],
      "os-begin_detaching": ["volume_extension:volume_actions:begin_detaching", volumeActions.beginDetaching],
      "os-roll_detaching": ["volume_extension:volume_actions:roll_detaching", volumeActions.rollDetaching],
      "os-extend": ["volume:extend", volumeActions.extend],
      "os-set_bootable": ["volume:update", volumeActions.setBootable],
      "os-update_readonly_flag": ["volume:update_readonly_flag", volumeActions.setReadOnly],
      "os-reset_status": ["volume_extension:volume_admin_actions:reset_status", volumeActions.resetStatus],
      "os-force_delete": ["volume_extension:volume_admin_actions:force_delete", volumeActions.forceDelete],
      "os-force_detach": ["volume_extension:volume_admin_actions:force_detach", volumeActions.forceDetach],
    },
  ],
  ["GET", "/volumes/:id/metadata", "volume:get_volume_metadata", volumeMetadata.list],
  ["POST", "/volumes/:id/metadata", "volume:create_volume_metadata", volumeMetadata.add],
  ["PUT", "/volumes/:id/metadata", "volume:update_volume_metadata", volumeMetadata.replace],
  ["GET", "/volumes/:id/metadata/:key", "volume:get_volume_metadata", volumeMetadata.show],
  ["PUT", "/volumes/:id/metadata/:key", "volume:update_volume_metadata", volumeMetadata.set],
  ["DELETE", "/volumes/:id/metadata/:key", "volume:delete_volume_metadata", volumeMetadata.remove],
  ["GET", "/snapshots", "volume:get_all_snapshots", snapshots.list],
  ["GET", "/snapshots/detail", "volume:get_all_snapshots", snapshots.detail],
  ["POST", "/snapshots", "volume:create_snapshot", snapshots.create],
  ["GET", "/snapshots/:id", "volume:get_snapshot", snapshots.show],
  ["PUT", "/snapshots/:id", "volume:update_snapshot", snapshots.update],
  ["DELETE", "/snapshots/:id", "volume:delete_snapshot", snapshots.remove],
  [
    "ACTION",
    "/snapshots/:id/action",
    {
      "os-update_snapshot_status": [
        "snapshot_extension:snapshot_actions:update_snapshot_status",
        snapshots.updateStatus,
      ],
      "os-reset_status": ["volume_extension:snapshot_admin_actions:reset_status", snapshots.resetStatus],
      "os-force_delete": ["volume_extension:snapshot_admin_actions:force_delete", snapshots.forceDelete],
    },
  ],
  ["GET", "/snapshots/:id/metadata", "volume:get_snapshot_metadata", snapshotMetadata.list],
  ["POST", "/snapshots/:id/metadata", "volume:update_snapshot_metadata", snapshotMetadata.add],
  ["PUT", "/snapshots/:id/metadata", "volume:update_snapshot_metadata", snapshotMetadata.replace],
  ["GET", "/snapshots/:id/metadata/:key", "volume:get_snapshot_metadata", snapshotMetadata.show],
  ["PUT", "/snapshots/:id/metadata/:key", "volume:update_snapshot_metadata", snapshotMetadata.set],
  ["DELETE", "/snapshots/:id/metadata/:key", "volume:delete_snapshot_metadata", snapshotMetadata.remove],
  ["GET", "/types", "volume_extension:type_get_all", volumeTypes.list],
  ["GET", "/types/:id", "volume_extension:type_get", volumeTypes.show],
  ["GET", "/types/:id/extra_specs", "volume_extension:types_extra_specs:index", volumeTypes.extraSpecs],
  ["GET", "/types/:id/extra_specs/:key", "volume_extension:types_extra_specs:index", volumeTypes.extraSpec],
  ["GET", "/types/:id/encryption", "volume_extension:volume_type_encryption:get", volumeTypes.encryption],
  [
    "GET",
    "/types/:id/os-volume-type-access",
    "volume_extension:volume_type_access:get_all_for_type",
    volumeTypes.access,
  ],
  ["GET", "/attachments", "volume:get_all", attachments.list],
  ["GET", "/attachments/detail", "volume:get_all", attachments.detail],
  ["POST", "/attachments", "volume:attachment_create", attachments.create],
  ["GET", "/attachments/:id", "volume:get", attachments.show],
  ["PUT", "/attachments/:id", "volume:attachment_update", attachments.update],
  ["DELETE", "/attachments/:id", "volume:attachment_delete", attachments.remove],
  ["ACTION", "/attachments/:id/action", { "os-complete": ["volume:attachment_complete", attachments.complete] }],
  ...transferRoutes("/os-volume-transfer", osVolumeTransfers),
  ...transferRoutes("/volume-transfers", volumeTransfers),
  ["GET", "/volumes/:id/encryption", "volume_extension:volume_encryption_metadata", volumes.encryption],
  ["GET", "/qos-specs", "volume_extension:qos_specs_manage:get_all", unused.qosSpecs],
  ["GET", "/consistencygroups", "consistencygroup:get_all", unused.consistencyGroups],
  ["GET", "/consistencygroups/detail", "consistencygroup:get_all", unused.consistencyGroups],
  ["GET", "/cgsnapshots", "consistencygroup:get_all_cgsnapshots", unused.consistencySnapshots],
  ["GET", "/cgsnapshots/detail", "consistencygroup:get_all_cgsnapshots", unused.consistencySnapshots],
  ["GET", "/scheduler-stats/get_pools", "scheduler_extension:scheduler_stats:get_pools", pools.list],
  ["GET", "/capabilities/:host", "volume_extension:capabilities", capabilities.show],
  ["GET", "/os-hosts", "volume_extension:hosts", hosts.list],
  ["GET", "/os-hosts/:host", "volume_extension:hosts", hosts.show],
  ["GET", "/groups", "group:get_all", groups.list],
  ["GET", "/groups/detail", "group:get_all", groups.detail],
  ["POST", "/groups", "group:create", groups.create],
  ["ACTION", "/groups/action", { "create-from-src": ["group:create", groups.createFromSource] }],
  ["GET", "/groups/:id", "group:get", groups.show],
  ["PUT", "/groups/:id", "group:update", groups.update],
  [
    "ACTION",
    "/groups/:id/action",
    { delete: ["group:delete", groups.remove], reset_status: ["group:reset_status", groups.resetStatus] },
  ],
  ["GET", "/group_types", "group:group_types:get", groupTypes.list],
  ["POST", "/group_types", "group:group_types:create", groupTypes.create],
  ["GET", "/group_types/:id", "group:group_types:get", groupTypes.show],
  ["PUT", "/group_types/:id", "group:group_types:update", groupTypes.update],
  ["DELETE", "/group_types/:id", "group:group_types:delete", groupTypes.remove],
  ["GET", "/group_types/:id/group_specs", "group:group_types_specs:get_all", groupTypes.specs],
  ["POST", "/group_types/:id/group_specs", "group:group_types_specs:create", groupTypes.addSpecs],
  ["GET", "/group_types/:id/group_specs/:key", "group:group_types_specs:get", groupTypes.spec],
  ["PUT", "/group_types/:id/group_specs/:key", "group:group_types_specs:update", groupTypes.setSpec],
  ["DELETE", "/group_types/:id/group_specs/:key", "group:group_types_specs:delete", groupTypes.removeSpec],
  ["GET", "/group_snapshots", "group:get_all_group_snapshots", groupSnapshots.list],
  ["GET", "/group_snapshots/detail", "group:get_all_group_snapshots", groupSnapshots.detail],
  ["POST", "/group_snapshots", "group:create_group_snapshot", groupSnapshots.create],
  ["GET", "/group_snapshots/:id", "group:get_group_snapshot", groupSnapshots.show],
  ["DELETE", "/group_snapshots/:id", "group:delete_group_snapshot", groupSnapshots.remove],
  [
    "ACTION",
    "/group_snapshots/:id/action",
    { reset_status: ["group:reset_group_snapshot_status", groupSnapshots.resetStatus] },
  ],
  ["GET", "/messages", "message:get_all", messages.list],
  ["GET", "/messages/:id", "message:get", messages.show],
  ["DELETE", "/messages/:id", "message:delete", messages.remove],
  ["GET", "/os-quota-sets/:project", "volume_extension:quotas:show", quotas.show],
  ["PUT", "/os-quota-sets/:project", "volume_extension:quotas:update", quotas.update],
  ["DELETE", "/os-quota-sets/:project", "volume_extension:quotas:delete", quotas.remove],
  ["GET", "/os-quota-sets/:project/defaults", "volume_extension:quotas:show", quotas.defaults],
  ["GET", "/os-quota-class-sets/:project", "volume_extension:quota_classes:get", quotaClasses.show],
  ["PUT", "/os-quota-class-sets/:project", "volume_extension:quota_classes:update", quotaClasses.update],
  ["GET", "/limits", "limits_extension:used_limits", limits.show],
  ["GET", "/os-services", "volume_extension:services:index", services.list],
  ["PUT", "/os-services/enable", "volume_extension:services:update", services.enable],
  ["PUT", "/os-services/disable", "volume_extension:services:update", services.disable],
  ["PUT", "/os-services/disable-log-reason", "volume_extension:services:update", services.disableWithReason],
  ["PUT", "/os-services/:action", "volume_extension:services:update", services.other],
  ["GET", "/os-availability-zone", "volume:availability_zone_list", zones.list],
  ["GET", "/extensions", "extension:list", extensions.list],
  ["GET", "/extensions/:alias", "extension:list", extensions.show],
  ["GET", "/resource_filters", "resource_filter:list", resourceFilters.list],
];

export const besideRoutes: readonly Route[] = [
  ...cinderRoutes.filter(([, path]) => mountedBeside.test(path)),
  ["POST", "/volumes", "volume:create", volumeFromBackup],
];
