import { createHash } from "node:crypto";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../kit/instance.ts";
import { randomBytesOf, sha256Of, writeIslands } from "../kit/journey.ts";
import { startIdentity } from "../kit/keystone.ts";
import { type Clients, clientsOf, passwordAccess, tokenAccess } from "./clients.ts";

const MiB = 1024 * 1024;
/** What all tests make together is more than a project may have by default. */
const quotas = { volumes: 40 };
/** Of a backup of 1 GiB. */
const objects = 21;
const service = "cinder.backup.drivers.posix.PosixBackupDriver";

/** A Tephra with two users of one project. */
interface Stage extends AsyncDisposable {
  instance: Instance;
  member: Clients;
  admin: Clients;
}

async function staticStage(): Promise<Stage> {
  const projectId = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
  const token = (userId: string, role: string) => ({
    sha256: createHash("sha256").update(`${userId}:${projectId}`).digest("hex"),
    user_id: userId,
    project_id: projectId,
    roles: [role],
  });
  const auth = { mode: "static", tokens: [token("milo", "member"), token("ada", "admin")] };
  const instance = await startInstance({ config: { auth, quotas } });
  const as = (userId: string) => clientsOf(tokenAccess(instance.url, { userId, projectId }), instance.dataDir);
  return { instance, member: as("milo"), admin: as("ada"), [Symbol.asyncDispose]: instance[Symbol.asyncDispose] };
}

async function keystoneStage(): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const keystone = stack.use(await startIdentity({ tokenLifeSeconds: 3600 }));
  const milo = { name: "milo", password: "pw milo", project: "alpha", role: "member" };
  const ada = { name: "ada", password: "pw ada", project: "alpha", role: "admin" };
  const own = { name: "tephra", password: "pw tephra", project: "service", role: "service" };
  for (const user of [milo, ada, own]) await keystone.addUser(user);
  const settings = { url: `${keystone.url}/v3`, username: own.name, password: own.password, timeout_ms: 20_000 };
  const instance = stack.use(
    await startInstance({ config: { auth: { mode: "keystone", keystone: settings }, quotas } }),
  );
  await keystone.addService({ type: "volumev3", name: "tephra", url: `${instance.url}/v3/%(project_id)s` });
  const as = (user: typeof milo) => clientsOf(passwordAccess(keystone, user), instance.dataDir);
  const owned = stack.move();
  return { instance, member: as(milo), admin: as(ada), [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

const newest = ["--os-volume-api-version", "3.70"];

describe.each([
  { mode: "static", open: staticStage },
  { mode: "keystone", open: keystoneStage },
])("in mode $mode", ({ open }) => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await open();
  });
  afterAll(() => stage?.[Symbol.asyncDispose]());

  const volumeFile = (id: string) => join(stage.instance.volumesDir, `volume-${id}`);

  /** The status as the database has it: the clients are asked only for what a test is about. */
  const settled = (table: "volumes" | "backups", id: string, status: string) =>
    stage.instance.waitFor(
      async () => {
        const alive = table === "backups" ? " AND deleted_at IS NULL" : "";
        const [row] = await stage.instance.sql(`SELECT status FROM ${table} WHERE id = $1${alive}`, [id]);
        if (row?.status.startsWith("error") && status !== row.status) throw new Error(`${id} is ${row.status}`);
        return (row?.status ?? "gone") === status;
      },
      { what: `${table} ${id} is ${status}`, timeoutMs: 60_000 },
    );

  /** A volume of 1 GiB made by `cinder`, with data of its own. Returns its id and the hash of all of its bytes. */
  async function filledVolume(name: string): Promise<{ id: string; sha256: string }> {
    const made = await stage.member.cinderProperties("create", "--name", name, "1");
    const id = made["id"] ?? "";
    expect(made).toMatchObject({ name, size: "1", status: "creating", bootable: "false" });
    await settled("volumes", id, "available");
    return { id, sha256: await change(id, `${name} at first`, 0) };
  }

  /** Writes into a volume, and returns the hash of all of its bytes. */
  async function change(id: string, seed: string, offset: number): Promise<string> {
    await writeIslands(volumeFile(id), null, [{ offset, data: randomBytesOf(seed, 3 * MiB + 17) }]);
    return sha256Of(volumeFile(id));
  }

  const expectBytes = async (id: string, sha256: string) =>
    expect(await sha256Of(volumeFile(id)), `bytes of volume ${id}`).toBe(sha256);

  it("openstack volume backup create, list, show, set, unset, restore, delete", async () => {
    const { member, admin } = stage;
    const volume = await filledVolume("os-disk");
    const made = await member.openstackJson(
      ...[...newest, "volume", "backup", "create", "--name", "os-full", "--description", "the first"],
      ...["--property", "keep=1", "--property", "drop=2", "--availability-zone", "nova", "os-disk"],
    );
    expect(made).toEqual({ id: expect.any(String), name: "os-full" });
    await settled("backups", made.id, "available");
    const after = await change(volume.id, "os change", 512 * MiB);
    const more = await member.openstackJson(
      "volume",
      "backup",
      "create",
      "--incremental",
      "--name",
      "os-more",
      "os-disk",
    );
    await settled("backups", more.id, "available");

    const listed = await member.openstackJson("volume", "backup", "list", "--long", "--volume", "os-disk");
    expect(listed.map((row: Record<string, unknown>) => [row["ID"], row["Name"], row["Status"], row["Size"]])).toEqual([
      [more.id, "os-more", "available", 1],
      [made.id, "os-full", "available", 1],
    ]);
    expect(listed[1]).toMatchObject({ Description: "the first", "Availability Zone": "nova", Volume: volume.id });
    const named = await member.openstackJson("volume", "backup", "list", "--name", "os-full", "--status", "available");
    expect(named).toHaveLength(1);
    const paged = await member.openstackJson("volume", "backup", "list", "--limit", "1", "--marker", "os-more");
    expect(paged.map((row: { ID: string }) => row.ID)).toEqual([made.id]);
    expect(await member.openstackJson("volume", "backup", "list", "--status", "error")).toEqual([]);
    const all = await admin.openstackJson("volume", "backup", "list", "--all-projects");
    expect(all.length).toBeGreaterThanOrEqual(2);

    const shown = await member.openstackJson(...newest, "volume", "backup", "show", "os-full");
    expect(shown).toMatchObject({ id: made.id, metadata: { keep: "1", drop: "2" }, volume_id: volume.id });
    expect(shown).toMatchObject({
      is_incremental: false,
      has_dependent_backups: true,
      object_count: objects,
      fail_reason: null,
    });
    expect(shown).not.toHaveProperty("user_id");

    const set = ["volume", "backup", "set", "os-full", "--name", "os-renamed", "--description", "another"];
    await member.openstack(...newest, ...set, "--property", "more=3");
    await member.openstack(...newest, "volume", "backup", "unset", "os-renamed", "--property", "drop");
    expect(await admin.openstackJson(...newest, "volume", "backup", "show", "os-renamed")).toMatchObject({
      name: "os-renamed",
      description: "another",
      metadata: { keep: "1", more: "3" },
      user_id: expect.any(String),
      "os-backup-project-attr:project_id": expect.any(String),
    });
    await admin.openstack("volume", "backup", "set", made.id, "--state", "error");
    expect((await member.openstackJson("volume", "backup", "show", made.id)).status).toBe("error");
    await admin.openstack("volume", "backup", "set", made.id, "--state", "available");

    // This version of the client fails over the answer, once the server has accepted.
    await member.openstackEnds("volume", "backup", "restore", "os-more", "os-target");
    const [{ ID: target }] = await stage.instance.waitFor(
      () => member.openstackJson("volume", "list", "--name", "os-target"),
      { what: "the new volume is listed" },
    );
    await settled("volumes", target, "available");
    await expectBytes(target, after);
    await member.openstackEnds("volume", "backup", "restore", "--force", "os-renamed", "os-target");
    await settled("backups", made.id, "available");
    await settled("volumes", target, "available");
    await expectBytes(target, volume.sha256);

    await member.openstack("volume", "backup", "delete", more.id);
    await settled("backups", more.id, "gone");
    await admin.openstack("volume", "backup", "delete", "--force", "os-renamed");
    await settled("backups", made.id, "gone");
    const gone = await member.openstackEnds("volume", "backup", "show", "os-more");
    expect([gone.status, gone.stderr.trim()]).toEqual([1, "No volumebackup with a name or ID of 'os-more' exists."]);
  });

  it("openstack volume backup record export, import", async () => {
    const { member, admin, instance } = stage;
    const volume = await filledVolume("rec-disk");
    const made = await member.openstackJson("volume", "backup", "create", "--name", "rec", "rec-disk");
    await settled("backups", made.id, "available");
    const refused = await member.openstackEnds("volume", "backup", "record", "export", made.id);
    expect(refused.status).toBe(1);
    expect(refused.stderr).toContain("Policy doesn't allow backup:export-import to be performed.");
    const record = await admin.openstackJson("volume", "backup", "record", "export", "rec");
    expect(record).toEqual({ backup_service: service, backup_url: expect.stringMatching(/^[A-Za-z0-9+/]+=*$/) });
    const known = await admin.openstackEnds("volume", "backup", "record", "import", service, record.backup_url);
    expect([known.status, known.stderr]).toEqual([1, expect.stringContaining("Backup already exists in database.")]);

    await instance.sql("DELETE FROM backups WHERE id = $1", [made.id]);
    const imported = await admin.openstackJson("volume", "backup", "record", "import", service, record.backup_url);
    expect(imported).toEqual({ id: made.id, name: null });
    await settled("backups", made.id, "available");
    await member.openstackEnds("volume", "backup", "restore", "--force", made.id, "rec-disk");
    await settled("volumes", volume.id, "available");
    await expectBytes(volume.id, volume.sha256);
  });

  it("cinder backup-create, backup-list, backup-show, backup-update, backup-restore, backup-reset-state, backup-delete", async () => {
    const { member, admin } = stage;
    const volume = await filledVolume("ci-disk");
    const made = await member.cinderProperties(
      ...["--os-volume-api-version", "3.60", "backup-create", "--name", "ci full", "--description", "one"],
      ...["--metadata", "a=1", "--availability-zone", "nova", "--", "ci-disk"],
    );
    expect(made).toEqual({ id: expect.any(String), name: "ci full", volume_id: volume.id });
    const full = made["id"] ?? "";
    await settled("backups", full, "available");
    const after = await change(volume.id, "ci change", 700 * MiB);
    const more =
      (await member.cinderProperties("backup-create", "--incremental", "--name", "ci-more", volume.id))["id"] ?? "";
    await settled("backups", more, "available");

    const rows = await member.cinderRows("--os-volume-api-version", "3.60", "backup-list", "--sort", "created_at:asc");
    expect(rows.filter((row) => row["Volume ID"] === volume.id)).toEqual([
      expect.objectContaining({
        ID: full,
        Status: "available",
        Name: "ci full",
        Size: "1",
        "Object Count": String(objects),
      }),
      expect.objectContaining({ ID: more, Status: "available", Name: "ci-more", Size: "1" }),
    ]);
    const counted = await member.cinder(...newest, "backup-list", "--with-count", "--limit", "1");
    expect(counted).toMatch(/^Backup in total: \d+$/m);
    const found = await member.cinderRows(
      "backup-list",
      "--name",
      "ci-more",
      "--status",
      "available",
      "--volume-id",
      volume.id,
    );
    expect(found.map((row) => row["ID"])).toEqual([more]);
    expect(await member.cinderRows(...newest, "backup-list", "--filters", "name=ci-more")).toHaveLength(1);
    const others = await admin.cinderRows(...newest, "backup-list", "--all-tenants", "1", "--filters", "name~=ci");
    expect(others.map((row) => row["ID"]).sort()).toEqual([full, more].sort());
    expect(await member.cinderProperties("--os-volume-api-version", "3.60", "backup-show", "ci full")).toMatchObject({
      id: full,
      status: "available",
      metadata: "{'a': '1'}",
      has_dependent_backups: "True",
      is_incremental: "False",
      description: "one",
    });
    const update = [
      "backup-update",
      "--name",
      "ci-renamed",
      "--description",
      "two",
      "--metadata",
      "b=2",
      "--",
      "ci full",
    ];
    expect(await member.cinder("--os-volume-api-version", "3.43", ...update)).toContain("has been accepted");
    expect(await member.cinderProperties(...newest, "backup-show", "ci-renamed")).toMatchObject({
      metadata: "{'b': '2'}",
      description: "two",
    });

    const restored = await member.cinderProperties("backup-restore", "--name", "ci-target", "ci-more");
    expect(restored).toEqual({ backup_id: more, volume_id: expect.any(String), volume_name: "ci-target" });
    const target = restored["volume_id"] ?? "";
    await settled("volumes", target, "available");
    await expectBytes(target, after);
    const onto = await member.cinderProperties("backup-restore", "--volume", "ci-target", "ci-renamed");
    expect(onto).toEqual({ backup_id: full, volume_id: target, volume_name: "ci-target" });
    await settled("backups", full, "available");
    await settled("volumes", target, "available");
    await expectBytes(target, volume.sha256);
    // Another way in: the client makes a volume from the backup itself.
    const typed = await member.cinderProperties(...newest, "backup-restore", "--volume-type", "__DEFAULT__", "ci-more");
    expect(typed).toMatchObject({ backup_id: more, volume_name: `restore_backup_${more}` });
    await settled("volumes", typed["volume_id"] ?? "", "available");
    await expectBytes(typed["volume_id"] ?? "", after);

    const denied = await member.cinderEnds("backup-reset-state", "--state", "error", more);
    expect([denied.status, denied.stderr]).toEqual([1, expect.stringContaining("(HTTP 403)")]);
    await admin.cinder("backup-reset-state", "--state", "error", more);
    expect((await member.cinderProperties("backup-show", more))["status"]).toBe("error");
    const empty = await admin.cinderEnds("backup-reset-state", "--state", "", more);
    expect([empty.status, empty.stderr]).toEqual([1, expect.stringContaining("(HTTP 400)")]);

    const chained = await member.cinderEnds("backup-delete", "ci-renamed");
    expect([chained.status, chained.stdout + chained.stderr]).toEqual([
      1,
      expect.stringContaining("Incremental backups exist for this backup."),
    ]);
    await member.cinder("backup-delete", "ci-more");
    await settled("backups", more, "gone");
    await admin.cinder("backup-delete", "--force", "ci-renamed");
    await settled("backups", full, "gone");
    const gone = await member.cinderEnds("backup-show", "ci-more");
    expect([gone.status, gone.stderr]).toEqual([
      1,
      expect.stringContaining("No volumebackup with a name or ID of 'ci-more' exists."),
    ]);
  });

  it("cinder backup-export, backup-import", async () => {
    const { member, admin, instance } = stage;
    const volume = await filledVolume("out-disk");
    const made = await member.cinderProperties("backup-create", "--name", "out", "out-disk");
    const id = made["id"] ?? "";
    await settled("backups", id, "available");
    const record = await admin.cinderProperties("backup-export", id);
    expect(record).toEqual({ backup_service: service, backup_url: expect.any(String) });
    await instance.sql("DELETE FROM backups WHERE id = $1", [id]);
    const imported = await admin.cinderProperties("backup-import", service, record["backup_url"] ?? "");
    expect(imported).toMatchObject({ id, name: "None" });
    await settled("backups", id, "available");
    const restored = await member.cinderProperties("backup-restore", id);
    expect(restored["volume_name"]).toBe(`restore_backup_${id}`);
    await settled("volumes", restored["volume_id"] ?? "", "available");
    await expectBytes(restored["volume_id"] ?? "", volume.sha256);
  });

  it("cinder create from snapshots and backups; backups of snapshots and of volumes in use", async () => {
    const { member } = stage;
    const volume = await filledVolume("src-disk");
    const snapshot = await member.cinderProperties("snapshot-create", "--name", "src-snap", "src-disk");
    const [snap = ""] = [snapshot["id"]];
    expect(snapshot).toMatchObject({ name: "src-snap", volume_id: volume.id, size: "1" });
    await stage.instance.waitFor(
      async () => (await member.cinderProperties("snapshot-show", "src-snap"))["status"] === "available",
      { what: "the snapshot is available" },
    );
    await change(volume.id, "after the snapshot", 0);
    const made = await member.cinderProperties("backup-create", "--snapshot-id", snap, "--name", "of-snap", "src-disk");
    await settled("backups", made["id"] ?? "", "available");
    const copies = [
      ["--snapshot-id", snap, "--name", "from-snap"],
      ["--backup-id", made["id"] ?? "", "--name", "from-backup"],
    ];
    for (const copy of copies) {
      const { id = "" } = await member.cinderProperties(...newest, "create", ...copy);
      await settled("volumes", id, "available");
      await expectBytes(id, volume.sha256);
    }
    const refused = await member.cinderEnds("delete", "src-disk");
    expect(refused.status).toBe(1);
    // Only a hypervisor attaches; no command of these clients does.
    await stage.instance.sql("UPDATE volumes SET status = 'in-use' WHERE id = $1", [volume.id]);
    await stage.instance.sql(
      "INSERT INTO attachments (id, project_id, volume_id) SELECT gen_random_uuid(), project_id, id FROM volumes WHERE id = $1",
      [volume.id],
    );
    const used = await member.cinderEnds("backup-create", "src-disk");
    expect([used.status, used.stderr]).toEqual([1, expect.stringContaining("must use the force flag")]);
    const forced = await member.cinderProperties("backup-create", "--force", "--name", "forced", "src-disk");
    await settled("backups", forced["id"] ?? "", "available");
    expect((await member.cinderProperties("show", "src-disk"))["status"]).toBe("in-use");
  });

  it("cinder service-list, quota-show, quota-usage, availability-zone-list, absolute-limits, list-extensions, type-list", async () => {
    const { member, admin } = stage;
    const services = await admin.cinderRows("service-list");
    expect(services.map((row) => [row["Binary"], row["Status"], row["State"]])).toContainEqual([
      "cinder-backup",
      "enabled",
      "up",
    ]);
    expect((await member.cinderEnds("service-list")).status).toBe(1);
    expect(await member.cinderRows("availability-zone-list")).toEqual([{ Name: "nova", Status: "available" }]);
    const limits = await member.cinderRows("absolute-limits");
    expect(limits).toContainEqual({ Name: "maxTotalBackups", Value: "10" });
    expect((await member.cinderRows("list-extensions")).map((row) => row["Alias"])).toContain("backups");
    expect((await member.cinderRows("type-list")).map((row) => row["Name"])).toEqual(["__DEFAULT__"]);
    expect(await member.cinderRows(...newest, "list-filters", "--resource", "backup")).toEqual([
      { Resource: "backup", Filters: "name, status, volume_id" },
    ]);
  });

  it("openstacksdk: create, wait, find, list, restore, delete", async () => {
    const volume = await filledVolume("sdk-disk");
    const told = await stage.member.sdk("sdk.py", volume.id);
    expect(told).toMatchObject({
      full: ["sdk full", "by the SDK", false, {}],
      more: ["sdk more", true, true, true],
      listed: ["sdk full", "sdk more"],
      paged: expect.arrayContaining(["sdk more", "sdk full"]),
      refused: expect.stringContaining("Incremental backups exist for this backup."),
      missing: null,
    });
    await expectBytes(told.target, volume.sha256);
  });

  it("says what was wrong, and ends with 1, where a request is refused", async () => {
    const { member } = stage;
    const words = async (ended: Promise<{ status: number; stderr: string }>) => {
      const { status, stderr } = await ended;
      return [status, stderr.trim().split("\n").at(-1)];
    };
    expect(await words(member.openstackEnds("volume", "backup", "create", "nothing"))).toEqual([
      1,
      "No volume with a name or ID of 'nothing' exists.",
    ]);
    const { id } = await filledVolume("bad-disk");
    expect(await words(member.openstackEnds("volume", "backup", "create", "--incremental", id))).toEqual([
      1,
      expect.stringMatching(/^Invalid backup: No backups available to do an incremental backup\. \(HTTP 400\)/),
    ]);
    expect(await words(member.cinderEnds("backup-create", "--incremental", id))).toEqual([
      1,
      expect.stringMatching(/^ERROR: Invalid backup: No backups available to do an incremental backup\. \(HTTP 400\)/),
    ]);
    const wrong = await member.openstackEnds(
      "--os-volume-api-version",
      "3.64",
      "volume",
      "backup",
      "create",
      id,
      "--name",
      "x".repeat(256),
    );
    expect([wrong.status, wrong.stderr]).toEqual([1, expect.stringContaining("is too long (HTTP 400)")]);
  });
});
