/** Modules of `tempest.api.volume` that are run whole, but for what `leftOut` names. */
export const modules = [
  "test_volumes_backup",
  "admin.test_volumes_backup",
  "test_volumes_snapshots",
  "test_volumes_snapshots_list",
  "test_volumes_snapshots_negative",
  "admin.test_snapshots_actions",
  "test_snapshot_metadata",
  "test_volumes_get",
  "test_volumes_list",
  "admin.test_volumes_list",
  "test_volumes_negative",
  "test_volumes_actions",
  "admin.test_volumes_actions",
  "test_volumes_clone",
  "test_volumes_clone_negative",
  "test_volumes_extend",
  "test_volume_metadata",
  "test_volume_delete_cascade",
  "test_volume_absolute_limits",
  "admin.test_volume_quotas",
  "admin.test_volume_quotas_negative",
  "admin.test_volume_snapshot_quotas_negative",
  "admin.test_volume_quota_classes",
  "admin.test_volume_services",
  "admin.test_volume_services_negative",
  "test_availability_zone",
  "test_versions",
] as const;

/** Tests of these modules that ask for what Tephra does not have, each with the reason. */
export const leftOut: Readonly<Record<string, string>> = {
  "admin.test_snapshots_actions.SnapshotsActionsTest.test_update_snapshot_status":
    "hypervisors take no snapshots for Tephra, so none reports their progress",
  "admin.test_volume_quota_classes.VolumeQuotaClassesTest.test_update_default_quota":
    "makes a volume type; there is one type",
  "admin.test_volume_quotas.VolumeQuotasAdminTestJSON.test_quota_usage_after_volume_transfer":
    "volumes are not transferred between projects",
  "admin.test_volume_services.VolumesServicesTestJSON.test_get_service_by_volume_host_name":
    "a volume belongs to a backend that any number of hosts reach, not to one of them",
  "test_volumes_extend.VolumesExtendTest.test_volume_extend": "makes its volume of an image, though it does not say so",
};

/** Tests that tempest skips by itself, for want of a service of OpenStack's that is not part of Tephra. */
export const skipped: Readonly<Record<string, string>> = {
  "test_volumes_backup.VolumesBackupsTest.test_backup_create_attached_volume": "needs Nova",
  "test_volumes_backup.VolumesBackupsTest.test_bootable_volume_backup_and_restore": "needs Glance",
  "test_volumes_snapshots.VolumesSnapshotTestJSON.test_snapshot_create_delete_with_volume_in_use": "needs Nova",
  "test_volumes_snapshots.VolumesSnapshotTestJSON.test_snapshot_create_offline_delete_online": "needs Nova",
  "test_volumes_get.VolumesGetTest.test_volume_create_get_update_delete_from_image": "needs Glance",
  "test_volumes_negative.VolumesNegativeTest.test_attach_volumes_with_nonexistent_volume_id": "needs Nova",
  "test_volumes_negative.VolumesNegativeTest.test_create_volume_from_deactivated_image": "needs Glance",
  "test_volumes_negative.VolumesNegativeTest.test_create_volume_from_image_with_decreasing_size": "needs Glance",
  "test_volumes_actions.VolumesActionsTest.test_attach_detach_volume_to_instance": "needs Nova",
  "test_volumes_actions.VolumesActionsTest.test_get_volume_attachment": "needs Nova",
  "test_volumes_actions.VolumesActionsTest.test_volume_upload": "needs Glance",
  "admin.test_volumes_actions.VolumesActionsTest.test_force_detach_volume": "needs Nova",
  "test_volumes_clone.VolumesCloneTest.test_create_from_bootable_volume": "needs Glance",
  "test_volumes_extend.VolumesExtendAttachedTest.test_extend_attached_volume": "needs Nova",
};
