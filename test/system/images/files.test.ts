import { createHash } from "node:crypto";
import { copyFile, mkdir, mkdtemp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { freePort } from "../../../scripts/spawn-program.ts";
import { installFileSystems, makeDisk, makeExt, makeFat } from "../../kit/file-system-images.ts";
import { type Instance, type Reply, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf } from "../../kit/journey.ts";
import { startTephra } from "../../kit/tephra-command.ts";

const MiB = 1024 * 1024;

let instance: Instance;
let journey: Journey;
/** A backup of a disk, an incremental one after its files have changed, and a snapshot of the disk then. */
let full: string;
let incremental: string;
let snapshot: string;
const large = randomBytesOf("large", 3 * MiB + 5);

async function makeVersion(version: string): Promise<string> {
  const dir = await mkdtemp(join(instance.dataDir, "tree-"));
  const path = `${dir}.disk`;
  await mkdir(join(dir, "root/etc"), { recursive: true });
  await mkdir(join(dir, "root/many"));
  await writeFile(join(dir, "root/etc/version"), version);
  await writeFile(join(dir, "root/etc/large"), Buffer.concat([large, Buffer.from(version)]));
  await writeFile(join(dir, "root/etc/empty"), "");
  for (let each = 0; each < 1_200; each++) await writeFile(join(dir, "root/many", `file-${each}`), "");
  await mkdir(join(dir, "boot"));
  await writeFile(join(dir, "boot/Kernel of the day.txt"), version);
  await makeFat(`${dir}.fat`, join(dir, "boot"), 4, 12);
  await makeExt(`${dir}.ext`, join(dir, "root"), "24M", "-t", "ext4");
  const table = "label: gpt\n1: start=2048, size=8192, name=boot\n2: start=10240, size=49152, name=root\n";
  const parts = [
    { file: `${dir}.fat`, atMib: 1 },
    { file: `${dir}.ext`, atMib: 5 },
  ];
  await makeDisk(path, table, { sizeMib: 32, parts });
  return path;
}

beforeAll(async () => {
  await installFileSystems();
  instance = await startInstance({
    config: { image_transfers: { port: await freePort() }, worker: { heartbeat_ms: 500, lease_ms: 4_000 } },
    repository: { object_bytes: MiB },
  });
  await instance.startTransfer();
  journey = journeyOn(instance);
  const volume = await journey.importVolume(await makeVersion("one"));
  full = await journey.backUp(volume);
  await copyFile(await makeVersion("two"), journey.volumeFile(volume));
  incremental = await journey.backUp(volume, { incremental: true });
  const body = { snapshot: { volume_id: volume, name: "before" } };
  snapshot = (await journey.accepted("POST", `/v3/${project}/snapshots`, body)).snapshot.id;
  await journey.settled("snapshots", snapshot, "available");
}, 600_000);
afterAll(() => instance?.[Symbol.asyncDispose]());

const get = (path: string, headers: Record<string, string> = {}): Promise<Reply> =>
  instance.request("GET", path, undefined, headers);
const content = (of: string, query: string, headers: Record<string, string> = {}) =>
  fetch(`${instance.url}/ops/${of}/files/content?${query}`, {
    headers: { "x-auth-token": `admin:${project}`, ...headers },
  });

it("tells the partitions of any member of a chain, and of a snapshot", { timeout: 120_000 }, async () => {
  for (const of of [`backups/${full}`, `backups/${incremental}`, `snapshots/${snapshot}`]) {
    const { status, body, text } = await get(`/ops/${of}/partitions`);
    expect(status, text).toBe(200);
    expect(body.partitions).toMatchObject([
      { number: 1, offset: MiB, bytes: 4 * MiB, name: "boot", file_system: "vfat", label: "VOLCANO", problem: null },
      { number: 2, offset: 5 * MiB, file_system: "ext4", needs_recovery: false, problem: null },
    ]);
  }
});

it("lists folders in pages, and fetches files byte for byte, of the moment of each", { timeout: 180_000 }, async () => {
  for (const [of, version] of [
    [`backups/${full}`, "one"],
    [`backups/${incremental}`, "two"],
    [`snapshots/${snapshot}`, "two"],
  ] as const) {
    const etc = await get(`/ops/${of}/files?path=/etc&partition=2`);
    expect(etc.status, etc.text).toBe(200);
    expect(etc.body).toMatchObject({ partition: 2, file_system: "ext4", next_marker: null });
    const byName = Object.fromEntries(etc.body.files.map((file: { name: string }) => [file.name, file]));
    expect(Object.keys(byName).sort()).toEqual(["empty", "large", "version"]);
    expect(byName["version"]).toMatchObject({ type: "file", size: 3, mode: 0o644, target: null });
    expect(await (await content(of, "path=/etc/version&partition=2")).text()).toBe(version);
    expect(await (await content(of, "path=/Kernel of the day.txt&partition=1")).text()).toBe(version);
    const fetched = await content(of, "path=/etc/large&partition=2");
    const bytes = Buffer.from(await fetched.arrayBuffer());
    const wanted = Buffer.concat([large, Buffer.from(version)]);
    expect([fetched.headers.get("content-length"), createHash("sha256").update(bytes).digest("hex")]).toEqual([
      String(wanted.length),
      createHash("sha256").update(wanted).digest("hex"),
    ]);
    const part = await content(of, "path=/etc/large&partition=2", { range: "bytes=1000000-1000099" });
    expect([part.status, Buffer.from(await part.arrayBuffer()).equals(wanted.subarray(1_000_000, 1_000_100))]).toEqual([
      206,
      true,
    ]);
    const none = await content(of, "path=/etc/empty&partition=2");
    expect([none.status, await none.text()]).toEqual([200, ""]);
  }
  const names: string[] = [];
  for (let marker = "0"; marker !== null; ) {
    const { body } = await get(`/ops/backups/${full}/files?path=/many&partition=2&limit=500&marker=${marker}`);
    names.push(...body.files.map(({ name }: { name: string }) => name));
    marker = body.next_marker;
  }
  expect(names.sort()).toEqual(Array.from({ length: 1_200 }, (_, each) => `file-${each}`).sort());
});

it("refuses what cannot be told, with the reason", { timeout: 120_000 }, async () => {
  const of = `/ops/backups/${full}`;
  const refused = async (query: string): Promise<[number, string]> => {
    const { status, body } = await get(`${of}/files?${query}`);
    return [status, (Object.values(body)[0] as { message: string }).message];
  };
  expect(await refused("path=/")).toEqual([
    409,
    "Several partitions have a file system: name one of 1 (vfat), 2 (ext4).",
  ]);
  expect(await refused("path=/etc/nobody&partition=2")).toEqual([404, "There is no /etc/nobody."]);
  expect(await refused("path=/etc/version&partition=2")).toEqual([
    409,
    "/etc/version is not a directory: its type is file.",
  ]);
  expect(await refused("path=/../etc&partition=2")).toEqual([400, "path: must not have .. in it."]);
  expect(await refused("path=/&partition=7")).toEqual([404, "The disk has no partition 7."]);
  expect(await refused("path=/&partition=two")).toEqual([400, expect.stringContaining("partition: ")]);
  expect(await refused("path=/&limit=5000")).toEqual([400, expect.stringContaining("limit: ")]);
  expect(await refused("directory=/")).toEqual([400, expect.stringContaining("directory")]);
  const folder = await content(`backups/${full}`, "path=/etc&partition=2");
  expect([folder.status, await folder.json()]).toEqual([
    409,
    { conflictingRequest: { code: 409, message: "/etc is not a file: its type is directory." } },
  ]);
  expect((await get(`${of}/files/content`)).status).toBe(400);
  const nobody = "00000000-0000-4000-8000-000000000000";
  for (const path of [`/ops/backups/${nobody}`, `/ops/snapshots/${nobody}`, "/ops/backups/x", "/ops/snapshots/x"]) {
    for (const part of ["partitions", "files", "files/content?path=/etc"])
      expect((await get(`${path}/${part}`)).status, `${path}/${part}`).toBe(404);
  }
});

it("tephra lists and fetches files", { timeout: 120_000 }, async () => {
  const env = { TEPHRA_URL: instance.url };
  const tephra = (...args: string[]) => startTephra(args, env).finished;
  const partitions = await tephra("backup", "partitions", full);
  expect(partitions.stdout, partitions.stderr).toMatch(/2 +ext4 +24.0 MiB +- +root +clean/);
  const files = await tephra("backup", "files", full, "/many", "--partition", "2", "--json");
  expect(files.json.files.length, files.stderr).toBe(1_200);
  const table = await tephra("snapshot", "files", "before", "/etc", "--partition", "2");
  expect(table.stdout, table.stderr).toMatch(/file +0644 +\d+ +\d+ +3 +\S+ +version/);
  const path = join(instance.dataDir, "fetched");
  const got = await tephra("backup", "get", full, "/etc/large", "--partition", "2", "-o", path, "--json");
  expect(got.json, got.stderr).toEqual({ file: { path, bytes: large.length + 3 } });
  expect((await readFile(path)).equals(Buffer.concat([large, Buffer.from("one")]))).toBe(true);
  const again = await tephra("backup", "get", full, "/etc/large", "--partition", "2", "-o", path);
  expect(again.status).toBe(1);
  const shown = await tephra("backup", "cat", incremental, "/etc/version", "--partition", "2");
  expect([shown.status, shown.stdout]).toEqual([0, "two"]);
  const missing = await tephra("backup", "get", full, "/etc/nobody", "--partition", "2", "-o", `${path}-2`);
  expect([missing.status, missing.stderr]).toEqual([1, "tephra: There is no /etc/nobody.\n"]);
  await expect(readFile(`${path}-2`)).rejects.toMatchObject({ code: "ENOENT" });
});

it("a snapshot whose files are read is kept until nobody looks any more; a deletion of a backup closes it", {
  timeout: 180_000,
}, async () => {
  expect((await get(`/ops/snapshots/${snapshot}/partitions`)).status).toBe(200);
  const refused = await instance.request("DELETE", `/v3/${project}/snapshots/${snapshot}`);
  expect(refused.status, refused.text).toBe(400);
  await instance.sql("UPDATE image_transfers SET inactivity_timeout = 1 WHERE ended_at IS NULL");
  await journey.settled("snapshots", snapshot, "available");
  await journey.accepted("DELETE", `/v3/${project}/snapshots/${snapshot}`);
  expect((await get(`/ops/backups/${incremental}/partitions`)).status).toBe(200);
  await journey.deleteBackup(incremental);
  expect((await get(`/ops/backups/${incremental}/partitions`)).status).toBe(404);
  await instance.waitFor(
    async () =>
      (
        await instance.sql("SELECT FROM image_transfers WHERE ended_at IS NULL AND stored_backup_id = $1", [
          incremental,
        ])
      ).length === 0,
    { what: "nothing of it is open" },
  );
  await journey.expectQuiet();
});

it("over HTTPS the API and tephra trust the servers of images by Tephra's own authority", {
  timeout: 180_000,
}, async () => {
  await using secure = await startInstance({
    config: {
      tls: { port: await freePort() },
      image_transfers: { port: await freePort() },
      worker: { heartbeat_ms: 500, lease_ms: 4_000 },
    },
  });
  await secure.startTransfer();
  const disk = join(secure.dataDir, "disk");
  await copyFile(await makeVersion("safe"), disk);
  const there = journeyOn(secure);
  const backup = await there.backUp(await there.importVolume(disk));
  expect((await there.get(`/ops/backups/${backup}/partitions`)).partitions).toHaveLength(2);
  const query = "path=/etc/version&partition=2";
  const sent = await fetch(`${secure.url}/ops/backups/${backup}/files/content?${query}`, { redirect: "manual" });
  expect([sent.status, new URL(sent.headers.get("location") ?? "").protocol]).toEqual([307, "https:"]);
  const env = { TEPHRA_URL: secure.url, NODE_EXTRA_CA_CERTS: join(secure.dataDir, "tls/ca.pem") };
  const shown = await startTephra(["backup", "cat", backup, "/etc/version", "--partition", "2"], env).finished;
  expect([shown.status, shown.stdout], shown.stderr).toEqual([0, "safe"]);
});
