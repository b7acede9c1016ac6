import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { withClient } from "../../../scripts/postgres.ts";
import type { Instance } from "../../kit/instance.ts";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, askAs, auth, finishBackup, finishGroupBackup, startApiOnly, type Who } from "../api-only.ts";

const config = {
  auth,
  quotas: { gigabytes: 30 },
  // Nothing is given up, or begun, while it is looked at.
  tasks: { unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 3_600_000, reconcile_ms: 3_600_000 },
  log_level: "warn",
};

/** What a test does with an API that has no workers: operations fail when it says so. */
function stageOn(instance: Instance) {
  const ask = askAs(instance);
  const one = async (text: string, ...values: unknown[]) => (await instance.sql(text, values))[0];
  const accepted = async (who: Who, method: string, path: string, body?: unknown) => {
    const reply = await ask(who, method, path, body);
    expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(202);
    return reply.body;
  };
  const newest = async (kind: string): Promise<string> =>
    (await one("SELECT id FROM operations WHERE kind = $1 ORDER BY created_at DESC LIMIT 1", kind)).id;
  const retry = (who: Who, id: string) => ask(who, "POST", `/ops/operations/${id}/retry`, {});
  return {
    ask,
    one,
    accepted,
    newest,
    retry,
    async addVolume(status = "available"): Promise<string> {
      const row = await one(
        `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
         VALUES (gen_random_uuid(), $1, 'u', 'v', $2, 1, 1073741824, 'files', 'nova') RETURNING id`,
        a,
        status,
      );
      return row.id;
    },
    /** Its newest operation of a kind fails, as a worker's report would have it. */
    async fail(kind: string): Promise<string> {
      const id = await newest(kind);
      await one(
        "UPDATE operations SET state = 'failed', fail_reason = 'The disk is gone.', finished_at = now() WHERE id = $1",
        id,
      );
      await one("UPDATE tasks SET state = 'failed', finished_at = now() WHERE operation_id = $1", id);
      return id;
    },
    set: (table: string, id: string, status: string) =>
      one(`UPDATE ${table} SET status = $1 WHERE id = $2`, status, id),
    statusOf: async (table: string, id: string): Promise<string> =>
      (await one(`SELECT status FROM ${table} WHERE id = $1`, id)).status,
    async refusal(who: Who, id: string): Promise<[number, string | undefined]> {
      const { status, body } = await retry(who, id);
      return [status, Object.values<{ message: string }>(body)[0]?.message];
    },
    /** It is done again by an operation of its own. */
    async again(who: Who, id: string) {
      const { operation } = (await accepted(who, "POST", `/ops/operations/${id}/retry`, {})) as {
        operation: { id: string };
      };
      const made = await one("SELECT * FROM operations WHERE id = $1", operation.id);
      const failed = await one("SELECT * FROM operations WHERE id = $1", id);
      expect([made.state, made.kind, made.input, failed.retried_as]).toEqual([
        "queued",
        failed.kind,
        failed.input,
        made.id,
      ]);
      return made;
    },
  };
}

const unknown = "11111111-2222-3333-4444-555555555555";

it("a failed backup is made again, once, by who owns it", async () => {
  await using instance = await startApiOnly({ config });
  const stage = stageOn(instance);
  const volume = await stage.addVolume("in-use");
  const begin = async (more: object = {}): Promise<string> => {
    const backup = { volume_id: volume, name: "nightly", description: "d", force: true, ...more };
    return (await stage.accepted("member", "POST", `/v3/${a}/backups`, { backup })).backup.id;
  };
  const failBackup = async (backup: string, container: string | null = null): Promise<string> => {
    await stage.one("UPDATE backups SET status = 'error', container = $2 WHERE id = $1", backup, container);
    await stage.set("volumes", volume, "in-use");
    return stage.fail("backup-create");
  };
  const first = await begin();
  await stage.one("UPDATE backups SET metadata = $2 WHERE id = $1", first, { a: "b" });
  const operation = await stage.newest("backup-create");
  const actionOf = async (who: Who) =>
    (await stage.ask(who, "GET", `/ops/operations/${operation}`)).body.operation.actions[1];
  expect(await actionOf("member")).toEqual({
    name: "retry",
    allowed: false,
    why: "It has not failed: its state is queued.",
  });
  expect(await stage.refusal("member", operation)).toEqual([409, "It has not failed: its state is queued."]);
  await failBackup(first, `2e/67/${first}`);
  expect(await actionOf("member")).toEqual({ name: "retry", allowed: true, why: null });
  expect(await actionOf("reader")).toMatchObject({ allowed: false, why: "Your role may not retry operations." });
  expect((await stage.retry("reader", operation)).status).toBe(403);
  expect((await stage.retry("observer", operation)).status).toBe(403);
  expect((await stage.retry("stranger", operation)).status).toBe(404);
  expect((await stage.retry("member", unknown)).status).toBe(404);
  expect((await stage.retry("member", "nope")).status).toBe(404);

  // A worker that has not heard of the end may still write.
  await stage.one("UPDATE tasks SET state = 'running' WHERE operation_id = $1", operation);
  expect(await stage.refusal("member", operation)).toEqual([
    409,
    "A worker has not heard yet that it has ended: try again in a moment.",
  ]);
  await stage.one("UPDATE tasks SET state = 'failed' WHERE operation_id = $1", operation);

  // Of many at once, one begins.
  const many = await Promise.all(Array.from({ length: 5 }, () => stage.retry("member", operation)));
  expect(many.map(({ status }) => status).sort()).toEqual([202, 409, 409, 409, 409]);
  const made = many.find(({ status }) => status === 202)?.body.operation.id;
  expect(await stage.refusal("member", operation)).toEqual([409, `It was retried already, as the operation ${made}.`]);
  const [row] = await instance.sql(
    `SELECT b.id <> $2 AS other, b.name, b.description, b.metadata, b.status, b.container, b.parent_id, b.volume_id, o.state, o.user_id
     FROM operations o JOIN backups b ON b.id = o.backup_id WHERE o.id = $1`,
    [made, first],
  );
  expect(row).toEqual({
    ...{ other: true, name: "nightly", description: "d", metadata: { a: "b" }, status: "creating", container: null },
    ...{ parent_id: null, volume_id: volume, state: "queued", user_id: "user-of-member" },
  });
  expect(await stage.statusOf("backups", first)).toBe("error");
  const shown = (await stage.ask("reader", "GET", `/ops/operations/${operation}`)).body.operation;
  expect(shown.retried_as).toBe(made);

  // The second fails, too, and an admin of another project's does it by the command line; it stays the project's.
  const second = (await stage.one("SELECT backup_id FROM operations WHERE id = $1", made)).backup_id;
  expect(await failBackup(second)).toBe(made);
  const { status, json } = await startTephra([
    ...["operation", "retry", made, "--url", instance.url, "--token", "admin", "--json"],
  ]).finished;
  expect([status, Object.keys(json)]).toEqual([0, ["operation"]]);
  const third = await stage.one("SELECT * FROM operations WHERE id = $1", json.operation.id);
  expect([third.project_id, third.user_id]).toEqual([a, "user-of-admin"]);

  // An incremental builds on what is good now, in the container that was asked for.
  await stage.one("UPDATE operations SET state = 'succeeded', finished_at = now() WHERE id = $1", third.id);
  await finishBackup(instance, third.backup_id);
  const grown = await begin({ incremental: true, container: "mine", force: true });
  const incremental = await failBackup(grown, "mine");
  const retried = await stage.again("member", incremental);
  expect(await stage.one("SELECT parent_id, container FROM backups WHERE id = $1", retried.backup_id)).toEqual({
    parent_id: third.backup_id,
    container: "mine",
  });

  // What a new request would be refused for refuses a retry: nothing is left half done.
  await failBackup(retried.backup_id);
  await stage.set("volumes", volume, "detaching");
  expect(await stage.refusal("member", retried.id)).toEqual([
    409,
    'Volume to be backed up must be available or in-use, but the current status is "detaching".',
  ]);
  await stage.one("UPDATE backups SET deleted_at = now() WHERE id = $1", retried.backup_id);
  expect(await stage.refusal("member", retried.id)).toEqual([
    409,
    `What it was about is gone: Backup ${retried.backup_id} could not be found.`,
  ]);
  expect((await stage.one("SELECT retried_as FROM operations WHERE id = $1", retried.id)).retried_as).toBeNull();
});

it("restores, deletions, new volumes, extensions and snapshots are done again to the same rows", async () => {
  await using instance = await startApiOnly({ config });
  const stage = stageOn(instance);
  const volume = await stage.addVolume();
  const path = `/v3/${a}`;
  const backup = (await stage.accepted("member", "POST", `${path}/backups`, { backup: { volume_id: volume } })).backup
    .id;
  await stage.one("UPDATE operations SET state = 'succeeded', finished_at = now()");
  await finishBackup(instance, backup);

  const restored = (await stage.accepted("member", "POST", `${path}/backups/${backup}/restore`, { restore: {} }))
    .restore;
  await stage.set("volumes", restored.volume_id, "error_restoring");
  await stage.set("backups", backup, "available");
  const restore = await stage.fail("backup-restore");
  const restoring = await stage.again("member", restore);
  expect([restoring.volume_id, restoring.backup_id, restoring.input]).toEqual([
    restored.volume_id,
    backup,
    { newVolume: true },
  ]);
  expect(await stage.statusOf("volumes", restored.volume_id)).toBe("restoring-backup");
  await stage.set("volumes", restored.volume_id, "available");
  await stage.set("backups", backup, "available");
  expect(await stage.refusal("member", await stage.fail("backup-restore"))).toEqual([
    409,
    `Volume ${restored.volume_id} must be error_restoring for a retry, and is available.`,
  ]);

  await stage.accepted("member", "DELETE", `${path}/backups/${backup}`);
  await stage.set("backups", backup, "error");
  expect((await stage.again("member", await stage.fail("backup-delete"))).backup_id).toBe(backup);
  expect(await stage.statusOf("backups", backup)).toBe("deleting");

  const empty = (await stage.accepted("member", "POST", `${path}/volumes`, { volume: { size: 2 } })).volume.id;
  await stage.set("volumes", empty, "error");
  expect((await stage.again("member", await stage.fail("volume-create"))).volume_id).toBe(empty);
  expect(await stage.statusOf("volumes", empty)).toBe("creating");
  await stage.set("volumes", empty, "available");

  const copy = (await stage.accepted("member", "POST", `${path}/volumes`, { volume: { source_volid: empty } })).volume
    .id;
  await stage.set("volumes", copy, "error");
  const copying = await stage.fail("volume-create");
  await stage.set("volumes", empty, "deleting");
  expect((await stage.refusal("member", copying))[0]).toBe(409);
  await stage.set("volumes", empty, "available");
  const again = await stage.again("member", copying);
  expect((await stage.one("SELECT kind FROM tasks WHERE operation_id = $1", again.id)).kind).toBe("clone-volume");
  await stage.set("volumes", copy, "available");

  const used = async () => (await stage.one("SELECT gigabytes_used AS used FROM quotas WHERE project_id = $1", a)).used;
  const before = await used();
  await stage.accepted("member", "POST", `${path}/volumes/${copy}/action`, { "os-extend": { new_size: 5 } });
  await stage.set("volumes", copy, "error_extending");
  await stage.one("UPDATE quotas SET gigabytes_used = $2 WHERE project_id = $1", a, before);
  const extension = await stage.fail("volume-extend");
  await stage.again("member", extension);
  expect([await stage.statusOf("volumes", copy), await used()]).toEqual(["extending", before + 3]);
  expect((await stage.one("SELECT previous_status AS was FROM volumes WHERE id = $1", copy)).was).toBe("available");
  await stage.set("volumes", copy, "error_extending");
  const second = await stage.fail("volume-extend");
  await stage.one("UPDATE quotas SET gigabytes_used = 30 WHERE project_id = $1", a);
  expect((await stage.retry("member", second)).status).toBe(413);
  expect(await stage.statusOf("volumes", copy)).toBe("error_extending");
  await stage.one("UPDATE quotas SET gigabytes_used = $2 WHERE project_id = $1", a, before);
  await stage.set("volumes", copy, "available");

  const snapshot = (await stage.accepted("member", "POST", `${path}/snapshots`, { snapshot: { volume_id: empty } }))
    .snapshot.id;
  await stage.set("snapshots", snapshot, "error");
  const taking = await stage.again("member", await stage.fail("snapshot-create"));
  expect([taking.snapshot_id, await stage.statusOf("snapshots", snapshot)]).toEqual([snapshot, "creating"]);
  await stage.set("snapshots", snapshot, "available");
  await stage.accepted("member", "DELETE", `${path}/snapshots/${snapshot}`);
  await stage.set("snapshots", snapshot, "error_deleting");
  expect((await stage.again("member", await stage.fail("snapshot-delete"))).snapshot_id).toBe(snapshot);
  await stage.set("snapshots", snapshot, "available");

  // With the snapshots of then, but not with one that was made since.
  await stage.accepted("member", "DELETE", `${path}/volumes/${empty}?cascade=true`);
  const removal = await stage.fail("volume-delete");
  await stage.set("volumes", empty, "error_deleting");
  await stage.set("snapshots", snapshot, "available");
  await stage.one("UPDATE snapshots SET created_at = now() WHERE id = $1", snapshot);
  expect(await stage.refusal("member", removal)).toEqual([
    409,
    `Snapshots of volume ${empty} were made since: delete it anew.`,
  ]);
  await stage.one("UPDATE snapshots SET created_at = now() - interval '1 day' WHERE id = $1", snapshot);
  await stage.again("member", removal);
  expect([await stage.statusOf("volumes", empty), await stage.statusOf("snapshots", snapshot)]).toEqual([
    "deleting",
    "deleting",
  ]);
});

it("what only admins begin, only admins retry; parts and machines' backups are left to a new request", async () => {
  await using instance = await startApiOnly({ config: { ...config, import_roots: ["/nowhere"] } });
  const stage = stageOn(instance);
  const volume = await stage.addVolume();
  const backup = (await stage.accepted("member", "POST", `/v3/${a}/backups`, { backup: { volume_id: volume } })).backup
    .id;
  const create = await stage.newest("backup-create");
  await stage.one("UPDATE operations SET state = 'succeeded', finished_at = now()");
  await finishBackup(instance, backup);
  const asked: [string, string, object][] = [
    ["backup-verify", `/ops/backups/${backup}/verify`, { mode: "deep" }],
    ["repository-rescan", "/ops/repositories/main/rescan", {}],
    ["repository-reap", "/ops/repositories/main/reap", { dry_run: true }],
    ["volume-export", `/ops/volumes/${volume}/export`, { path: "/nowhere/out.raw", overwrite: true }],
    ["volume-import", "/ops/volumes/import", { path: "/nowhere/in.raw" }],
    ["volume-adopt", "/ops/volumes/import", { id: randomUUID(), path: "/nowhere/in.raw" }],
  ];
  for (const [kind, path, body] of asked) {
    await stage.accepted("admin", "POST", path, body);
    const failed = await stage.fail(kind);
    if (kind === "volume-export") await stage.set("volumes", volume, "available");
    const { volume_id: imported } = await stage.one("SELECT volume_id FROM operations WHERE id = $1", failed);
    if (kind === "volume-import") await stage.set("volumes", imported, "error");
    expect(await stage.refusal("member", failed)).toEqual([409, "Only an admin may retry it."]);
    const made = await stage.again("admin", failed);
    await stage.one("UPDATE operations SET state = 'succeeded', finished_at = now() WHERE id = $1", made.id);
  }
  // Nothing but the failed operation itself keeps a verification from being begun twice.
  await stage.accepted("admin", "POST", `/ops/backups/${backup}/verify`, {});
  const verify = await stage.fail("backup-verify");
  const many = await withClient(instance.databaseUrl, async (client) => {
    await client.query("BEGIN");
    await client.query("SELECT FROM backups WHERE id = $1 FOR UPDATE", [backup]);
    const asked = Promise.all(Array.from({ length: 5 }, () => stage.retry("admin", verify)));
    const waiting = `SELECT count(*)::int AS count FROM pg_stat_activity
      WHERE datname = current_database() AND wait_event_type = 'Lock'`;
    await instance.waitFor(async () => (await instance.sql(waiting))[0].count === 5, { what: "all have read it" });
    await client.query("COMMIT");
    return asked;
  });
  expect(many.map(({ status }) => status).sort()).toEqual([202, 409, 409, 409, 409]);

  await stage.one(
    "UPDATE backups SET service = 'cinder.backup.drivers.posix.PosixBackupDriver', service_metadata = $2 WHERE id = $1",
    backup,
    `volume_${volume}/20261130000000/az_nova_backup_${backup}`,
  );
  const record = (await stage.ask("admin", "GET", `/v3/${a}/backups/${backup}/export_record`)).body;
  await stage.one("DELETE FROM backups WHERE id = $1", backup);
  const imported = await stage.ask("admin", "POST", `/v3/${a}/backups/import_record`, record);
  expect(imported.status, imported.text).toBe(201);
  await stage.set("backups", backup, "error");
  expect((await stage.again("admin", await stage.fail("backup-import"))).backup_id).toBe(backup);
  expect(await stage.statusOf("backups", backup)).toBe("creating");

  await stage.one("UPDATE operations SET state = 'failed', parent_id = $2 WHERE id = $1", create, unknown);
  expect(await stage.refusal("member", create)).toEqual([409, `It is a part of the operation ${unknown}: retry that.`]);
  await stage.one("UPDATE operations SET parent_id = NULL, input = $2 WHERE id = $1", create, { volume: { id: 5 } });
  expect((await stage.refusal("member", create))[0]).toBe(409);
});

it("a machine's restore and the deletion of its backup are done again as a whole", async () => {
  await using instance = await startApiOnly({ config: { ...config, instance_groups: { sync_wait_timeout_ms: 0 } } });
  const stage = stageOn(instance);
  const boot = await stage.addVolume();
  const made = await stage.ask("member", "POST", "/ops/instances", { instance: { name: "m", boot_volume_id: boot } });
  expect(made.status, made.text).toBe(201);
  const { id: machine, group_id: group } = made.body.instance;
  const path = `/v3/${a}/instance-groups/${group}`;
  const named = { instance_id: machine, name: "b" };
  const asked = await stage.ask("member", "POST", `${path}/backup`, { ...named, async: true });
  expect(asked.status, asked.text).toBeLessThan(300);
  const failBackup = await stage.fail("group-backup");
  expect(await stage.refusal("member", failBackup)).toEqual([
    409,
    "A part of it may be there: delete that, and make the request again.",
  ]);
  const snapshot = await finishGroupBackup(instance, group);
  await stage.ask("member", "PUT", `/ops/instances/${machine}`, { instance: { power_state: "SHUTOFF" } });
  const whole = { ...named, group_snapshot_id: snapshot, async: true };
  const restore = await stage.ask("member", "PUT", `${path}/restore`, whole);
  expect(restore.status, restore.text).toBeLessThan(300);
  /** As the end of the whole leaves its rows. */
  const settle = async () => {
    await stage.one("UPDATE operations SET state = 'failed' WHERE parent_id IS NOT NULL");
    await stage.one("UPDATE tasks SET state = 'failed'");
    await stage.one("UPDATE groups SET operation_id = NULL");
    await stage.one("UPDATE backups SET status = 'available'");
    await stage.one("UPDATE volumes SET status = 'in-use'");
  };
  const failed = await stage.fail("group-restore");
  await settle();
  const again = (await stage.accepted("member", "POST", `/ops/operations/${failed}/retry`, {})).operation.id;
  const [whole2] = await instance.sql("SELECT kind, state, input FROM operations WHERE id = $1", [again]);
  expect(whole2).toMatchObject({ kind: "group-restore", state: "running", input: { instanceId: machine } });
  expect(await stage.statusOf("volumes", boot)).toBe("restoring-backup");
  await stage.fail("group-restore");
  await settle();

  const removal = await stage.ask("member", "PUT", `${path}/delete_backup`, whole);
  expect(removal.status, removal.text).toBeLessThan(300);
  const failedRemoval = await stage.fail("group-delete");
  await settle();
  await stage.one("UPDATE group_snapshots SET status = 'error'");
  await stage.accepted("member", "POST", `/ops/operations/${failedRemoval}/retry`, {});
  expect(await stage.statusOf("group_snapshots", snapshot)).toBe("deleting");
});
