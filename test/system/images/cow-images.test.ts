import { execFile } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { finalizeImageTransfer, getImageTransfer } from "@tephra/control";
import { openFileSource, type RunContext, unpackImage, type VolumeTarget } from "@tephra/engine";
import { afterAll, beforeAll, expect, it } from "vitest";
import { publishUpload } from "../../../apps/transfer/src/publish-upload.ts";
import { provideQemuUtils } from "../../../scripts/qemu-utils-package.ts";
import { hostileImage } from "../../format/hostile-images.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { childrenOf } from "../../kit/children-of.ts";
import type { ImageClient } from "../../kit/image-client.ts";
import { type ImageWorld, nothingIsLeft, openImageWorld, owner } from "../../kit/image-world.ts";
import { makeEncrypted } from "../../kit/qemu-utils.ts";
import { randomFrom } from "../../kit/random.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const stack = new AsyncDisposableStack();
const dir = mkdtempSync(join(tmpdir(), "tephra-cow-"));
stack.defer(() => rmSync(dir, { recursive: true, force: true }));
let world: ImageWorld;
beforeAll(async () => {
  const env = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  Object.assign(process.env, env);
  world = await openImageWorld(stack, { env });
}, 600_000);
afterAll(() => stack.disposeAsync());

const run: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const qemuImg = async (...args: string[]): Promise<string> => (await promisify(execFile)("qemu-img", args)).stdout;
const finalize = (id: string) => finalizeImageTransfer(world.database, owner, id);

interface Island {
  offset: number;
  data: Buffer;
}

/** Writes what a guest of the volume would, by an upload of raw bytes. */
async function write(volumeId: string, islands: readonly Island[]): Promise<void> {
  const { id, client } = await world.open({ volumeId, direction: "upload" });
  for (const { offset, data } of islands) expect((await client.put(data, offset)).status).toBe(200);
  await finalize(id);
  await world.reach(id, "finished_success");
}

/** What a guest sees of an image. */
async function rawOf(image: string): Promise<Buffer> {
  await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, `${image}.raw`);
  return readFileSync(`${image}.raw`);
}

/** Sends a file in pieces, in any order, over eight connections; zeros as such. */
async function send(client: ImageClient, bytes: Buffer, random: (below: number) => number): Promise<void> {
  const piece = 200 * KiB;
  const offsets = Array.from({ length: Math.ceil(bytes.length / piece) }, (_, at) => at * piece);
  for (let at = offsets.length - 1; at > 0; at -= 1) {
    const other = random(at + 1);
    [offsets[at], offsets[other]] = [offsets[other] ?? 0, offsets[at] ?? 0];
  }
  await Promise.all(
    offsets.map(async (offset) => {
      const data = bytes.subarray(offset, offset + piece);
      const isZero = data.every((byte) => byte === 0);
      const zero = { op: "zero", offset, size: data.length };
      expect((await (isZero ? client.patch(zero) : client.put(data, offset))).status).toBe(200);
    }),
  );
  expect((await client.patch({ op: "flush" })).status).toBe(200);
}

const restoresIn = (): string[] => readdirSync(world.imagesDir).filter((name) => name.startsWith(".restore-"));

it("a download is a qcow2 image that stands by itself, the same bytes in any order and after kill -9", {
  timeout: 240_000,
}, async () => {
  const random = randomFrom(randomInt(2 ** 31));
  const size = 1200 * MiB + 512;
  const volumeId = await world.addVolume("images", size);
  // In three L2 tables, across a border of them, in the last cluster, which is not whole; a layer below and one above.
  const places = [0, 70 * KiB, 512 * MiB - 32 * KiB, 1100 * MiB + 5, size - 512];
  const below = places.map((offset, at) => ({
    offset,
    data: randomBytesOf(`below ${at}`, Math.min(300 * KiB, size - offset)),
  }));
  await write(volumeId, below);
  await world.backends.images.freeze(volumeId, "11111111-2222-3333-4444-555555555555", run);
  await write(volumeId, [{ offset: 200 * KiB, data: randomBytesOf("above", 100 * KiB) }]);
  const expected = await world.bytesOf("images", volumeId);

  const download = await world.open({ volumeId, format: "cow" });
  const [extent, ...more] = JSON.parse((await download.client.ask("GET", "/extents")).text);
  expect([extent.start, extent.zero, more]).toEqual([0, false, []]);
  const { body } = await download.client.ask("GET");
  expect(body.length).toBe(extent.length);
  expect(body.length).toBeLessThan(4 * MiB);
  const part = async (): Promise<void> => {
    const offset = random(body.length);
    const length = 1 + random(body.length - offset);
    expect((await download.client.get(offset, length)).equals(body.subarray(offset, offset + length))).toBe(true);
  };
  await Promise.all(Array.from({ length: 30 }, part));
  const image = join(dir, "download.qcow2");
  writeFileSync(image, body);
  await qemuImg("check", "-f", "qcow2", image);
  const info = JSON.parse(await qemuImg("info", "--output=json", image));
  expect(info).toMatchObject({ format: "qcow2", "virtual-size": size });
  expect(info).not.toHaveProperty("backing-filename");
  expect((await rawOf(image)).equals(expected)).toBe(true);

  const [{ pid }] = await world.instance.sql("SELECT pid FROM image_servers ORDER BY heartbeat_at DESC");
  process.kill(pid, "SIGKILL");
  await world.instance.startTransfer();
  await part();
  // What would now be another image is not read on.
  await world.instance.sql("UPDATE image_transfers SET layout = 'another' WHERE id = $1", [download.id]);
  const [{ pid: second }] = await world.instance.sql("SELECT pid FROM image_servers ORDER BY heartbeat_at DESC");
  process.kill(second, "SIGKILL");
  await world.instance.startTransfer();
  await world.reach(download.id, "finished_failure");
  await nothingIsLeft(world);
  const [{ pid: third }] = await world.instance.sql("SELECT pid FROM image_servers ORDER BY heartbeat_at DESC");
  expect(childrenOf(third, "qemu-nbd")).toEqual([]);
});

it("an empty disk of one sector, and a full one, are images too", { timeout: 120_000 }, async () => {
  for (const data of [Buffer.alloc(512), randomBytesOf("full", 3 * MiB)]) {
    const volumeId = await world.addVolume("images", data.length);
    if (data[0] !== 0) await write(volumeId, [{ offset: 0, data }]);
    const { id, client } = await world.open({ volumeId, format: "cow" });
    const image = join(dir, `${id}.qcow2`);
    writeFileSync(image, (await client.ask("GET")).body);
    await qemuImg("check", "-f", "qcow2", image);
    expect((await rawOf(image)).equals(data)).toBe(true);
    await finalize(id);
    await world.reach(id, "finished_success");
  }
});

it.each([
  ["as QEMU makes it", []],
  ["of version 2", ["-o", "compat=0.10"]],
  ["compressed", ["-c"]],
  ["with the smallest clusters", ["-o", "cluster_size=512"]],
  ["with the largest clusters", ["-o", "cluster_size=2M,refcount_bits=64"]],
  ["with zstd and external layouts of tables", ["-c", "-o", "compression_type=zstd,extended_l2=on"]],
])("an image %s that is uploaded is what a guest sees afterwards", { timeout: 120_000 }, async (_, options) => {
  const seed = randomInt(2 ** 31);
  process.stderr.write(`images: seed ${seed}\n`);
  const size = 12 * MiB + 512;
  const expected = Buffer.alloc(size);
  randomBytesOf(`${seed} a`, 2 * MiB).copy(expected, 5 * MiB + 77);
  expected.fill("text that can be compressed ", 9 * MiB, 11 * MiB);
  const [raw, image] = [join(dir, `${seed}.raw`), join(dir, `${seed}.qcow2`)];
  writeFileSync(raw, expected);
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", ...options, raw, image);
  // Longer than the image's: the rest is zeros, whatever was there before.
  const volumeId = await world.addVolume("images", size + MiB);
  await write(volumeId, [{ offset: 0, data: randomBytesOf("before", size + MiB) }]);
  const { id, client } = await world.open({ volumeId, direction: "upload", format: null });
  expect((await getImageTransfer(world.database, world.config, owner, id)).format).toBe("cow");
  await send(client, readFileSync(image), randomFrom(seed));
  await finalize(id);
  await world.reach(id, "finished_success");
  expect((await world.bytesOf("images", volumeId)).equals(Buffer.concat([expected, Buffer.alloc(MiB)]))).toBe(true);
  expect(await world.statusOf(volumeId)).toBe("available");
  expect(restoresIn()).toEqual([]);
  await nothingIsLeft(world);
});

it("an upload of an image goes on after kill -9", { timeout: 120_000 }, async () => {
  const expected = randomBytesOf("restart", 4 * MiB);
  const [raw, image] = [join(dir, "restart.raw"), join(dir, "restart.qcow2")];
  writeFileSync(raw, expected);
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, image);
  const bytes = readFileSync(image);
  const volumeId = await world.addVolume("images", expected.length);
  const { id, client } = await world.open({ volumeId, direction: "upload", format: "cow" });
  expect((await client.put(bytes.subarray(0, MiB), 0)).status).toBe(200);
  const [{ pid }] = await world.instance.sql("SELECT pid FROM image_servers ORDER BY heartbeat_at DESC");
  process.kill(pid, "SIGKILL");
  await world.instance.startTransfer();
  expect((await client.put(bytes.subarray(MiB), MiB)).status).toBe(200);
  await finalize(id);
  await world.reach(id, "finished_success");
  expect((await world.bytesOf("images", volumeId)).equals(expected)).toBe(true);
  expect(restoresIn()).toEqual([]);
});

/** Images that are refused, with what is said of each. */
async function hostileOnes(size: number): Promise<[string, Buffer, RegExp][]> {
  const secret = join(dir, "secret");
  writeFileSync(secret, randomBytesOf("secret", MiB));
  const make = async (name: string, ...options: string[]): Promise<Buffer> => {
    const path = join(dir, `${name}.qcow2`);
    await qemuImg("create", "-q", "-f", "qcow2", ...options, path, String(size));
    return readFileSync(path);
  };
  const plain = await make("plain");
  const full = join(dir, "full.raw");
  writeFileSync(full, randomBytesOf("full", size));
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", full, join(dir, "full.qcow2"));
  const changed = (from: Buffer, change: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(from);
    change(bytes);
    return bytes;
  };
  const filled = readFileSync(join(dir, "full.qcow2"));
  const l1At = Number(filled.readBigUInt64BE(40));
  const l2At = Number(filled.readBigUInt64BE(l1At) & 0x00ff_ffff_ffff_fe00n);
  const encrypted = join(dir, "luks.qcow2");
  await makeEncrypted(encrypted, String(size));
  return [
    ["with a backing file", await make("backed", "-b", secret, "-F", "raw"), /builds on another file/],
    ["with a backing file elsewhere", await make("far", "-u", "-b", "nbd://127.0.0.1:1/x", "-F", "raw"), /not a file/],
    [
      "with a data file",
      await make("data", "-o", `data_file=${join(dir, "external")},data_file_raw=on`),
      /external file/,
    ],
    ["encrypted", readFileSync(encrypted), /encrypted/],
    ["longer than the disk", changed(plain, (bytes) => bytes.writeBigUInt64BE(BigInt(size + 512), 24)), /has \d+\.$/],
    ["of no size that can be", changed(plain, (bytes) => bytes.writeBigUInt64BE(2n ** 62n, 24)), /says that it has/],
    ["raw", randomBytesOf("raw", MiB), /no qcow2 image/],
    ["empty", Buffer.alloc(512), /no qcow2 image/],
    ["of a version to come", changed(plain, (bytes) => bytes.writeUInt32BE(4, 4)), /unknown version/],
    ["with a table of 4 GiB", changed(plain, (bytes) => bytes.writeUInt32BE(2 ** 29, 36)), /too large|check/i],
    [
      "with two clusters in one place",
      changed(filled, (bytes) => bytes.copy(bytes, l2At + 8, l2At, l2At + 8)),
      /check/,
    ],
    [
      "with a cluster in its own tables",
      changed(filled, (bytes) => bytes.writeBigUInt64BE(2n ** 63n + BigInt(l1At), l2At)),
      /check/,
    ],
  ];
}

it("a hostile image is refused, the disk is as before, and nothing is left", { timeout: 240_000 }, async () => {
  const size = 2 * MiB;
  const volumeId = await world.addVolume("images", size);
  const before = randomBytesOf("own", size);
  await write(volumeId, [{ offset: 0, data: before }]);
  const files = readdirSync(world.imagesDir).toSorted();
  for (const [what, bytes, why] of await hostileOnes(size)) {
    const { id, client } = await world.open({ volumeId, direction: "upload", format: "cow" });
    expect((await client.put(bytes, 0)).status, what).toBe(200);
    await finalize(id);
    const { failReason } = await world.reach(id, "finished_failure");
    expect(failReason, what).toMatch(why);
    expect(failReason, what).not.toContain(world.imagesDir);
    expect(await world.statusOf(volumeId), what).toBe("available");
    expect((await world.bytesOf("images", volumeId)).equals(before), what).toBe(true);
    expect(readdirSync(world.imagesDir).toSorted(), what).toEqual(files);
  }
  const { id, client } = await world.open({ volumeId, direction: "upload", format: "cow" });
  const behind = { "content-range": `bytes ${size * 20}-${size * 20}/*` };
  expect((await client.ask("PUT", "", { headers: behind, body: "x" })).status).toBe(416);
  await finalize(id);
  await world.reach(id, "finished_failure");
  await nothingIsLeft(world);
});

it("an image that another process has received is published from a copy, and twice as once", async () => {
  const expected = randomBytesOf("taken over", MiB);
  const [raw, image] = [join(dir, "taken.raw"), join(dir, "taken.qcow2")];
  writeFileSync(raw, expected);
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, image);
  const bytes = readFileSync(image);
  const volumeId = await world.addVolume("images", MiB);
  const backend = world.backends.images;
  const draft = `${volumeId}-1`;
  await backend.beginRestore(volumeId, draft, { sizeBytes: bytes.length, keepTail: false });
  await using late = await backend.openRestoreTarget(volumeId, draft);
  await late.write(bytes, 0);
  const row = { volumeId, draft, format: "cow", serverId: "one", draftServerId: "another" };
  const publish = () => publishUpload(backend, row as Parameters<typeof publishUpload>[1], run);
  await publish();
  await late.write(randomBytesOf("late", bytes.length), 0);
  await publish();
  expect((await world.bytesOf("images", volumeId)).equals(expected)).toBe(true);
  expect(restoresIn()).toEqual([]);
});

it("no image of 60 random ones lets anything else be read", { timeout: 240_000 }, async () => {
  const seed = randomInt(2 ** 31);
  process.stderr.write(`hostile images: seed ${seed}\n`);
  const next = randomFrom(seed);
  const random = { below: next } as Parameters<typeof hostileImage>[2];
  const lure = join(dir, "lure");
  const secret = "the secret that no image may show";
  writeFileSync(lure, secret.repeat(40_000));
  const path = join(dir, "seed.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", path, String(MiB));
  const image = { format: "qcow2", bytes: readFileSync(path) } as const;
  let refused = 0;
  for (let round = 0; round < 60; round += 1) {
    const file = join(dir, "hostile.qcow2");
    writeFileSync(
      file,
      hostileImage(image, [lure, `json:{"driver":"raw","file":{"driver":"file","filename":"${lure}"}}`], random),
    );
    const written: Buffer[] = [];
    const target: VolumeTarget = {
      sizeBytes: MiB,
      write: async (data) => void written.push(Buffer.from(data)),
      flush: async () => {},
      [Symbol.asyncDispose]: async () => {},
    };
    await using received = await openFileSource(file);
    await unpackImage(received, target, run).catch(() => {
      refused += 1;
    });
    expect(Buffer.concat(written).includes(secret), `seed ${seed}, round ${round}`).toBe(false);
  }
  expect(refused).toBeGreaterThan(20);
});
