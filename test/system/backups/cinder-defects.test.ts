import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { finishBackup, setStatus, startApiOnly } from "../../dialects/api-only.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;

const token = (name: string, projectId: string, role: string) => ({
  sha256: createHash("sha256").update(name).digest("hex"),
  user_id: `user-${name}`,
  project_id: projectId,
  roles: [role],
});

/** Each test is a rule that Cinder breaks; `docs/cinder-differences.md`, "Defects that are not copied". */
describe("where Cinder is at fault", () => {
  it("restores zeros that an incremental backup brought, to a new volume too", async () => {
    await using instance = await startInstance({ repository: { object_bytes: MiB } });
    const user = journeyOn(instance);
    const image = join(instance.dataDir, "disk.img");
    await writeIslands(image, 8 * MiB, [{ offset: 0, data: randomBytesOf("zeros", 8 * MiB) }]);
    const volume = await user.importVolume(image);
    await user.backUp(volume);
    await writeIslands(user.volumeFile(volume), null, [{ offset: 2 * MiB, data: Buffer.alloc(3 * MiB) }]);
    const incremental = await user.backUp(volume, { incremental: true });
    await user.expectExact(incremental, await sha256Of(user.volumeFile(volume)));
  });

  it("fails a restore whose object is not what was written, instead of handing it out", async () => {
    await using instance = await startInstance({ repository: { object_bytes: MiB, compression: "none" } });
    const user = journeyOn(instance);
    const image = join(instance.dataDir, "disk.img");
    await writeIslands(image, 2 * MiB, [{ offset: 0, data: randomBytesOf("flipped", 2 * MiB) }]);
    const backup = await user.backUp(await user.importVolume(image));
    const [{ container, service_metadata: prefix }] = await instance.sql(
      "SELECT container, service_metadata FROM backups WHERE id = $1",
      [backup],
    );
    const object = await open(join(instance.repositoryDir, container, `${prefix}-00001`), "r+");
    await object.write(Buffer.alloc(16), 0, 16, 512);
    await object.close();
    const target = await user.startRestore(backup);
    await user.settled("volumes", target, "error_restoring");
  });

  it("lets no one delete a backup with dependents, not even an admin of another project", async () => {
    const ops = "cccccccccccccccccccccccccccccccc";
    const tokens = [token("member", project, "member"), token("admin", ops, "admin")];
    await using instance = await startApiOnly({ config: { auth: { mode: "static", tokens } } });
    const member = (method: string, path: string, body?: unknown) =>
      instance.request(method, `${base}${path}`, body, { "x-auth-token": "member" });
    const admin = (method: string, path: string, body?: unknown) =>
      instance.request(method, `/v3/${ops}${path}`, body, { "x-auth-token": "admin" });
    const { volume } = (await member("POST", "/volumes", { volume: { size: 1 } })).body;
    await setStatus(instance, "volumes", volume.id, "available");
    const full = (await member("POST", "/backups", { backup: { volume_id: volume.id } })).body.backup.id;
    await finishBackup(instance, full);
    const child = await member("POST", "/backups", { backup: { volume_id: volume.id, incremental: true } });
    await finishBackup(instance, child.body.backup.id);
    for (const refused of [
      await admin("DELETE", `/backups/${full}`),
      await admin("POST", `/backups/${full}/action`, { "os-force_delete": {} }),
    ]) {
      expect(refused.status).toBe(400);
      expect(refused.body.badRequest.message).toBe("Invalid backup: Incremental backups exist for this backup.");
    }
    const { backup } = (await member("GET", `/backups/${full}`)).body;
    expect([backup.status, backup.has_dependent_backups]).toEqual(["available", true]);
  });

  it("frees snapshot and volume of a backup for which there is no service", async () => {
    await using instance = await startInstance({ workers: 0, config: { tasks: { unplaced_timeout_ms: 500 } } });
    const user = journeyOn(instance);
    const { volume } = await user.accepted("POST", `${base}/volumes`, { volume: { size: 1 } });
    await setStatus(instance, "volumes", volume.id, "available");
    const { snapshot } = await user.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: volume.id } });
    await setStatus(instance, "snapshots", snapshot.id, "available");
    const ofSnapshot = await user.startBackup(volume.id, { snapshot_id: snapshot.id });
    const ofVolume = await user.startBackup(volume.id);
    for (const backup of [ofSnapshot, ofVolume]) {
      const { fail_reason: reason } = (await user.settled("backups", backup, "error")) as { fail_reason?: string };
      expect(reason).toMatch(/^Service not found for creating backup\./);
    }
    await user.settled("snapshots", snapshot.id, "available");
    await user.settled("volumes", volume.id, "available");
  });

  it("resets a backup that no service ever took, and frees its volume", async () => {
    await using instance = await startInstance({ workers: 0 });
    const user = journeyOn(instance);
    const { volume } = await user.accepted("POST", `${base}/volumes`, { volume: { size: 1 } });
    await setStatus(instance, "volumes", volume.id, "available");
    const backup = await user.startBackup(volume.id);
    await user.accepted("POST", `${base}/backups/${backup}/action`, { "os-reset_status": { status: "error" } });
    await user.settled("backups", backup, "error");
    await user.settled("volumes", volume.id, "available");
  });

  it("answers what has no body, or null in it, without a crash", async () => {
    await using instance = await startApiOnly();
    const { volume } = (await instance.request("POST", `${base}/volumes`, { volume: { size: 1 } })).body;
    await setStatus(instance, "volumes", volume.id, "available");
    const { backup } = (await instance.request("POST", `${base}/backups`, { backup: { volume_id: volume.id } })).body;
    await finishBackup(instance, backup.id);
    const version = { "openstack-api-version": "volume 3.71" };
    const ask = async (method: string, path: string, body?: unknown) =>
      (await instance.request(method, `${base}${path}`, body, version)).status;
    expect(await ask("POST", "/backups")).toBe(400);
    expect(await ask("POST", "/backups/import_record")).toBe(400);
    expect(await ask("POST", `/backups/${backup.id}/restore`)).toBe(400);
    expect(await ask("PUT", `/backups/${backup.id}`)).toBe(400);
    expect(await ask("PUT", `/backups/${backup.id}`, { backup: null })).toBe(200);
    expect(await ask("POST", `/backups/${backup.id}/restore`, { restore: null })).toBe(202);
  });
});
