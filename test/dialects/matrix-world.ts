import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { defaultVolumeType } from "../../apps/api/src/cinder/volumes/views.ts";
import type { Instance } from "../kit/instance.ts";
import { finishBackup, finishGroupBackup, setStatus } from "./api-only.ts";

/** One of everything, all of one project, with words in it that nobody else may ever read. */
export interface World {
  volume: string;
  snapshot: string;
  backup: string;
  /** One that can be brought back. */
  deletedBackup: string;
  message: string;
  operation: string;
  delivery: string;
  /** A virtual machine at rest with its group, and a backup of it. */
  instance: string;
  instanceGroup: string;
  groupSnapshot: string;
  /** A group of no machine's, with nothing in it. */
  group: string;
  /** A volume that is offered, with the offer, its key and a record of a server that wants it. */
  offered: string;
  transfer: string;
  authKey: string;
  attachment: string;
  /** A policy of the project's own, and its assignment to the volume. */
  policy: string;
  policyAssignment: string;
  policyRun: string;
  /** In every name, description and value of metadata. */
  secret: string;
}

/** Ids that name nothing: what a stranger is told of a real one must be what he is told of these. */
export const emptyWorld = (): World => ({
  volume: randomUUID(),
  snapshot: randomUUID(),
  backup: randomUUID(),
  deletedBackup: randomUUID(),
  message: randomUUID(),
  operation: randomUUID(),
  delivery: randomUUID(),
  instance: randomUUID(),
  instanceGroup: randomUUID(),
  groupSnapshot: randomUUID(),
  group: randomUUID(),
  offered: randomUUID(),
  transfer: randomUUID(),
  authKey: "none",
  attachment: randomUUID(),
  policy: randomUUID(),
  policyAssignment: randomUUID(),
  policyRun: randomUUID(),
  secret: "none",
});

/** Makes a new world in the project of the token, at rest: whatever is done to it is allowed by its states. */
export async function makeWorld(instance: Instance, project: string, token: string): Promise<World> {
  const secret = `secret-${randomUUID().slice(0, 8)}`;
  const about = { name: secret, description: secret, metadata: { key: secret } };
  const headers = { "x-auth-token": token, "openstack-api-version": "volume 3.71" };
  const make = async (collection: string, body: Record<string, object>): Promise<string> => {
    const reply = await instance.request("POST", `/v3/${project}/${collection}`, body, headers);
    if (reply.status !== 202) throw new Error(`${collection}: ${reply.text}`);
    return (Object.values(reply.body)[0] as { id: string }).id;
  };
  const volume = await make("volumes", { volume: { size: 1, ...about } });
  await setStatus(instance, "volumes", volume, "available");
  const backup = await make("backups", { backup: { volume_id: volume, ...about } });
  await finishBackup(instance, backup);
  const deletedBackup = await make("backups", { backup: { volume_id: volume, ...about } });
  await finishBackup(instance, deletedBackup);
  await instance.sql(
    "UPDATE backups SET status = 'deleted', deleted_at = now(), undelete_until = now() + interval '1 day' WHERE id = $1",
    [deletedBackup],
  );
  const snapshot = await make("snapshots", { snapshot: { volume_id: volume, ...about } });
  await setStatus(instance, "snapshots", snapshot, "available");
  const [operation] = await instance.sql("SELECT id FROM operations WHERE backup_id = $1", [backup]);
  const [message] = await instance.sql(
    `INSERT INTO messages (id, project_id, request_id, event_id, user_message, message_level, resource_type, resource_uuid)
     VALUES ($1, $2, 'req-of-nobody', 'VOLUME_VOLUME_BACKUP_013_020', $3, 'ERROR', 'VOLUME_BACKUP', $4) RETURNING id`,
    [randomUUID(), project, secret, backup],
  );
  const notification = randomUUID();
  await instance.sql(
    "INSERT INTO notifications (id, event_type, host, payload, spread) VALUES ($1, 'backup.create.end', 'here', $2, true)",
    [notification, JSON.stringify({ display_name: secret })],
  );
  const [delivery] = await instance.sql(
    "INSERT INTO deliveries (id, notification_id, target, state) VALUES ($1, $2, 'log', 'dead') RETURNING id",
    [randomUUID(), notification],
  );
  await makeGroupType(instance);
  const machine = await makeMachine(instance, project, { token, name: secret });
  const group = await make("groups", {
    group: { name: secret, description: secret, group_type: "instance_group_type", volume_types: ["__DEFAULT__"] },
  });
  return {
    volume,
    snapshot,
    backup,
    deletedBackup,
    message: message.id,
    operation: operation.id,
    delivery: delivery.id,
    ...machine,
    group,
    ...(await makeOffer(instance, project, { token, name: secret })),
    ...(await makePolicy(instance, { token, name: secret, volume })),
    secret,
  };
}

/** A policy of the project that is never due, assigned to the volume. */
async function makePolicy(
  instance: Instance,
  { token, name, volume }: { token: string; name: string; volume: string },
): Promise<Pick<World, "policy" | "policyAssignment" | "policyRun">> {
  const ask = async (path: string, body: unknown) => {
    const reply = await instance.request("POST", path, body, { "x-auth-token": token });
    if (reply.status !== 201) throw new Error(`${path}: ${reply.text}`);
    return reply.body;
  };
  const rules = {
    name,
    description: name,
    enabled: false,
    schedule: { cron: "0 2 * * *" },
    retention: { keep_last: 2 },
  };
  const { policy } = await ask("/ops/policies", { policy: rules });
  const { assignment } = await ask(`/ops/policies/${policy.id}/assignments`, { assignment: { volume_id: volume } });
  const [run] = await instance.sql(
    `INSERT INTO policy_runs (id, policy_id, due_at, scheduled, state, reason, finished_at)
     VALUES (gen_random_uuid(), $1, now(), true, 'missed', $2, now()) RETURNING id`,
    [policy.id, name],
  );
  return { policy: policy.id, policyAssignment: assignment.id, policyRun: run.id };
}

/** A volume on its way to another project. */
async function makeOffer(
  instance: Instance,
  project: string,
  { token, name }: { token: string; name: string },
): Promise<Pick<World, "offered" | "transfer" | "authKey" | "attachment">> {
  const headers = { "x-auth-token": token };
  const ask = async (path: string, body: unknown) => {
    const reply = await instance.request("POST", `/v3/${project}/${path}`, body, headers);
    if (reply.status !== 202) throw new Error(`${path}: ${reply.text}`);
    return reply.body;
  };
  const { volume } = await ask("volumes", { volume: { size: 1, name } });
  await setStatus(instance, "volumes", volume.id, "available");
  const { transfer } = await ask("os-volume-transfer", { transfer: { volume_id: volume.id, name } });
  const [attachment] = await instance.sql(
    `INSERT INTO attachments (id, project_id, volume_id, server_id, status, attached_at)
     SELECT gen_random_uuid(), project_id, id, $2, 'reserved', NULL FROM volumes WHERE id = $1 RETURNING id`,
    [volume.id, name],
  );
  return { offered: volume.id, transfer: transfer.id, authKey: transfer.auth_key, attachment: attachment.id };
}

/** A type of groups is nobody's: the same one in every world. */
const groupType = "11112222-3333-4444-5555-666677778888";

async function makeGroupType(instance: Instance): Promise<void> {
  await instance.sql(
    `INSERT INTO group_types (id, name, group_specs) VALUES ($1, 'kind', '{"key": "value"}')
     ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, description = NULL, group_specs = EXCLUDED.group_specs`,
    [groupType],
  );
}

/** A machine that is off, with one disk and one backup, as workers would leave it. */
async function makeMachine(
  instance: Instance,
  project: string,
  { token, name }: { token: string; name: string },
): Promise<Pick<World, "instance" | "instanceGroup" | "groupSnapshot">> {
  const headers = { "x-auth-token": token };
  const ask = async (method: string, path: string, body: unknown) => {
    const reply = await instance.request(method, path, body, headers);
    if (reply.status >= 300) throw new Error(`${path}: ${reply.text}`);
    return reply.body;
  };
  const { volume } = await ask("POST", `/v3/${project}/volumes`, { volume: { size: 1, name } });
  await setStatus(instance, "volumes", volume.id, "available");
  const made = { name, power_state: "SHUTOFF", boot_volume_id: volume.id, configuration: { note: name } };
  const { id, group_id: group } = (await ask("POST", "/ops/instances", { instance: made })).instance;
  await ask("POST", `/v3/${project}/instance-groups/${group}/backup`, { instance_id: id, name, async: true });
  return { instance: id, instanceGroup: group, groupSnapshot: await finishGroupBackup(instance, group) };
}

/** Puts back what a request may have changed for all projects. */
export async function resetServices(instance: Instance): Promise<void> {
  await instance.sql("DELETE FROM disabled_services");
  await instance.sql("DELETE FROM quota_classes");
  // What it has asked a policy to back up would begin at any moment.
  await instance.sql("DELETE FROM policy_runs");
}

const record = (id: string): string =>
  Buffer.from(JSON.stringify({ id, size: 1, container: "c", display_name: "imported" })).toString("base64");

/** A body that fits, for each route that takes one: `METHOD path`, or the name of an action below it. */
export function sampleBodies(world: World, dataDir: string): Readonly<Record<string, unknown>> {
  const { volume, snapshot } = world;
  const meta = { metadata: { other: "value" } };
  const { instance: instance_id, groupSnapshot: group_snapshot_id, secret: name } = world;
  const named = { instance_id, group_snapshot_id, name, async: true };
  return {
    "POST /backups": { backup: { volume_id: volume, snapshot_id: null } },
    "POST /backups/import_record": {
      "backup-record": { backup_service: "cinder.backup.drivers.posix", backup_url: record(randomUUID()) },
    },
    "PUT /backups/:id": { backup: { name: "changed" } },
    "POST /backups/:id/restore": { restore: {} },
    "POST /backups/:id/action os-reset_status": { status: "error" },
    "POST /backups/:id/action os-force_delete": null,
    "POST /volumes": { volume: { size: 1, snapshot_id: snapshot } },
    "PUT /volumes/:id": { volume: { name: "changed" } },
    "POST /volumes/:id/action os-attach": { instance_uuid: randomUUID(), mountpoint: "/dev/vdb" },
    "POST /volumes/:id/action os-detach": {},
    "POST /volumes/:id/action os-reserve": {},
    "POST /volumes/:id/action os-unreserve": {},
    "POST /volumes/:id/action os-begin_detaching": {},
    "POST /volumes/:id/action os-roll_detaching": {},
    "POST /volumes/:id/action os-extend": { new_size: 2 },
    "POST /volumes/:id/action os-set_bootable": { bootable: true },
    "POST /volumes/:id/action os-update_readonly_flag": { readonly: true },
    "POST /volumes/:id/action os-reset_status": { status: "error" },
    "POST /volumes/:id/action os-force_delete": null,
    "POST /volumes/:id/action os-force_detach": { attachment_id: null },
    "POST /volumes/:id/metadata": meta,
    "PUT /volumes/:id/metadata": meta,
    "PUT /volumes/:id/metadata/:key": { meta: { key: "value" } },
    "POST /snapshots": { snapshot: { volume_id: volume } },
    "PUT /snapshots/:id": { snapshot: { name: "changed" } },
    "POST /snapshots/:id/action os-update_snapshot_status": { status: "error" },
    "POST /snapshots/:id/action os-reset_status": { status: "error" },
    "POST /attachments": { attachment: { volume_uuid: volume } },
    "PUT /attachments/:id": { attachment: { connector: { host: "here" } } },
    "POST /attachments/:id/action os-complete": {},
    "POST /os-volume-transfer": { transfer: { volume_id: volume } },
    "POST /os-volume-transfer/:id/accept": { accept: { auth_key: world.authKey } },
    "POST /volume-transfers": { transfer: { volume_id: volume, no_snapshots: true } },
    "POST /volume-transfers/:id/accept": { accept: { auth_key: world.authKey } },
    "POST /snapshots/:id/action os-force_delete": null,
    "POST /snapshots/:id/metadata": meta,
    "PUT /snapshots/:id/metadata": meta,
    "PUT /snapshots/:id/metadata/:key": { meta: { key: "value" } },
    "PUT /os-quota-sets/:project": { quota_set: { backups: 1_000_000 } },
    "PUT /os-quota-class-sets/:project": { quota_class_set: { backups: 1_000_000 } },
    "PUT /os-services/enable": { binary: "cinder-backup", host: "here" },
    "PUT /os-services/:action": {},
    "PUT /os-services/disable": { binary: "cinder-backup", host: "here" },
    "PUT /os-services/disable-log-reason": { binary: "cinder-backup", host: "here", disabled_reason: "why" },
    "POST /groups": { group: { group_type: "instance_group_type", volume_types: ["__DEFAULT__"] } },
    "POST /groups/action create-from-src": { source_group_id: world.group },
    "PUT /groups/:id": { group: { name: "changed" } },
    "POST /groups/:id/action delete": { "delete-volumes": false },
    "POST /groups/:id/action reset_status": { status: "error" },
    "POST /group_types": { group_type: { name: `type ${randomUUID()}` } },
    "PUT /group_types/:id": { group_type: { description: "changed" } },
    "POST /group_types/:id/group_specs": { group_specs: { other: "value" } },
    "PUT /group_types/:id/group_specs/:key": { key: "other" },
    "POST /group_snapshots": { group_snapshot: { group_id: world.group } },
    "POST /group_snapshots/:id/action reset_status": { status: "error" },
    "POST /instance-groups/:id/backup": { instance_id: world.instance, name: "another", async: true },
    "PUT /instance-groups/:id/restore": named,
    "PUT /instance-groups/:id/delete_backup": named,
    "POST /ops/session": { token: "member-of-A" },
    "POST /ops/instances": { instance: { name: "another", boot_volume_id: volume } },
    "PUT /ops/instances/:id": { instance: { name: "changed" } },
    "POST /ops/instances/:id/attach": { volume_id: volume },
    "POST /ops/instances/:id/detach": { volume_id: volume },
    "PUT /ops/volumes/:id/exclusion": { reason: "scratch" },
    "PUT /ops/alerts/:code/:subject/snooze": {
      until: new Date(Date.now() + 86_400_000).toISOString(),
      reason: "known",
    },
    "POST /ops/policies": { policy: { name: randomUUID(), enabled: false, schedule: { cron: "0 3 * * *" } } },
    "PUT /ops/policies/:id": { policy: { description: "changed" } },
    "POST /ops/policies/:id/run": {},
    "POST /ops/policies/simulate": { policy_id: world.policy, days: 30 },
    "POST /ops/policies/:id/preview": { as_of: "2030-01-01T00:00:00Z" },
    "POST /ops/policies/:id/assignments": { assignment: { volume_id: volume } },
    "POST /ops/operations/:id/cancel": {},
    "POST /ops/operations/:id/retry": {},
    "PUT /ops/operations/:id/priority": { priority: "low" },
    "POST /ops/notifications/:id/retry": {},
    "PUT /ops/limits/:traffic/:scope/:name": { bytes_per_second: 1_000_000_000 },
    "POST /ops/repositories/:name/rescan": {},
    "POST /ops/repositories/:name/reap": { dry_run: true },
    "POST /ops/backups/:id/verify": { mode: "deep" },
    "PUT /ops/backups/:id/hold": { hold: { until: "2999-01-01T00:00:00Z", reason: "why" } },
    "POST /ops/backups/:id/undelete": {},
    "POST /ops/backups/:id/squash": {},
    "POST /ops/volumes/import": { path: join(dataDir, "image.raw"), name: "image" },
    "POST /ops/volumes/:id/export": { path: join(dataDir, `out-${world.secret}.raw`) },
  };
}

/** What the parts of a path stand for, in one world. */
export function fillPath(path: string, world: World, project: string): string {
  const ids: Readonly<Record<string, string>> = {
    "/backups/": world.backup,
    "/volumes/": world.volume,
    "/snapshots/": world.snapshot,
    "/messages/": world.message,
    "/attachments/": world.attachment,
    "/os-volume-transfer/": world.transfer,
    "/volume-transfers/": world.transfer,
    "/types/": defaultVolumeType.id,
    "/groups/": world.group,
    "/group_types/": groupType,
    "/group_snapshots/": world.groupSnapshot,
    "/instance-groups/": world.instanceGroup,
    "/ops/instances/": world.instance,
    "/ops/group-snapshots/": world.groupSnapshot,
    "/ops/operations/": world.operation,
    "/ops/policies/": world.policy,
    "/ops/volumes/": world.volume,
    "/ops/backups/": world.backup,
    "/ops/deleted-backups/": world.deletedBackup,
    "/ops/snapshots/": world.snapshot,
    "/ops/notifications/": world.delivery,
  };
  const parts: Readonly<Record<string, string>> = {
    ":project": project,
    ":traffic": "repositories",
    ":scope": "repository",
    ":name": "main",
    ":host": "here@files",
    ":alias": "backups",
    ":code": "volumes_never",
    ":subject": "-",
    ":action": "explode",
    ":key": "key",
  };
  return path
    .replace("/ops/backups/:id/undelete", `/ops/backups/${world.deletedBackup}/undelete`)
    .replace(/^(.*?\/)?(:\w+)/g, (_whole, before: string, name: string) => {
      const value = name === ":id" ? ids[before] : parts[name];
      if (value === undefined) throw new Error(`nothing stands for ${name} in ${path}: tell fillPath`);
      return before + value;
    })
    .replace(":assignment_id", world.policyAssignment)
    .replace(":run_id", world.policyRun)
    .replace(/(?<=\/):\w+/g, (name) => parts[name] ?? name);
}
