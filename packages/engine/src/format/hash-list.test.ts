import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { streamed } from "../run/streamed.ts";
import { encodeHashes, hashListHead, hashListTail, openHashList, type ReadHashList } from "./hash-list.ts";
import { FormatError } from "./json-stream.ts";
import type { BackupLayout } from "./layout.ts";
import { hashSlice, joinSlices } from "./slices.ts";

const layout: BackupLayout = {
  backupId: "b",
  volumeId: "v",
  container: "c",
  prefix: "volume_v_20261120172141_backup_b",
  compression: "zlib",
  level: 6,
  objectBytes: 65536,
  blockBytes: 4096,
  volumeBytes: 0,
  createdAt: "2026-11-20 17:21:41+00:00",
  name: 'a "name" with\n  "sha256s": [\n in it',
  description: "\u0000é😀",
  volumeMeta: null,
  parentId: null,
};

/** Reads from memory and counts the requested bytes. */
function reader(bytes: Uint8Array): { read: ReadHashList; bytesRead: () => number } {
  let bytesRead = 0;
  const read: ReadHashList = async function* (part) {
    const some = part === null ? bytes : bytes.subarray(part.offset, part.offset + part.length);
    bytesRead += some.length;
    yield some;
  };
  return { read, bytesRead: () => bytesRead };
}

async function encode(windows: readonly Uint8Array[]): Promise<Buffer> {
  const slices = windows.map((digests) => streamed(hashSlice([digests])));
  return Buffer.concat(await Array.fromAsync(joinSlices(hashListHead(layout), slices, hashListTail(layout))));
}

test("what is encoded is one JSON document, and every part of it is read back", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 40 }), { maxLength: 5 }), fc.nat(), async (blocks, pick) => {
      const digests = randomBytes(32 * blocks.reduce((sum, count) => sum + count, 0));
      let at = 0;
      const windows = blocks.map((count) => {
        at += count;
        return digests.subarray((at - count) * 32, at * 32);
      });
      const bytes = await encode(windows);
      const document = JSON.parse(bytes.toString("utf8"));
      expect(document.sha256s.join("")).toBe(digests.toString("hex"));
      expect(document.backup_name).toBe(layout.name);
      const list = await openHashList(reader(bytes).read, bytes.length);
      expect(list).toMatchObject({ blockBytes: 4096, count: at });
      const first = at === 0 ? 0 : pick % at;
      expect(Buffer.from(await list.read(first, at - first))).toEqual(digests.subarray(first * 32));
    }),
  );
});

test("a part of a large list is read without reading the rest", async () => {
  const digests = randomBytes(32 * 50_000);
  const bytes = await encode([digests]);
  const { read, bytesRead } = reader(bytes);
  const list = await openHashList(read, bytes.length);
  expect(Buffer.from(await list.read(40_000, 3))).toEqual(digests.subarray(40_000 * 32, 40_003 * 32));
  expect(bytesRead()).toBeLessThan(80_000);
});

test("a list in any other layout of JSON is read too", async () => {
  const digests = randomBytes(32 * 7);
  const document = JSON.parse((await encode([digests])).toString("utf8"));
  for (const text of [JSON.stringify(document), JSON.stringify({ sha256s: document.sha256s, ...document }, null, 4)]) {
    const list = await openHashList(reader(Buffer.from(text)).read, Buffer.byteLength(text));
    expect(list).toMatchObject({ blockBytes: 4096, count: 7 });
    expect(Buffer.from(await list.read(2, 4))).toEqual(digests.subarray(64, 192));
  }
});

test("asking behind the end, and lines that are no hashes, are refused", async () => {
  const bytes = await encode([randomBytes(32 * 4)]);
  const list = await openHashList(reader(bytes).read, bytes.length);
  await expect(list.read(3, 2)).rejects.toBeInstanceOf(FormatError);
  const wrong = Buffer.from(bytes.toString("latin1").replace(/ {4}"[0-9a-f]{2}/, '    "G0'), "latin1");
  await expect((await openHashList(reader(wrong).read, wrong.length)).read(0, 4)).rejects.toBeInstanceOf(FormatError);
  for (const text of ["", "{}", "[]", '{"chunk_size": 0, "sha256s": [], "version": "1.0.0"}', '{"sha256s": [1]}']) {
    await expect(openHashList(reader(Buffer.from(text)).read, text.length)).rejects.toBeInstanceOf(FormatError);
  }
});

test("a line has 72 bytes", () => {
  expect(Buffer.from(encodeHashes(new Uint8Array(64))).toString("latin1")).toBe(
    `    "${"0".repeat(64)}",\n    "${"0".repeat(64)}"`,
  );
  expect(encodeHashes(new Uint8Array(0)).length).toBe(0);
});
