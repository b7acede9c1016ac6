import { createHash } from "node:crypto";
import { type Instance, type InstanceOptions, type Reply, startInstance } from "../kit/instance.ts";

export const projectA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
export const projectB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/** Tokens of two projects, named as what their users may do; the stranger is a member of the other project. */
export const tokens = {
  reader: { project_id: projectA, roles: ["reader"] },
  member: { project_id: projectA, roles: ["member"] },
  observer: { project_id: projectA, roles: ["observer"] },
  admin: { project_id: projectA, roles: ["admin"] },
  stranger: { project_id: projectB, roles: ["member"] },
};
export type Who = keyof typeof tokens;

/** `auth` of a configuration that knows them. */
export const auth = {
  mode: "static",
  enforce_new_defaults: true,
  tokens: Object.entries(tokens).map(([token, of]) => ({
    sha256: createHash("sha256").update(token).digest("hex"),
    user_id: `user-of-${token}`,
    ...of,
  })),
};

/** Asks with one of the tokens. */
export const askAs =
  (instance: Instance) =>
  (who: Who, method: string, path: string, body?: unknown): Promise<Reply> =>
    instance.request(method, path, body, { "x-auth-token": who });

/**
 * A real API on a real database, with no worker process: nothing moves unless a test moves it. A worker is said to be live as long as
 * the instance, so that nothing accepted is given up for want of one.
 */
export async function startApiOnly(
  options: Pick<InstanceOptions, "config" | "env" | "ownRedis" | "repository"> = {},
): Promise<Instance> {
  const instance = await startInstance({ ...options, workers: 0, api: false });
  await using stack = new AsyncDisposableStack();
  stack.use(instance);
  await addSilentWorker(instance, stack);
  await instance.startApi();
  const owned = stack.move();
  return { ...instance, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** It is heard of a little ahead of time, for the tests of a busy machine; further ahead it would be taken for a clock that was set. */
async function addSilentWorker(instance: Instance, stack: AsyncDisposableStack): Promise<void> {
  await instance.sql(
    `INSERT INTO workers (id, host, pid, queue, reaches, slots, heartbeat_at)
     VALUES ('silent', 'here', 1, 'tephra-silent', '{repository:main,backend:files}', 1, now() + interval '45 seconds')`,
  );
  const beat = "UPDATE workers SET heartbeat_at = now() + interval '45 seconds' WHERE id = 'silent'";
  const beating = setInterval(() => void instance.sql(beat).catch(() => {}), 5_000);
  stack.defer(() => clearInterval(beating));
}

/** Sets the status of a row, as a worker's report would. */
export async function setStatus(
  instance: Instance,
  table: "backups" | "volumes" | "snapshots",
  id: string,
  status: string,
): Promise<void> {
  await instance.sql(`UPDATE ${table} SET status = $1 WHERE id = $2`, [status, id]);
}

/** Finishes a backup as a worker would: available, sealed, its volume back. */
export async function finishBackup(instance: Instance, id: string): Promise<void> {
  await instance.sql(
    `UPDATE backups SET status = 'available', container = 'volume_x/y', object_count = 3, volume_bytes = size_gib * 1073741824::bigint,
       service_metadata = 'prefix' WHERE id = $1`,
    [id],
  );
  await instance.sql(
    `UPDATE volumes v SET status = v.previous_status FROM backups b WHERE b.id = $1 AND v.id = b.volume_id AND v.status = 'backing-up'`,
    [id],
  );
  await instance.sql(
    `UPDATE snapshots s SET status = 'available' FROM backups b WHERE b.id = $1 AND s.id = b.snapshot_id`,
    [id],
  );
}

/** Finishes the backups of a group that are being made, as workers would. Returns the id of the newest. */
export async function finishGroupBackup(instance: Instance, group: string): Promise<string> {
  await instance.sql(
    `UPDATE operations SET state = 'succeeded', finished_at = now() WHERE group_id = $1 OR parent_id IN (SELECT id FROM operations WHERE group_id = $1)`,
    [group],
  );
  await instance.sql("UPDATE groups SET operation_id = NULL WHERE id = $1", [group]);
  await instance.sql(
    "UPDATE group_snapshots SET status = 'available', taken_at = '2026-11-21T12:00:00Z' WHERE group_id = $1 AND status = 'creating'",
    [group],
  );
  await instance.sql(
    `UPDATE backups b SET status = 'available', object_count = 3, volume_bytes = size_gib * 1073741824::bigint, service_metadata =
       'volume_' || volume_id || '/prefix', service = 'cinder.backup.drivers.posix.PosixBackupDriver', availability_zone = 'nova'
     FROM group_snapshots g WHERE g.id = b.group_snapshot_id AND g.group_id = $1 AND b.status = 'creating'`,
    [group],
  );
  await instance.sql(
    "UPDATE snapshots s SET status = 'available' FROM group_snapshots g WHERE g.id = s.group_snapshot_id AND g.group_id = $1",
    [group],
  );
  const [row] = await instance.sql(
    "SELECT id FROM group_snapshots WHERE group_id = $1 ORDER BY created_at DESC LIMIT 1",
    [group],
  );
  return row.id;
}

/** Rows of every table that a request could add to or change the state of. */
export async function fingerprint(instance: Instance): Promise<unknown> {
  const [row] = await instance.sql(`
    SELECT (SELECT count(*)::int FROM volumes) AS volumes, (SELECT count(*)::int FROM snapshots) AS snapshots,
      (SELECT count(*)::int FROM backups) AS backups, (SELECT count(*)::int FROM operations) AS operations,
      (SELECT count(*)::int FROM tasks) AS tasks, (SELECT count(*)::int FROM instances) AS instances,
      (SELECT count(*)::int FROM group_types) AS group_types,
      (SELECT string_agg(id::text || status || coalesce(operation_id::text, ''), ',' ORDER BY id) FROM groups) AS group_states,
      (SELECT string_agg(id || status, ',' ORDER BY id) FROM group_snapshots) AS group_snapshot_states,
      (SELECT string_agg(id::text || coalesce(group_id::text, ''), ',' ORDER BY id) FROM volumes) AS members,
      (SELECT string_agg(id::text || status, ',' ORDER BY id) FROM attachments) AS attachments,
      (SELECT string_agg(id::text || status, ',' ORDER BY id) FROM transfers) AS transfers,
      (SELECT string_agg(id::text || name || coalesce(updated_at::text, ''), ',' ORDER BY id) FROM policies) AS policies,
      (SELECT string_agg(id::text, ',' ORDER BY id) FROM policy_assignments) AS policy_assignments,
      (SELECT string_agg(id || status, ',' ORDER BY id) FROM volumes) AS volume_states,
      (SELECT string_agg(id || status, ',' ORDER BY id) FROM snapshots) AS snapshot_states,
      (SELECT string_agg(id || status, ',' ORDER BY id) FROM backups) AS backup_states,
      (SELECT coalesce(json_agg(q ORDER BY project_id), '[]') FROM quotas q
        WHERE volumes_used + snapshots_used + gigabytes_used + backups_used + backup_gigabytes_used > 0) AS quotas`);
  return row;
}
