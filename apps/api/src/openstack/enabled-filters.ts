/** Resource → filters open to everyone, as in the file that Cinder ships (cinder-api 5.3, 9.7). */
export const enabledFilters = {
  volume: [
    "name",
    "status",
    "metadata",
    "bootable",
    "migration_status",
    "availability_zone",
    "group_id",
    "size",
    "created_at",
    "updated_at",
    "consumes_quota",
  ],
  backup: ["name", "status", "volume_id"],
  snapshot: ["name", "status", "volume_id", "metadata", "availability_zone", "consumes_quota"],
  group: [],
  pool: ["name", "volume_type"],
  attachment: ["volume_id", "status", "instance_id", "attach_status"],
  group_snapshot: ["status", "group_id"],
  volume_type: ["is_public", "extra_specs"],
  message: ["resource_uuid", "resource_type", "event_id", "request_id", "message_level"],
} as const satisfies Record<string, readonly string[]>;
