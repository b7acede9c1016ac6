import { type Principal, type Role, seesAll } from "@tephra/control";
import { Refusal } from "./refusals.ts";

/**
 * Rule → the minimum role that it requires; `user` is anyone with a token, `anyone` needs none. Names are Cinder's where it has one (the
 * new defaults, cinder-api 3.3); `observer` has what admins may read there. The verbs isolate other projects' rows, so a rule needs only a role.
 */
const policy = {
  public: "anyone",
  "backup:get_all": "reader",
  "backup:get": "reader",
  "backup:create": "member",
  "backup:update": "member",
  "backup:delete": "member",
  "backup:restore": "member",
  "backup:backup_project_attribute": "observer",
  "volume_extension:backup_admin_actions:reset_status": "admin",
  "volume_extension:backup_admin_actions:force_delete": "admin",
  "backup:export-import": "admin",
  "backup:backup-import": "admin",
  "volume:get_all": "reader",
  "volume:get": "reader",
  "volume:create": "member",
  "volume:update": "member",
  "volume:delete": "member",
  "volume:force_delete": "admin",
  "volume:extend": "member",
  "volume:update_readonly_flag": "member",
  "volume:get_volume_metadata": "reader",
  "volume:create_volume_metadata": "member",
  "volume:update_volume_metadata": "member",
  "volume:delete_volume_metadata": "member",
  "volume_extension:volume_tenant_attribute": "reader",
  "volume_extension:volume_host_attribute": "observer",
  "volume_extension:volume_mig_status_attribute": "observer",
  "volume_extension:volume_actions:attach": "member",
  "volume_extension:volume_actions:detach": "member",
  "volume_extension:volume_actions:reserve": "member",
  "volume_extension:volume_actions:unreserve": "member",
  "volume_extension:volume_actions:begin_detaching": "member",
  "volume_extension:volume_actions:roll_detaching": "member",
  "volume_extension:volume_admin_actions:reset_status": "admin",
  "volume_extension:volume_admin_actions:force_delete": "admin",
  "volume_extension:volume_admin_actions:force_detach": "admin",
  "volume_extension:type_get": "reader",
  "volume_extension:type_get_all": "reader",
  "volume_extension:access_types_extra_specs": "reader",
  "volume_extension:access_types_qos_specs_id": "observer",
  "volume_extension:types_extra_specs:index": "reader",
  "volume:attachment_create": "member",
  "volume:attachment_update": "member",
  "volume:attachment_complete": "member",
  "volume:attachment_delete": "member",
  "volume:create_transfer": "member",
  "volume:accept_transfer": "member",
  "volume:delete_transfer": "member",
  "volume:get_transfer": "reader",
  "volume:get_all_transfers": "reader",
  "volume_extension:volume_type_encryption:get": "observer",
  "volume_extension:volume_encryption_metadata": "reader",
  "volume_extension:qos_specs_manage:get_all": "observer",
  "volume_extension:volume_type_access:get_all_for_type": "observer",
  "volume_extension:hosts": "observer",
  "volume_extension:capabilities": "observer",
  "scheduler_extension:scheduler_stats:get_pools": "observer",
  "consistencygroup:get_all": "member",
  "consistencygroup:get_all_cgsnapshots": "member",
  "volume:get_all_snapshots": "reader",
  "volume:get_snapshot": "reader",
  "volume:create_snapshot": "member",
  "volume:update_snapshot": "member",
  "volume:delete_snapshot": "member",
  "volume:get_snapshot_metadata": "reader",
  "volume:update_snapshot_metadata": "member",
  "volume:delete_snapshot_metadata": "member",
  "snapshot_extension:snapshot_actions:update_snapshot_status": "member",
  "volume_extension:snapshot_admin_actions:reset_status": "admin",
  "volume_extension:snapshot_admin_actions:force_delete": "admin",
  "message:get_all": "reader",
  "message:get": "reader",
  "message:delete": "member",
  "volume_extension:quotas:show": "reader",
  "volume_extension:quotas:update": "admin",
  "volume_extension:quotas:delete": "admin",
  "volume_extension:quota_classes:get": "observer",
  "volume_extension:quota_classes:update": "admin",
  "volume_extension:services:index": "observer",
  "volume_extension:services:update": "admin",
  "limits_extension:used_limits": "reader",
  "volume:availability_zone_list": "user",
  "extension:list": "user",
  "resource_filter:list": "user",
  "ops:session": "user",
  "ops:overview": "reader",
  "ops:alert:snooze": "admin",
  "ops:changes": "reader",
  "ops:search": "reader",
  "ops:samples": "observer",
  "ops:workers": "observer",
  "ops:projects": "observer",
  "ops:repository": "observer",
  "ops:operations": "reader",
  "ops:operation:cancel": "member",
  "ops:operation:retry": "member",
  "ops:operation:prioritize": "admin",
  "ops:volume": "reader",
  "ops:instance:get": "reader",
  "ops:instance:create": "member",
  "ops:instance:update": "member",
  "ops:instance:delete": "member",
  "ops:instance:machine": "admin",
  "ops:group_snapshot": "reader",
  "ops:exclusion": "member",
  "ops:policy:get": "reader",
  "ops:policy:create": "member",
  "ops:policy:update": "member",
  "ops:policy:delete": "member",
  "ops:policy:assign": "member",
  "ops:policy:run": "member",
  "ops:policy:publish": "admin",
  "ovirt:get": "reader",
  "ovirt:change": "member",
  "instance_group:get": "reader",
  "instance_group:backup": "member",
  "instance_group:restore": "member",
  "instance_group:delete_backup": "member",
  "instance_group:delete": "member",
  "group:get_all": "reader",
  "group:get": "reader",
  "group:create": "member",
  "group:update": "member",
  "group:delete": "member",
  "group:reset_status": "admin",
  "group:create_group_snapshot": "member",
  "group:get_all_group_snapshots": "reader",
  "group:get_group_snapshot": "reader",
  "group:delete_group_snapshot": "member",
  "group:reset_group_snapshot_status": "admin",
  "group:group_project_attribute": "observer",
  "group:group_snapshot_project_attribute": "observer",
  "group:group_types:get": "reader",
  "group:group_types:create": "admin",
  "group:group_types:update": "admin",
  "group:group_types:delete": "admin",
  "group:access_group_types_specs": "observer",
  "group:group_types_specs:get": "observer",
  "group:group_types_specs:get_all": "observer",
  "group:group_types_specs:create": "admin",
  "group:group_types_specs:update": "admin",
  "group:group_types_specs:delete": "admin",
  "ops:import": "admin",
  "ops:export": "admin",
  "ops:rescan": "admin",
  "ops:reap": "admin",
  "ops:backup": "reader",
  "ops:backup:hold": "member",
  "ops:backup:undelete": "member",
  "ops:backup:purge": "admin",
  "ops:files": "member",
  "ops:verify": "admin",
  "ops:about": "observer",
  "ops:limits": "observer",
  "ops:limits:set": "admin",
  "ops:squash": "member",
  "ops:notifications": "observer",
  "ops:notifications:retry": "admin",
  "ops:audit": "observer",
  "ops:queues": "observer",
} as const satisfies Record<string, Role | "user" | "anyone">;

export type Rule = keyof typeof policy;

/** Roles that each role includes, like Keystone's implied roles. */
const implied: Record<Role, readonly Role[]> = {
  reader: ["reader"],
  member: ["reader", "member"],
  observer: ["reader", "observer"],
  admin: ["reader", "member", "observer", "admin"],
};

/** Called for every route at start-up: the process does not start with a route that has no entry in the table. */
export function assertRule(rule: string, route: string): asserts rule is Rule {
  if (!Object.hasOwn(policy, rule)) throw new Error(`route ${route} has no entry in the policy table: ${rule}`);
}

/** The minimum role that a rule requires; `user` is anyone with a token. */
export const roleOf = (rule: Rule): Role | "user" | "anyone" => policy[rule];

export const isPublic = (rule: Rule): boolean => policy[rule] === "anyone";

/** Whether the principal is allowed; with `projectId`, for a resource of that project which no verb looks up. */
export function may(principal: Principal, rule: Rule, projectId?: string): boolean {
  if (principal.isAdmin) return true;
  const needed: Role | "user" | "anyone" = policy[rule];
  if (needed === "anyone" || needed === "user") return true;
  if (projectId !== undefined && projectId !== principal.projectId && !seesAll(principal)) return false;
  return principal.roles.some((role) => implied[role].includes(needed));
}

/** All rules that the principal meets. */
export const rulesOf = (principal: Principal): Rule[] =>
  (Object.keys(policy) as Rule[]).filter((rule) => may(principal, rule));

/** @throws Refusal 403 with Cinder's message */
export function allow(principal: Principal, rule: Rule, projectId?: string): void {
  if (!may(principal, rule, projectId)) throw new Refusal(403, `Policy doesn't allow ${rule} to be performed.`);
}
