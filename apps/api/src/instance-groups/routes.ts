import type { Route } from "../openstack/serve.ts";
import { instanceGroups } from "./instance-groups.ts";

/** Virtual machines as units; below the same paths as Cinder's routes. */
export const instanceGroupRoutes: readonly Route[] = [
  ["GET", "/instance-groups", "instance_group:get", instanceGroups.list],
  ["GET", "/instance-groups/:id", "instance_group:get", instanceGroups.show],
  ["POST", "/instance-groups/:id/backup", "instance_group:backup", instanceGroups.backup],
  ["PUT", "/instance-groups/:id/restore", "instance_group:restore", instanceGroups.restore],
  ["PUT", "/instance-groups/:id/delete_backup", "instance_group:delete_backup", instanceGroups.deleteBackup],
  ["DELETE", "/instance-groups/:id", "instance_group:delete", instanceGroups.remove],
];
