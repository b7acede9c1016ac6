import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;
const noParent = "Invalid backup: No backups available to do an incremental backup.";

let instance: Instance;
let user: Journey;
beforeAll(async () => {
  const quotas = { volumes: 20, gigabytes: 40, backups: -1, backup_gigabytes: -1, snapshots: -1 };
  instance = await startInstance({ config: { quotas }, repository: { object_bytes: MiB, compression: "none" } });
  user = journeyOn(instance);
});
afterAll(() => instance?.[Symbol.asyncDispose]());

/** Nothing is known any more but the workers, as with a new database. */
const loseDatabase = () =>
  instance.sql(
    "TRUNCATE backups, volumes, attachments, snapshots, operations, tasks, quotas, notifications, messages, audit CASCADE",
  );

async function ended(operationId: string): Promise<{ state: string; fail_reason: string | null }> {
  return instance.waitFor(
    async () => {
      const { operation } = await user.get(`/ops/operations/${operationId}`);
      return ["succeeded", "failed"].includes(operation.state) && operation;
    },
    { what: `operation ${operationId} has ended` },
  );
}

async function rescan(): Promise<void> {
  const { operation } = await user.accepted("POST", "/ops/repositories/main/rescan", {});
  expect(await ended(operation.id)).toMatchObject({ state: "succeeded" });
}

const adopt = (id: string, more: object = {}) => instance.request("POST", "/ops/volumes/import", { id, ...more });

/** How an adoption that is accepted ends. */
async function adopted(id: string, more: object = {}) {
  const reply = await adopt(id, more);
  expect(reply.status, reply.text).toBe(202);
  expect(reply.body.volume).toEqual({ id });
  return ended(reply.body.operation.id);
}

const backupRow = async (id: string): Promise<{ parent_id: string | null; stored: number; volume_id: string }> =>
  (await instance.sql("SELECT parent_id, stored_bytes::int AS stored, volume_id FROM backups WHERE id = $1", [id]))[0];

const used = async () => (await instance.sql("SELECT volumes_used, gigabytes_used FROM quotas"))[0];

async function imported(name: string, sizeBytes: number): Promise<string> {
  const image = join(instance.dataDir, `${name}.img`);
  await writeIslands(image, sizeBytes, [{ offset: 0, data: randomBytesOf(name, sizeBytes) }]);
  return user.importVolume(image, name);
}

const write = (volume: string, offset: number, length: number) =>
  writeIslands(user.volumeFile(volume), null, [{ offset, data: randomBytesOf(randomUUID(), length) }]);

async function gone(volume: string): Promise<void> {
  await user.accepted("DELETE", `${base}/volumes/${volume}`);
  const isGone = async () => (await instance.request("GET", `${base}/volumes/${volume}`)).status === 404;
  await instance.waitFor(isGone, { what: `volume ${volume} is gone` });
}

/** Of an incremental backup that builds on `parent`: few bytes, exact, and the parent cannot go before it. */
async function expectIncremental(volume: string, parent: string, bytesMax: number): Promise<string> {
  const id = await user.backUp(volume, { incremental: true });
  const row = await backupRow(id);
  expect(row).toMatchObject({ parent_id: parent, volume_id: volume });
  expect(row.stored).toBeLessThanOrEqual(bytesMax);
  await user.expectExact(id, await sha256Of(user.volumeFile(volume)));
  expect((await instance.request("DELETE", `${base}/backups/${parent}`)).status).toBe(400);
  return id;
}

describe("a volume of an id from before the database", { timeout: 240_000 }, () => {
  it("is made of the file that lies there: its chain goes on, and nothing is copied", async () => {
    const volume = await imported("kept", 6 * MiB + 4321);
    const file = user.volumeFile(volume);
    const full = await user.backUp(volume);
    await write(volume, MiB, 1000);
    const second = await user.backUp(volume, { incremental: true });
    const { ino } = await stat(file);
    await loseDatabase();
    await rescan();
    expect((await instance.request("GET", `${base}/volumes/${volume}`)).status).toBe(404);

    expect(await adopted(volume, { name: "kept" })).toMatchObject({ state: "succeeded" });
    const { volume: shown } = await user.get(`${base}/volumes/${volume}`);
    expect(shown).toMatchObject({ status: "available", size: 1, name: "kept" });
    expect((await stat(file)).ino).toBe(ino);
    expect(await used()).toEqual({ volumes_used: 1, gigabytes_used: 1 });
    await write(volume, 3 * MiB + 5, 700);
    const next = await expectIncremental(volume, second, MiB);
    await user.expectExact(second, await sha256Of(user.volumeFile(await user.restore(second))));
    for (const id of [next, second, full]) await user.deleteBackup(id);
    await gone(volume);
    expect(existsSync(file)).toBe(false);
  });

  it("is made of a user's file, and never replaces what lies there", async () => {
    const volume = await imported("carried", 3 * MiB);
    const file = user.volumeFile(volume);
    const image = join(instance.dataDir, "carried.img");
    const full = await user.backUp(volume);
    await loseDatabase();
    await rescan();
    await writeIslands(image, null, [{ offset: 2 * MiB, data: randomBytesOf("other", 100) }]);
    const before = await sha256Of(file);

    // Other bytes are there: nothing comes of it, and no row is left by which an admin could remove them.
    expect(await adopted(volume, { path: image })).toMatchObject({
      state: "failed",
      fail_reason: expect.stringContaining("is there already"),
    });
    expect(await sha256Of(file)).toBe(before);
    expect((await instance.request("GET", `${base}/volumes/${volume}`)).status).toBe(404);
    for (const action of ["os-reset_status", "os-force_delete"]) {
      const body = { [action]: action === "os-reset_status" ? { status: "available" } : {} };
      expect((await instance.request("POST", `${base}/volumes/${volume}/action`, body)).status).toBe(404);
    }
    expect((await instance.request("DELETE", `${base}/volumes/${volume}`)).status).toBe(404);
    expect(await used()).toMatchObject({ volumes_used: 0 });
    expect(existsSync(file)).toBe(true);

    await rename(file, `${file}.away`);
    expect(await adopted(volume)).toMatchObject({
      state: "failed",
      fail_reason: expect.stringContaining("cannot be opened"),
    });
    expect(await adopted(volume, { path: image })).toMatchObject({ state: "succeeded" });
    expect(await sha256Of(file)).toBe(await sha256Of(image));
    await expectIncremental(volume, full, MiB);
    await rm(`${file}.away`);
  });

  it("is not made where the quota has no room, nor in an unknown backend, and puts no file there", async () => {
    const id = randomUUID();
    const image = join(instance.dataDir, "carried.img");
    await instance.sql("UPDATE quotas SET volumes = volumes_used");
    expect(await adopted(id, { path: image })).toMatchObject({
      state: "failed",
      fail_reason: expect.stringContaining("Quota volumes exceeded"),
    });
    expect(existsSync(user.volumeFile(id))).toBe(false);
    await instance.sql("UPDATE quotas SET volumes = NULL");
    expect((await adopt(id, { backend: "nowhere" })).status).toBe(400);
    expect(await adopted(id, { path: image })).toMatchObject({ state: "succeeded" });
    expect((await adopt(id)).status).toBe(409);
    await gone(id);
  });

  it("gets no id that a volume has, had, or is being given, and none of another project's backups", async () => {
    const volume = await imported("taken", MiB);
    const sentence = (id: string) => `A volume has or had the id ${id}, or is just being given it.`;
    const refused = async (id: string, more: object = {}) => {
      const reply = await adopt(id, more);
      expect(reply.status, reply.text).toBe(409);
      return (Object.values(reply.body)[0] as { message: string }).message;
    };
    for (const more of [{}, { project_id: "b" }, { path: join(instance.dataDir, "taken.img") }]) {
      expect(await refused(volume, more)).toBe(sentence(volume));
    }
    const full = await user.backUp(volume);
    await gone(volume);
    expect(await refused(volume)).toBe(sentence(volume));

    // Ten at once: one gets it.
    const fresh = randomUUID();
    const image = join(instance.dataDir, "taken.img");
    const replies = await Promise.all(Array.from({ length: 10 }, () => adopt(fresh, { path: image })));
    expect(replies.map((reply) => reply.status).sort()).toEqual([202, ...Array(9).fill(409)]);
    await instance.waitFor(async () => (await instance.request("GET", `${base}/volumes/${fresh}`)).status === 200, {
      what: "it is there",
    });

    await loseDatabase();
    await rescan();
    expect(await refused(volume, { project_id: "b" })).toContain("another project's");
    await user.deleteBackup(full);
  });
});

describe("the first incremental backup of a restored volume", { timeout: 240_000 }, () => {
  let source: string;
  let full: string;
  beforeAll(async () => {
    source = await imported("source", 8 * MiB + 77);
    full = await user.backUp(source);
  });

  const refusal = async (volume: string, more: object = {}) => {
    const backup = { volume_id: volume, incremental: true, ...more };
    const reply = await instance.request("POST", `${base}/backups`, { backup });
    return { status: reply.status, message: reply.body.badRequest?.message };
  };

  it("builds on the backup that it was restored from, changed or not, and goes on by itself", async () => {
    const volume = await user.restore(full);
    const same = await expectIncremental(volume, full, 0);
    await write(volume, 5 * MiB + 9, 500);
    const next = await expectIncremental(volume, same, MiB);
    // What Cinder reads: the parent by its id, in the metadata and in the record.
    const { "backup-record": record } = await user.get(`${base}/backups/${same}/export_record`);
    const document = JSON.parse(Buffer.from(record.backup_url, "base64").toString());
    expect(document).toMatchObject({ parent_id: full, volume_id: volume });
    // The chain is one of the repository, too.
    await user.deleteBackup(next);
    await loseDatabase();
    await rescan();
    expect(await backupRow(same)).toMatchObject({ parent_id: full, volume_id: volume });
    await user.expectExact(same, await sha256Of(user.volumeFile(source)));
    expect(await adopted(source)).toMatchObject({ state: "succeeded" });
    await user.deleteBackup(same);
  });

  it("builds on it when everything was written anew", async () => {
    const volume = await user.restore(full);
    await write(volume, 0, 8 * MiB + 77);
    await user.deleteBackup(await expectIncremental(volume, full, 9 * MiB));
  });

  it("is refused when that backup is gone, of another length, or another project's", async () => {
    const twin = await user.backUp(source);
    const restored = await user.restore(twin);
    await user.deleteBackup(twin);
    expect(await refusal(restored)).toEqual({ status: 400, message: noParent });

    const larger = await user.createVolume(1);
    await user.restore(full, larger);
    expect(await refusal(larger)).toEqual({ status: 400, message: noParent });

    const theirs = await user.restore(full);
    await instance.sql("UPDATE volumes SET project_id = 'theirs' WHERE id = $1", [theirs]);
    await instance.sql("UPDATE backups SET project_id = 'theirs' WHERE id = $1", [full]);
    expect(await refusal(theirs)).toEqual({ status: 400, message: noParent });
    await instance.sql("UPDATE backups SET project_id = $2 WHERE id = $1", [full, project]);
  });

  it("is refused when the restore failed, or another one failed since", async () => {
    const restoreDamaged = async (onto: string | null): Promise<string> => {
      const bad = await user.backUp(source);
      const place = "SELECT container, service_metadata AS prefix FROM backups WHERE id = $1";
      const [{ container, prefix }] = await instance.sql(place, [bad]);
      const object = join(instance.repositoryDir, container, `${prefix}-00003`);
      await writeIslands(object, null, [{ offset: 10, data: Buffer.from("damage") }]);
      const target = await user.startRestore(bad, onto);
      await user.settled("volumes", target, "error_restoring");
      await user.settled("backups", bad, "error_restoring");
      // The admin says of both that they are well.
      await instance.sql("UPDATE backups SET damage = NULL WHERE id = $1", [bad]);
      for (const [kind, id] of [
        ["backups", bad],
        ["volumes", target],
      ]) {
        await user.accepted("POST", `${base}/${kind}/${id}/action`, { "os-reset_status": { status: "available" } });
      }
      return target;
    };
    expect(await refusal(await restoreDamaged(null))).toEqual({ status: 400, message: noParent });
    const volume = await user.restore(full);
    await restoreDamaged(volume);
    expect(await refusal(volume)).toEqual({ status: 400, message: noParent });
    // A restore that ends well counts again.
    await user.restore(full, volume);
    await user.deleteBackup(await expectIncremental(volume, full, 0));
  });

  it("of a snapshot builds on it if it was taken after the restore; own backups come first", async () => {
    const made = await imported("own", 8 * MiB + 77);
    const early = (await user.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: made } })).snapshot.id;
    await user.settled("snapshots", early, "available");
    await user.restore(full, made);
    const late = (await user.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: made } })).snapshot.id;
    await user.settled("snapshots", late, "available");
    expect(await refusal(made, { snapshot_id: early })).toEqual({ status: 400, message: noParent });
    const first = await user.backUp(made, { incremental: true, snapshot_id: late });
    expect(await backupRow(first)).toMatchObject({ parent_id: full, stored: 0 });
    const own = await user.backUp(made);
    await user.restore(full, made);
    await user.deleteBackup(await expectIncremental(made, own, 0));
  });
});
