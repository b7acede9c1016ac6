import { execFile } from "node:child_process";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { provideQemuUtils } from "../../../scripts/qemu-utils-package.ts";
import { freePort } from "../../../scripts/spawn-program.ts";
import { ask, hashOf, password } from "../../dialects/ovirt/engine.ts";
import { ImageClient } from "../../kit/image-client.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";
import { startTephra } from "../../kit/tephra-command.ts";

const MiB = 1024 * 1024;
const transfers = "/ovirt-engine/api/imagetransfers";
const user = (name: string, id: string) => ({
  name,
  password_hash: hashOf(password),
  project_id: id,
  roles: ["member"],
});

let instance: Instance;
let journey: Journey;
beforeAll(async () => {
  const env = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  Object.assign(process.env, env);
  instance = await startInstance({
    config: {
      ovirt: { users: [user("admin@internal", project), user("stranger@internal", "2".repeat(32))] },
      image_transfers: { port: await freePort() },
      worker: { heartbeat_ms: 500, lease_ms: 4_000, down_ms: 30_000 },
    },
    repository: { object_bytes: MiB },
  });
  await instance.startTransfer();
  journey = journeyOn(instance);
}, 600_000);
afterAll(() => instance?.[Symbol.asyncDispose]());

const begin = (json: object, as = "admin@internal") => ask(instance, "POST", transfers, { json, as });

const reach = (id: string, phase: string) =>
  instance.waitFor(
    async () => {
      const { json } = await ask(instance, "GET", `${transfers}/${id}`, { headers: { accept: "application/json" } });
      return json.phase === phase && json;
    },
    { what: `transfer ${id} is ${phase}`, timeoutMs: 60_000 },
  );

async function open(backup: string, format?: "cow"): Promise<{ id: string; client: ImageClient }> {
  const begun = await begin({ backup: { id: backup }, direction: "download", format });
  expect([begun.status, begun.json.backup?.id, begun.json.format]).toEqual([201, backup, format ?? "raw"]);
  const { transfer_url: url } = await reach(begun.json.id, "transferring");
  return { id: begun.json.id, client: new ImageClient(url) };
}

const finalize = async (id: string): Promise<void> => {
  expect((await ask(instance, "POST", `${transfers}/${id}/finalize`, { json: {} })).status).toBe(200);
  await reach(id, "finished_success");
};

/** A volume with a full backup and an incremental, and what it held at each of the two moments. */
async function volumeWithChain() {
  const path = join(instance.dataDir, `source-${Math.random()}`);
  const sizeBytes = 24 * MiB + 512;
  await writeIslands(path, sizeBytes, [
    { offset: 0, data: randomBytesOf("start", 3 * MiB) },
    { offset: 15 * MiB + 1000, data: randomBytesOf("middle", 2 * MiB) },
    { offset: sizeBytes - 700, data: randomBytesOf("end", 700) },
  ]);
  const volume = await journey.importVolume(path);
  const images = [await readFile(journey.volumeFile(volume))];
  const full = await journey.backUp(volume);
  await writeIslands(journey.volumeFile(volume), null, [
    { offset: MiB, data: Buffer.alloc(MiB) },
    { offset: 8 * MiB, data: randomBytesOf("changed", 100_000) },
  ]);
  images.push(await readFile(journey.volumeFile(volume)));
  const incremental = await journey.backUp(volume, { incremental: true });
  return { volume, backups: [full, incremental], images };
}

it("any backup of a chain is read without a restore, while its volume is used, and after it is gone", {
  timeout: 180_000,
}, async () => {
  const { volume, backups, images } = await volumeWithChain();
  const [first] = await Promise.all(backups.map((backup) => open(backup)));
  await journey.deleteBackup(await journey.backUp(volume, { name: "beside it" }));
  await journey.accepted("DELETE", `/v3/${project}/volumes/${volume}`);
  await instance.waitFor(async () => (await instance.sql("SELECT FROM volumes WHERE id = $1", [volume])).length === 0, {
    what: "the volume is gone",
  });
  for (const [at, backup] of backups.entries()) {
    const image = images[at] as Buffer;
    const { id, client } = await open(backup);
    expect((await client.ask("OPTIONS")).text).toContain('"features": ["extents"]');
    expect((await client.ask("GET")).body.equals(image)).toBe(true);
    const seen = Buffer.alloc(image.length);
    let end = 0;
    let zeros = 0;
    for (const { start, length, zero } of JSON.parse((await client.ask("GET", "/extents")).text)) {
      expect(start).toBe(end);
      end += length;
      if (zero) zeros += length;
      else (await client.get(start, length)).copy(seen, start);
    }
    expect(end).toBe(image.length);
    expect(zeros).toBeGreaterThan(17 * MiB);
    expect(seen.equals(image)).toBe(true);
    expect((await client.put(Buffer.alloc(10), 0)).status).toBe(403);
    await finalize(id);

    const asQcow2 = await open(backup, "cow");
    const path = join(instance.dataDir, `${backup}.qcow2`);
    await writeFile(path, (await asQcow2.client.ask("GET")).body);
    await promisify(execFile)("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", path, `${path}.raw`]);
    expect((await readFile(`${path}.raw`)).equals(image)).toBe(true);
    await finalize(asQcow2.id);
  }
  expect((await first?.client.get(0, MiB))?.equals((images[0] as Buffer).subarray(0, MiB))).toBe(true);
  for (const { id } of (await ask(instance, "GET", transfers, { headers: { accept: "application/json" } })).json
    .image_transfer)
    await ask(instance, "POST", `${transfers}/${id}/cancel`, { json: {} });
});

it("tephra downloads a backup by its name, with holes where it has them", { timeout: 120_000 }, async () => {
  const { backups, images } = await volumeWithChain();
  const [, incremental = ""] = backups;
  const named = await instance.request(
    "PUT",
    `/v3/${project}/backups/${incremental}`,
    { backup: { name: "tuesday" } },
    { "openstack-api-version": "volume 3.9" },
  );
  expect(named.status, named.text).toBe(200);
  const env = { TEPHRA_URL: instance.url, TEPHRA_OVIRT_USER: "admin@internal", TEPHRA_OVIRT_PASSWORD: password };
  const path = join(instance.dataDir, "tuesday.img");
  const done = await startTephra(["backup", "download", "tuesday", path, "--json"], env).finished;
  expect(done, done.stderr).toMatchObject({ status: 0 });
  const image = images[1] as Buffer;
  expect(done.json).toEqual({ backup: { id: incremental, path, bytes: image.length } });
  expect((await readFile(path)).equals(image)).toBe(true);
  expect((await stat(path)).blocks * 512).toBeLessThan(8 * MiB);
  const again = await startTephra(["backup", "download", "tuesday", path, "--json"], env).finished;
  expect([again.status, again.json.error.code]).toEqual([1, "EEXIST"]);
});

it("a deletion of the backup ends it; a damaged object fails what is read of it alone", {
  timeout: 180_000,
}, async () => {
  const { backups, images } = await volumeWithChain();
  const [full = "", incremental = ""] = backups;
  const { id, client } = await open(incremental);
  await client.get(0, MiB);
  await journey.deleteBackup(incremental);
  expect((await reach(id, "finished_cleanup")).transfer_url).toBe(undefined);
  expect((await client.ask("OPTIONS")).status).toBe(403);
  const files = await readdir(instance.repositoryDir, { recursive: true, withFileTypes: true });
  const object = files.find(({ name, parentPath }) => `${parentPath}/${name}`.includes(`${full}-00016`));
  const path = join(object?.parentPath ?? "", object?.name ?? "");
  const bytes = await readFile(path);
  bytes.writeUInt8(255 - bytes.readUInt8(20), 20);
  await writeFile(path, bytes);
  const again = await open(full);
  await expect(again.client.get(15 * MiB, MiB)).rejects.toThrow();
  const whole = images[0] as Buffer;
  expect((await again.client.get(0, MiB)).equals(whole.subarray(0, MiB))).toBe(true);
  await finalize(again.id);
  await journey.expectQuiet();
});

it("after kill -9 a successor goes on with the same ticket", { timeout: 180_000 }, async () => {
  const { backups, images } = await volumeWithChain();
  const { id, client } = await open(backups[1] ?? "");
  const whole = images[1] as Buffer;
  expect((await client.get(0, MiB)).equals(whole.subarray(0, MiB))).toBe(true);
  const [served] = await instance.sql(
    "SELECT s.pid FROM image_transfers t JOIN image_servers s ON s.id = t.server_id WHERE t.id = $1",
    [id],
  );
  process.kill(served.pid, "SIGKILL");
  await instance.startTransfer();
  const rest = await instance.waitFor(() => client.get(MiB, 20 * MiB).catch(() => null), {
    what: "the successor serves it",
    timeoutMs: 60_000,
  });
  expect(rest.equals(whole.subarray(MiB, 21 * MiB))).toBe(true);
  await finalize(id);
});

it("uploads, other disks and other tenants' backups are refused in oVirt's words", {
  timeout: 120_000,
}, async () => {
  const { volume, backups } = await volumeWithChain();
  const [full = "", incremental = ""] = backups;
  const refused = async (json: object, as?: string) => {
    const { status, json: fault } = await begin({ direction: "download", backup: { id: full }, ...json }, as);
    return [status, fault.detail];
  };
  const unknown = [400, "[Cannot transfer Virtual Disk. The specified VM backup does not exist.]"];
  expect(await refused({}, "stranger@internal")).toEqual(unknown);
  expect(await refused({ backup: { id: volume } })).toEqual(unknown);
  expect(await refused({ backup: { id: "x" } })).toEqual(unknown);
  expect(await refused({ disk: { id: full } })).toEqual(unknown);
  expect(await refused({ direction: "upload" })).toEqual([
    400,
    "[Cannot transfer Virtual Disk. Disks of a VM backup can only be downloaded.]",
  ]);
  await instance.sql("UPDATE backups SET status = 'error' WHERE id = $1", [incremental]);
  expect(await refused({ backup: { id: incremental } })).toEqual([
    409,
    "[Cannot transfer Virtual Disk. The VM backup is not in READY phase, backup phase is ERROR.]",
  ]);
  expect((await begin({ direction: "download", backup: { id: full }, disk: { id: volume } })).status).toBe(201);
});
