import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { decodeExportRecord, encodeExportRecord } from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGolden } from "../../format/golden-repository.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;

interface BackupRecord {
  backup_service: string;
  backup_url: string;
}

const decode = (record: BackupRecord) => JSON.parse(Buffer.from(record.backup_url, "base64").toString());
const encode = (service: string, document: unknown): BackupRecord => ({
  backup_service: service,
  backup_url: Buffer.from(JSON.stringify(document)).toString("base64"),
});

async function exportRecord(instance: Instance, id: string): Promise<BackupRecord> {
  const reply = await instance.request("GET", `${base}/backups/${id}/export_record`);
  expect(reply.status, reply.text).toBe(200);
  expect(Object.keys(reply.body)).toEqual(["backup-record"]);
  return reply.body["backup-record"];
}

const importRecord = (instance: Instance, record: unknown) =>
  instance.request("POST", `${base}/backups/import_record`, { "backup-record": record });

async function imported(instance: Instance, user: Journey, record: BackupRecord): Promise<string> {
  const reply = await importRecord(instance, record);
  expect(reply.status, reply.text).toBe(201);
  await user.settled("backups", reply.body.backup.id, "available");
  return reply.body.backup.id;
}

/** Imports what must end in `error`; returns why. */
async function refused(instance: Instance, user: Journey, record: BackupRecord): Promise<string> {
  const reply = await importRecord(instance, record);
  expect(reply.status, reply.text).toBe(201);
  const { id } = reply.body.backup;
  const row = (await user.settled("backups", id, "error")) as unknown as {
    fail_reason: string;
    container: string | null;
  };
  expect(row.container).toBeNull();
  await user.deleteBackup(id);
  return row.fail_reason;
}

/** The database as after a loss: nothing is known but the workers. */
const loseDatabase = (instance: Instance) =>
  instance.sql(
    "TRUNCATE backups, volumes, attachments, snapshots, operations, tasks, quotas, notifications, messages CASCADE",
  );

/** A volume backed up four times: each backup with the hash of what it must restore. */
async function chainOfFour(instance: Instance, user: Journey): Promise<Map<string, string>> {
  const image = join(instance.dataDir, "chain.img");
  const size = 9 * MiB + 4321;
  await writeIslands(image, size, [{ offset: 0, data: randomBytesOf("chain", 5 * MiB) }]);
  const volume = await user.importVolume(image, "chain");
  const hashes = new Map<string, string>();
  for (let i = 0; i < 4; i += 1) {
    const change = { offset: (i + 1) * 1_000_000 + 17, data: randomBytesOf(`change ${i}`, 300_000) };
    await writeIslands(user.volumeFile(volume), null, [change]);
    const options = { name: `n${i}`, description: `d${i}`, incremental: i > 0, metadata: { step: String(i) } };
    const { backup } = (
      await instance.request(
        "POST",
        `${base}/backups`,
        { backup: { volume_id: volume, ...options } },
        {
          "openstack-api-version": "volume 3.43",
        },
      )
    ).body;
    await user.settled("backups", backup.id, "available");
    hashes.set(backup.id, await sha256Of(user.volumeFile(volume)));
  }
  return hashes;
}

const detail = async (instance: Instance, id: string) => {
  const reply = await instance.request("GET", `${base}/backups/${id}`, undefined, {
    "openstack-api-version": "volume 3.71",
  });
  return reply.body.backup;
};

const usage = (instance: Instance) =>
  instance.sql("SELECT project_id, backups_used, backup_gigabytes_used FROM quotas ORDER BY 1");

async function rescan(instance: Instance, body: object = {}) {
  const reply = await instance.request("POST", "/ops/repositories/main/rescan", body);
  expect(reply.status, reply.text).toBe(202);
  const { id } = reply.body.operation;
  return instance.waitFor(
    async () => {
      const { operation } = (await instance.request("GET", `/ops/operations/${id}`)).body;
      return ["succeeded", "failed"].includes(operation.state) && operation;
    },
    { what: "the rescan has ended" },
  );
}

describe("export and import", () => {
  let instance: Instance;
  let user: Journey;
  beforeAll(async () => {
    const quotas = { backups: -1, backup_gigabytes: 1000 };
    instance = await startInstance({ config: { quotas }, repository: { object_bytes: 512 * 1024 } });
    user = journeyOn(instance);
  });
  afterAll(() => instance?.[Symbol.asyncDispose]());

  it("takes a record without a container to mean the folder of the repository, or the container that the backup has by itself", async () => {
    const image = join(instance.dataDir, "nameless.img");
    await writeIslands(image, 2 * MiB + 5, [{ offset: 100, data: randomBytesOf("nameless", MiB) }]);
    const volume = await user.importVolume(image, "nameless");
    const backup = await user.backUp(volume);
    const sha256 = await sha256Of(user.volumeFile(volume));
    const { backup_service: service, ...own } = await exportRecord(instance, backup);
    const record = decode({ backup_service: service, ...own });
    const nameless = () => encode(service, { ...record, id: randomUUID(), container: "" });

    const twin = await imported(instance, user, nameless());
    expect((await detail(instance, twin)).container).toBe(record.container);
    await user.expectExact(twin, sha256);

    // Where Cinder's driver for file systems puts a backup whose container was asked for as an empty text.
    const folder = join(instance.repositoryDir, record.container);
    for (const name of await readdir(folder)) await cp(join(folder, name), join(instance.repositoryDir, name));
    const atRoot = await imported(instance, user, nameless());
    expect((await detail(instance, atRoot)).container).toBe("");
    expect(decode(await exportRecord(instance, atRoot)).container).toBe("");
    await user.expectExact(atRoot, sha256);
    await user.deleteBackup(atRoot);
    expect((await readdir(instance.repositoryDir)).filter((name) => name.startsWith("volume_"))).toEqual([]);
    await user.expectExact(backup, sha256);
    await user.deleteBackup(twin);
    await user.deleteBackup(backup);
  });

  it("restores a chain of four exactly from its records, and from the repository alone, after the database is lost", {
    timeout: 240_000,
  }, async () => {
    const hashes = await chainOfFour(instance, user);
    const ids = [...hashes.keys()];
    const records = await Promise.all(ids.map((id) => exportRecord(instance, id)));
    const shown = await Promise.all(ids.map((id) => detail(instance, id)));
    const used = await usage(instance);

    await loseDatabase(instance);
    // The newest first: a record may come before the one of its parent.
    for (const record of records.toReversed()) await imported(instance, user, record);
    for (const [i, id] of ids.entries()) {
      const { updated_at: _now, created_at, data_timestamp, ...rest } = shown[i];
      expect(await detail(instance, id)).toMatchObject(rest);
      expect((await detail(instance, id)).data_timestamp).toBe(`${data_timestamp.slice(0, 19)}.000000`);
      expect((await detail(instance, id)).created_at).toBe(`${created_at.slice(0, 19)}.000000`);
    }
    for (const [id, sha256] of hashes) await user.expectExact(id, sha256);
    await user.accepted("DELETE", `${base}/backups/${ids[3]}`);
    expect((await instance.request("DELETE", `${base}/backups/${ids[0]}`)).status).toBe(400);
    await user.expectQuiet();
    await rm(join(instance.repositoryDir, decode(records[3] as BackupRecord).container), {
      recursive: true,
      force: true,
    });
    hashes.delete(ids[3] as string);

    await loseDatabase(instance);
    expect(await rescan(instance)).toMatchObject({
      state: "succeeded",
      result: { found: 3, entered: 3, problems: [] },
    });
    expect(await rescan(instance)).toMatchObject({ result: { found: 3, entered: 0, problems: [] } });
    const { metadata: _lost, updated_at: _now, ...rest } = shown[2];
    expect(await detail(instance, ids[2] as string)).toMatchObject({ ...rest, has_dependent_backups: false });
    for (const [id, sha256] of hashes) await user.expectExact(id, sha256);
    expect(await usage(instance)).toEqual([
      { ...used[0], project_id: project, backups_used: 3, backup_gigabytes_used: 3 },
    ]);
  });

  it("writes records with Cinder's keys in Cinder's order, and nothing else", async () => {
    const golden = await openGolden("zlib");
    const theirs = JSON.parse(Buffer.from(golden.backups[1]?.backup_url ?? "", "base64").toString());
    const [{ id }] = await instance.sql(
      "SELECT id FROM backups WHERE status = 'available' AND parent_id IS NOT NULL LIMIT 1",
    );
    const record = await exportRecord(instance, id);
    const ours = decode(record);
    expect(Object.keys(ours)).toEqual(Object.keys(theirs));
    for (const key of Object.keys(theirs))
      if (theirs[key] !== null) expect([key, typeof ours[key]]).toEqual([key, typeof theirs[key]]);
    expect(ours).toMatchObject({ id, project_id: project, status: "available", deleted: false, driver_info: {} });
    expect(ours.created_at).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    const read = decodeExportRecord(record.backup_url);
    const again = encodeExportRecord({
      ...read,
      container: read.container ?? "",
      userId: ours.user_id,
      projectId: ours.project_id,
      volumeId: read.volumeId ?? "",
      service: record.backup_service,
      dependents: ours.num_dependent_backups,
      createdAt: read.createdAt ?? new Date(0),
      updatedAt: new Date(ours.updated_at),
      host: ours.host,
      availabilityZone: ours.availability_zone,
    });
    expect(decode({ ...record, backup_url: again })).toEqual({ ...ours, restore_volume_id: null });
  });

  it("imports what a real Cinder has written and restores it", { timeout: 240_000 }, async () => {
    const golden = await openGolden("bz2");
    await cp(golden.path, instance.repositoryDir, { recursive: true });
    for (const backup of golden.backups) {
      // The name of the module alone is what old releases state.
      const record = { backup_service: "cinder.backup.drivers.posix", backup_url: backup.backup_url };
      const id = await imported(instance, user, record);
      expect(id).toBe(backup.id);
      expect(await detail(instance, id)).toMatchObject({ object_count: backup.object_count, metadata: { m: "1" } });
      const target = await user.restore(id);
      const bytes = await readFile(user.volumeFile(target));
      const image = await golden.image(backup.name);
      expect(bytes.subarray(0, image.length).equals(image), backup.name).toBe(true);
      expect(bytes.subarray(image.length).every((byte) => byte === 0)).toBe(true);
      await user.accepted("DELETE", `${base}/volumes/${target}`);
    }
    const again = await importRecord(instance, { backup_service: "", backup_url: golden.backups[0]?.backup_url });
    expect(again.body).toEqual({
      badRequest: { code: 400, message: "Invalid backup: Backup already exists in database." },
    });
  });

  it("lets two rows share their objects, and removes these with the last of them", { timeout: 120_000 }, async () => {
    const image = join(instance.dataDir, "twin.img");
    await writeIslands(image, 2 * MiB, [{ offset: 0, data: randomBytesOf("twin", 2 * MiB) }]);
    const volume = await user.importVolume(image, "twin");
    const original = await user.backUp(volume);
    const record = await exportRecord(instance, original);
    const folder = join(instance.repositoryDir, decode(record).container);
    const twinRecord = () => encode(record.backup_service, { ...decode(record), id: randomUUID() });
    const twin = await imported(instance, user, twinRecord());
    expect(twin).not.toBe(original);
    await user.deleteBackup(original);
    await user.expectExact(twin, await sha256Of(image));
    // The id of a deleted backup may come back.
    expect(await imported(instance, user, record)).toBe(original);
    const third = await imported(instance, user, twinRecord());
    expect(await rescan(instance)).toMatchObject({ result: { entered: 0 } });
    await Promise.all([twin, original, third].map((id) => user.deleteBackup(id)));
    expect(existsSync(folder)).toBe(false);
  });

  it("refuses records that lie, and touches nothing that they name", { timeout: 240_000 }, async () => {
    const image = join(instance.dataDir, "lies.img");
    await writeIslands(image, 2 * MiB, [{ offset: 0, data: randomBytesOf("lies", 2 * MiB) }]);
    const volume = await user.importVolume(image, "lies");
    const full = await user.backUp(volume);
    const inc = await user.backUp(volume, { incremental: true });
    const [record, child] = [await exportRecord(instance, full), await exportRecord(instance, inc)];
    const lie = (change: Record<string, unknown>, of: BackupRecord = record) =>
      encode(of.backup_service, { ...decode(of), id: randomUUID(), ...change });
    const reason = (change: Record<string, unknown>, of?: BackupRecord) => refused(instance, user, lie(change, of));
    const { service_metadata: prefix, container, ...rest } = decode(record);

    expect(await reason({ parent_id: randomUUID() })).toContain("as parent, the metadata none");
    expect(await reason({ parent_id: null }, child)).toContain(`as parent, the metadata ${full}`);
    const other = await imported(instance, user, lie({}));
    expect(await reason({ parent_id: inc }, child)).toContain("as parent");
    expect(await reason({ size: 0 })).toContain("its size is 0 GiB");
    expect(await reason({ service_metadata: prefix.replace(/\d{14}/, "19990101000000") })).toContain("it is missing");
    const foreign = await refused(instance, user, { ...lie({}), backup_service: "cinder.backup.drivers.s3" });
    expect(foreign).toBe(
      "Import record failed, cannot find backup service to perform the import. Request service cinder.backup.drivers.s3.",
    );
    const { display_name: _name, object_count: _count, ...fewer } = { ...rest, service_metadata: prefix, container };
    expect(await refused(instance, user, encode(record.backup_service, { ...fewer, id: randomUUID() }))).toBe(
      "Driver successfully decoded imported backup data, but there are missing fields (display_name, object_count).",
    );
    // One stray object under the prefix, and one missing: the listing is not what the metadata says.
    const stray = join(instance.repositoryDir, container, `${prefix}-00099`);
    await writeFile(stray, "stray");
    expect(await reason({})).toContain("aborted, the metadata does not know it");
    await rm(stray);
    const metadata = join(instance.repositoryDir, container, `${prefix}_metadata`);
    const text = await readFile(metadata, "utf8");
    await writeFile(metadata, text.replace('"version": "1.0.0"', '"version": "9.0.0"'));
    expect(await reason({})).toContain("No support to restore backup version 9.0.0");
    await writeFile(metadata, text);
    await instance.sql("UPDATE backups SET status = 'deleting' WHERE id = $1", [other]);
    expect(await reason({})).toBe("The objects of the backup are being deleted.");
    await instance.sql("UPDATE backups SET status = 'available' WHERE id = $1", [other]);
    await user.expectExact(other, await sha256Of(image));
    await user.expectExact(inc, await sha256Of(image));
  });

  it("answers 400 to every record that cannot be one, and keeps nothing of it", { timeout: 120_000 }, async () => {
    const image = join(instance.dataDir, "hostile.img");
    await writeIslands(image, MiB, [{ offset: 0, data: randomBytesOf("hostile", MiB) }]);
    const volume = await user.importVolume(image, "hostile");
    const full = await user.backUp(volume);
    const inc = await user.backUp(volume, { incremental: true });
    const [record, child] = [await exportRecord(instance, full), await exportRecord(instance, inc)];
    const kept = () =>
      instance.sql(
        "SELECT (SELECT count(*) FROM backups), (SELECT count(*) FROM operations), (SELECT sum(backups_used) FROM quotas)",
      );
    const before = await kept();
    /** Posts the record with one change. Returns what is said of it. */
    const said = async (change: Record<string, unknown>, of = record): Promise<string> => {
      const reply = await importRecord(
        instance,
        encode(of.backup_service, { ...decode(of), id: randomUUID(), ...change }),
      );
      expect(reply.status, `${JSON.stringify(change).slice(0, 200)}: ${reply.text}`).toBe(400);
      expect(Object.keys(reply.body)).toEqual(["badRequest"]);
      expect(await kept(), JSON.stringify(change).slice(0, 200)).toEqual(before);
      return reply.body.badRequest.message;
    };
    const { service_metadata: prefix } = decode(record);
    const long = "x".repeat(300);
    const wrongTypes = [5, -1, 1.5, true, [], {}, ["a"], { a: { b: 1 } }, "a\0b", "\ud800", long];
    const hostile: Record<string, readonly unknown[]> = {
      id: [null, "../..", "nope", `${randomUUID()}x`, "", ...wrongTypes],
      size: [null, "1", 1e300, 2 ** 31, Number.MIN_SAFE_INTEGER, ...wrongTypes.slice(1)],
      container: [
        null,
        ".",
        "..",
        "../../etc",
        "/etc",
        "a//b",
        "a/../b",
        "a\\b",
        ".tephra/records",
        "é".repeat(200),
        ...wrongTypes,
      ],
      service_metadata: [
        null,
        "",
        "volume_",
        "_metadata",
        `${prefix}/../../x`,
        `../${prefix}`,
        `${prefix}_metadata`,
        `${prefix}\n`,
        ...wrongTypes,
      ],
      object_count: [null, "1", 1e12, ...wrongTypes.slice(1)],
      display_name: wrongTypes,
      display_description: wrongTypes,
      parent_id: ["", "../x", "nope", ...wrongTypes],
      volume_id: ["../x", ...wrongTypes],
      snapshot_id: ["../x", ...wrongTypes],
      encryption_key_id: ["../x", ...wrongTypes],
      service: wrongTypes,
      metadata: [
        5,
        true,
        ["a"],
        "text",
        { a: 1 },
        { a: null },
        { a: { b: "c" } },
        { [long]: "v" },
        { k: long },
        { "a\0": "v" },
      ],
      created_at: ["yesterday", "0", "2026-13-45T99:00:00Z", ...wrongTypes],
      data_timestamp: ["yesterday", ...wrongTypes],
    };
    for (const [key, values] of Object.entries(hostile)) {
      for (const value of values) {
        expect(await said({ [key]: value })).toMatch(
          new RegExp(`^Invalid input received: Provided backup record has an unusable ${key}: it is no `),
        );
      }
    }
    const own = randomUUID();
    const circle = "Invalid backup: The parents of the backup form a circle.";
    expect(await said({ id: own, parent_id: own }, child)).toBe(circle);
    expect(await said({ id: full })).toBe("Invalid backup: Backup already exists in database.");
    expect(await said({ id: full.toUpperCase() })).toBe("Invalid backup: Backup already exists in database.");
    // Another project's backup is neither a parent nor a child of what is imported here.
    const other = "Invalid backup: The chain of the backup belongs to another project.";
    await instance.sql("UPDATE backups SET project_id = 'another' WHERE id = $1", [full]);
    expect(await said({}, child)).toBe(other);
    expect(await said({ id: full })).toBe("Invalid backup: Backup already exists in database.");
    await instance.sql("UPDATE backups SET project_id = $2 WHERE id = $1", [full, project]);
    const lost = randomUUID();
    await instance.sql("UPDATE backups SET project_id = 'another', parent_id = $2 WHERE id = $1", [inc, lost]);
    expect(await said({ id: lost })).toBe(other);
    await instance.sql("UPDATE backups SET parent_id = $2 WHERE id = $1", [inc, own]);
    await instance.sql("UPDATE backups SET project_id = $2 WHERE id = $1", [inc, project]);
    expect(await said({ id: own, parent_id: inc }, child)).toBe(circle);
    await instance.sql("UPDATE backups SET parent_id = $2 WHERE id = $1", [inc, full]);
  });

  it("takes nothing from the keys that an import ignores", { timeout: 60_000 }, async () => {
    const [{ id: full }] = await instance.sql(
      "SELECT id FROM backups WHERE status = 'available' AND parent_id IS NULL LIMIT 1",
    );
    const record = await exportRecord(instance, full);
    const ignored = {
      project_id: "aaaa",
      user_id: { a: 1 },
      status: "deleted",
      deleted: true,
      deleted_at: 5,
      fail_reason: [],
      host: "../x",
      availability_zone: 7,
      num_dependent_backups: "many",
      restore_volume_id: "../x",
      temp_volume_id: {},
      temp_snapshot_id: 1,
      driver_info: { a: { b: [] } },
      constructor: "x",
      unknown: { deep: [[[[]]]] },
    };
    const text = JSON.stringify({ ...decode(record), id: randomUUID(), ...ignored });
    const polluted = text.replace("{", '{"__proto__": {"id": "x", "size": -1},');
    const id = await imported(instance, user, { ...record, backup_url: Buffer.from(polluted).toString("base64") });
    const [row] = await instance.sql("SELECT * FROM backups WHERE id = $1", [id]);
    expect(row).toMatchObject({
      project_id: project,
      user_id: "admin",
      status: "available",
      deleted_at: null,
      fail_reason: null,
    });
    expect(row.host).not.toBe("../x");
    await user.deleteBackup(id);
  });

  it("takes a record once, however often it is sent at the same moment", { timeout: 60_000 }, async () => {
    const [{ id: full }] = await instance.sql(
      "SELECT id FROM backups WHERE status = 'available' AND parent_id IS NULL LIMIT 1",
    );
    const record = await exportRecord(instance, full);
    const twin = encode(record.backup_service, { ...decode(record), id: randomUUID() });
    const [{ backups_used: before }] = await usage(instance);
    const replies = await Promise.all(Array.from({ length: 8 }, () => importRecord(instance, twin)));
    expect(replies.map(({ status }) => status).sort()).toEqual([201, ...Array(7).fill(400)]);
    const { id } = decode(twin);
    await user.settled("backups", id, "available");
    expect((await usage(instance))[0]).toMatchObject({ backups_used: before + 1 });
    await user.deleteBackup(id);
    expect((await usage(instance))[0]).toMatchObject({ backups_used: before });
  });

  it("reads no more of a body than Cinder does, and none that is packed", async () => {
    const send = (body: Uint8Array, headers: Record<string, string> = {}) =>
      instance.request("POST", `${base}/backups/import_record`, body, {
        "content-type": "application/json",
        ...headers,
      });
    const bomb = gzipSync(Buffer.alloc(64 * MiB));
    expect(bomb.length).toBeLessThan(100_000);
    const packed = await send(bomb, { "content-encoding": "gzip" });
    expect([packed.status, Object.keys(packed.body)]).toEqual([415, ["badMediaType"]]);
    expect((await send(bomb)).status).toBe(400);
    expect((await send(Buffer.alloc(200_000, " "))).status).toBe(413);
    expect((await instance.request("GET", "/readyz")).status).toBe(200);
  });

  it("answers what is no record as Cinder does", async () => {
    const ask = async (record: unknown) => (await importRecord(instance, record)).body.badRequest.message;
    const service = "cinder.backup.drivers.posix.PosixBackupDriver";
    const url = (backup_url: unknown) => ask({ backup_service: service, backup_url });
    const json = (value: unknown) => ask(encode(service, value));
    expect(await url("%%%")).toBe("Invalid input received: Can't parse backup record.");
    for (const text of ["abcde", "a", "ab", "ab="]) {
      expect(await url(text)).toBe(
        `Invalid input for field/attribute backup_url. Value: ${text}. '${text}' is not a 'base64'`,
      );
    }
    for (const text of ["ab==cd==", "=", "abcd===", "ab=cd=", "a b c d"]) {
      expect(await url(text)).toBe("Invalid input received: Can't parse backup record.");
    }
    expect(await url("é")).toMatch(/^Error decoding your request\./);
    expect(await json(5)).toMatch(/^The server could not comply with the request/);
    expect(await url(Buffer.from([0x22, 0xff, 0x22]).toString("base64"))).toBe(
      "Invalid input received: Can't parse backup record.",
    );
    expect(await json([1])).toBe("Invalid input received: Provided backup record is missing an id");
    expect(await json({ id: randomUUID() })).toBe(
      "Invalid input received: Provided backup record is missing size attribute",
    );
    expect(await ask({})).toBe(
      "Invalid input for field/attribute backup-record. Value: {}. 'backup_service' is a required property",
    );
    expect(await url("")).toBe("Invalid input for field/attribute backup_url. Value: . '' is too short");
    const deep = await url(
      Buffer.from(`${"[".repeat(80_000)}`)
        .toString("base64")
        .slice(0, 100_000),
    );
    expect(deep).toBe("Invalid input received: Can't parse backup record.");
    const huge = await importRecord(instance, { backup_service: service, backup_url: "A".repeat(200_000) });
    expect(huge.status).toBe(413);
    const over = await importRecord(instance, encode(service, { id: randomUUID(), size: 100_000 }));
    expect(over.body.overLimit.message).toContain("VolumeBackupSizeExceedsAvailableQuota: ");
  });
});

it("reads every byte of the chain before it accepts a record, where the configuration says so", {
  timeout: 180_000,
}, async () => {
  await using instance = await startInstance({ config: { import_verify: "deep" } });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "deep.img");
  await writeIslands(image, 2 * MiB, [{ offset: 0, data: randomBytesOf("deep", 2 * MiB) }]);
  const volume = await user.importVolume(image, "deep");
  const full = await user.backUp(volume);
  await writeIslands(user.volumeFile(volume), null, [{ offset: 5000, data: randomBytesOf("more", 100) }]);
  const inc = await user.backUp(volume, { incremental: true });
  const records = [await exportRecord(instance, full), await exportRecord(instance, inc)] as const;
  await loseDatabase(instance);
  expect(await refused(instance, user, records[1])).toBe(`Backup ${full} could not be found.`);
  for (const record of records) await imported(instance, user, record);
  await loseDatabase(instance);
  const { container, service_metadata: prefix } = decode(records[0]);
  const object = join(instance.repositoryDir, container, `${prefix}-00001`);
  const bytes = await readFile(object);
  const middle = bytes.length >> 1;
  bytes.writeUInt8(bytes.readUInt8(middle) ^ 1, middle);
  await writeFile(object, bytes);
  expect(await refused(instance, user, records[0])).toContain("-00001");
});
