import type { z } from "zod";
import { opsRoutes, v3Routes } from "../../../apps/api/src/app.ts";
import type { Rule } from "../../../apps/api/src/http/policy.ts";
import { versionMax } from "../../../apps/api/src/openstack/microversions.ts";
import { schemaOf } from "../../../apps/api/src/ops/openapi.ts";

/** A field of a route's body that can hold text: its keys from the outermost on; `*` stands for any key, `[]` for any element. */
export interface BodyField {
  /** `METHOD path`, with the name of the action where there is one: the name of a sample body. */
  route: string;
  method: string;
  path: string;
  /** The only key of the body of an action. */
  action: string | null;
  dialect: "cinder" | "ops";
  rule: Rule;
  keys: readonly string[];
}

interface Schema {
  type?: string | string[];
  enum?: unknown[];
  const?: unknown;
  properties?: Record<string, Schema>;
  items?: Schema;
  additionalProperties?: Schema | boolean;
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
}

/** Where text can stand in what the schema describes; a value of any kind can be text. */
function textsIn(schema: Schema, keys: readonly string[]): string[][] {
  const alternatives = [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.allOf ?? [])];
  const { properties, items, additionalProperties: others } = schema;
  const within = [
    ...alternatives.flatMap((one) => textsIn(one, keys)),
    ...Object.entries(properties ?? {}).flatMap(([key, one]) => textsIn(one, [...keys, key])),
    ...(items ? textsIn(items, [...keys, "[]"]) : []),
    ...(typeof others === "object" ? textsIn(others, [...keys, "*"]) : []),
  ];
  const isText = [schema.type].flat().includes("string") && schema.enum === undefined && schema.const === undefined;
  const isAnything = schema.type === undefined && schema.enum === undefined && within.length === 0 && !properties;
  return isText || isAnything ? [[...keys], ...within] : within;
}

function fieldsOf(route: Omit<BodyField, "keys">, schemas: readonly z.ZodType[]): BodyField[] {
  const found = schemas.flatMap((schema) => textsIn(schemaOf(schema) as Schema, []));
  const distinct = new Map(found.map((keys) => [keys.join(" "), keys]));
  return [...distinct.values()].map((keys) => ({ ...route, keys }));
}

const versions = Array.from({ length: versionMax + 1 }, (_, version) => version);

/** Every field that can hold text of every body of every route and microversion, from the tables that the service is made of. */
export const bodyFields: readonly BodyField[] = [
  ...v3Routes.flatMap((route) => {
    const common = { path: route[1], dialect: "cinder" } as const;
    const actions =
      route[0] === "ACTION"
        ? Object.entries(route[2]).map(([action, [rule, { body }]]) => ({ method: "POST", action, rule, body }))
        : [{ method: route[0], action: null, rule: route[2], body: route[3].body }];
    return actions.flatMap(({ body, ...rest }) => {
      const name = [rest.method, route[1], ...(rest.action === null ? [] : [rest.action])].join(" ");
      const schemas = body === undefined ? [] : [...new Set(versions.map((version) => body(version)))];
      return fieldsOf({ ...common, ...rest, route: name }, schemas);
    });
  }),
  ...opsRoutes.flatMap(([method, path, rule, action]) => {
    const schemas = "body" in action && action.body !== undefined ? [action.body] : [];
    return fieldsOf({ route: `${method} ${path}`, method, path, action: null, dialect: "ops", rule }, schemas);
  }),
];

/** What an id names. `server` is a machine that only attachments tell of; `image` names nothing here. */
export type Named =
  | "volume"
  | "snapshot"
  | "backup"
  | "group"
  | "groupSnapshot"
  | "instance"
  | "server"
  | "attachment"
  | "container"
  | "project"
  | "record"
  | "image"
  | "policy";

/** What a field that bears an id names, and the fields of the sample body that cannot stand beside it. */
interface IdField {
  names: Named;
  without?: readonly string[];
  /** In the sample, the project's own is refused in the same words. */
  ownRefused?: true;
}

const otherSources = { without: ["snapshot_id"] };

/** Every field of a body that bears an id: `ROUTE: keys`. */
export const idFields: Readonly<Record<string, IdField>> = {
  "POST /backups: backup.volume_id": { names: "volume" },
  "POST /backups: backup.snapshot_id": { names: "snapshot" },
  "POST /backups: backup.container": { names: "container" },
  "POST /backups/import_record: backup-record.backup_url": { names: "record" },
  "POST /backups/:id/restore: restore.volume_id": { names: "volume" },
  "POST /volumes: volume.snapshot_id": { names: "snapshot" },
  "POST /volumes: volume.source_volid": { names: "volume", ...otherSources },
  "POST /volumes: volume.consistencygroup_id": { names: "group", ...otherSources },
  "POST /volumes: volume.group_id": { names: "group", ...otherSources },
  "POST /volumes: volume.backup_id": { names: "backup", ...otherSources },
  "POST /volumes: volume.imageRef": { names: "image", ...otherSources },
  "POST /volumes: volume.image_id": { names: "image", ...otherSources },
  "POST /volumes: OS-SCH-HNT:scheduler_hints.*": { names: "volume" },
  "POST /volumes/:id/action os-attach: os-attach.instance_uuid": { names: "instance" },
  "POST /volumes/:id/action os-detach: os-detach.attachment_id": { names: "attachment" },
  "POST /volumes/:id/action os-force_detach: os-force_detach.attachment_id": { names: "attachment" },
  "POST /snapshots: snapshot.volume_id": { names: "volume" },
  "POST /attachments: attachment.volume_uuid": { names: "volume" },
  "POST /attachments: attachment.instance_uuid": { names: "instance" },
  "POST /os-volume-transfer: transfer.volume_id": { names: "volume" },
  "POST /volume-transfers: transfer.volume_id": { names: "volume" },
  "POST /groups/action create-from-src: create-from-src.group_snapshot_id": {
    names: "groupSnapshot",
    without: ["source_group_id"],
  },
  "POST /groups/action create-from-src: create-from-src.source_group_id": { names: "group" },
  "PUT /groups/:id: group.add_volumes": { names: "volume" },
  "PUT /groups/:id: group.remove_volumes": { names: "volume", ownRefused: true },
  "POST /group_snapshots: group_snapshot.group_id": { names: "group" },
  "POST /instance-groups/:id/backup: instance_id": { names: "instance" },
  "PUT /instance-groups/:id/restore: instance_id": { names: "instance" },
  "PUT /instance-groups/:id/restore: group_snapshot_id": { names: "groupSnapshot" },
  "PUT /instance-groups/:id/delete_backup: instance_id": { names: "instance" },
  "PUT /instance-groups/:id/delete_backup: group_snapshot_id": { names: "groupSnapshot" },
  "POST /ops/instances: instance.id": { names: "instance", without: ["boot_volume_id"] },
  "POST /ops/instances: instance.project_id": { names: "project" },
  "POST /ops/instances: instance.boot_volume_id": { names: "volume" },
  "PUT /ops/instances/:id: instance.boot_volume_id": { names: "volume", ownRefused: true },
  "POST /ops/instances/:id/attach: volume_id": { names: "volume" },
  "POST /ops/instances/:id/detach: volume_id": { names: "volume" },
  "POST /ops/policies: policy.project_id": { names: "project" },
  "POST /ops/policies/simulate: policy_id": { names: "policy" },
  "POST /ops/policies/:id/preview: volume_id": { names: "volume" },
  "POST /ops/policies/:id/assignments: assignment.volume_id": { names: "volume" },
  "POST /ops/policies/:id/assignments: assignment.instance_id": { names: "instance", without: ["volume_id"] },
  "POST /ops/policies/:id/assignments: assignment.project_id": { names: "project", without: ["volume_id"] },
  "POST /ops/repositories/:name/rescan: project_id": { names: "project" },
  "POST /ops/volumes/import: project_id": { names: "project" },
  "POST /ops/volumes/import: id": { names: "volume" },
};

/** The same fields again, naming something else: a server that no instance is known of. */
export const alsoServers: readonly string[] = [
  "POST /volumes/:id/action os-attach: os-attach.instance_uuid",
  "POST /ops/instances: instance.id",
  "POST /attachments: attachment.instance_uuid",
];

/** Last keys of switches: words for true and false. */
const switches = [
  "force",
  "incremental",
  "async",
  "bootable",
  "readonly",
  "multiattach",
  "is_public",
  "delete-volumes",
  "no_snapshots",
];

/** Last keys of fields that hold text which names no row: words of users, names of what belongs to no project, states, places of hosts. */
export const plainKeys: ReadonlySet<string> = new Set([
  ...switches,
  "", // the whole body of an action that does not exist
  // What a person signs in with: whether there is such a user or project is for Keystone to tell.
  "token",
  "user",
  "password",
  "user_domain",
  "project",
  "project_domain",
  "passcode",
  "other_project_id",
  "name",
  "display_name",
  "description",
  "display_description",
  "metadata.*",
  "meta.*",
  "configuration.*",
  "group_specs.*",
  "*", // one group spec
  "quota_set.*",
  "quota_class_set.*",
  "availability_zone",
  "volume_type",
  "volume_types.[]",
  "group_type",
  "size",
  "new_size",
  "status",
  "attach_status",
  "migration_status",
  "host_name",
  "mountpoint",
  "device",
  "connector",
  "connector.*",
  "mode",
  "auth_key",
  "progress",
  "backup_service",
  "os-force_delete",
  "binary",
  "service",
  "host",
  "cluster",
  "disabled_reason",
  "qmp_socket",
  "agent_socket",
  "freeze_mountpoints.[]",
  "cron",
  "reason",
  "until",
  "timezone",
  "full_on",
  "keep_within",
  "squash",
  "verify",
  "target_hours",
  "repository",
  "path",
  "image",
  "backend",
  "from",
  "to",
  "as_of",
  "bytes_per_second",
]);

export const nameOf = ({ route, keys }: BodyField): string => `${route}: ${keys.join(".")}`;

/** What follows the outermost objects: `metadata.*`, `name`. */
export function lastOf({ keys }: BodyField): string {
  const last = keys.at(-1) ?? "";
  return (last === "*" || last === "[]") && keys.length > 1 ? `${keys.at(-2)}.${last}` : last;
}
