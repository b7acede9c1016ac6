import type { QuotaLimit } from "@tephra/control";

/** Keys of a quota set, in Cinder's order, with our names. */
export const quotaKeys = {
  volumes: "volumes",
  per_volume_gigabytes: "per_volume_gigabytes",
  snapshots: "snapshots",
  gigabytes: "gigabytes",
  backups: "backups",
  backup_gigabytes: "backup_gigabytes",
  volumes___DEFAULT__: "volumes_of_type",
  gigabytes___DEFAULT__: "gigabytes_of_type",
  snapshots___DEFAULT__: "snapshots_of_type",
  groups: "groups",
} as const satisfies Record<string, QuotaLimit>;

/** Cinder's key for a limit. */
export const quotaKeyOf = (limit: QuotaLimit): string =>
  Object.entries(quotaKeys).find(([, ours]) => ours === limit)?.[0] ?? limit;
