import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { unwrapDataKey, wrapDataKey } from "../encryption/data-key.ts";
import { encodeEncryptedMetadata, readEncryptedLabel, readMetadataFrames } from "../encryption/encrypted-metadata.ts";
import { openHashList } from "../format/hash-list.ts";
import { FormatError, streamJson } from "../format/json-stream.ts";
import { readMetadata } from "../format/metadata.ts";
import { statedVolumeBytes } from "../format/volume-meta.ts";
import { decodeExportRecord, parseRecordText } from "./import-record.ts";

const prefix = "volume_v_20261120172141_backup_b";
const md5 = "2a6bdd1d3574253ba1f51631608ba8fa";
const body = `"compression": "zlib", "length": 65536, "md5": "${md5}", "offset": 0`;
const entry = (inner: string): string => `{"${prefix}-00001": {${inner}}}`;
const metadata = (objects: string, more = ""): string =>
  `{"backup_id": "b", ${objects} "parent_id": null, "version": "1.0.0", "volume_id": "v", "volume_meta": null${more}}`;

async function* streamed(text: string): AsyncGenerator<Uint8Array> {
  yield Buffer.from(text);
}

const readMetadataText = async (text: string): Promise<unknown[]> =>
  (await Array.fromAsync(readMetadata(streamed(text), prefix, async () => 1))).flat();

test("metadata that says nothing twice is read", async () => {
  expect(await readMetadataText(metadata(`"objects": [${entry(body)}],`))).toHaveLength(1);
});

test.each([
  ["objects", metadata(`"objects": [${entry(body)}], "objects": [],`)],
  ["length", metadata(`"objects": [${entry(`${body}, "length": 1`)}],`)],
  ["length, spelled otherwise", metadata(`"objects": [${entry(`${body}, "len\\u0067th": 1`)}],`)],
  ["the name of an object", metadata(`"objects": [{"${prefix}-00001": {${body}}, "${prefix}-00001": {${body}}}],`)],
  ["version", metadata('"objects": [],', ', "version": "1.0.0"')],
  ["a key that nobody reads", metadata('"objects": [],', ', "x": {"y": [{"z": 1, "z": 1}]}')],
])("metadata with %s twice is damaged", async (_, text) => {
  await expect(readMetadataText(text)).rejects.toThrow(FormatError);
});

const sha256 = createHash("sha256").digest("hex");
const hashList = (before: string, behind: string): string =>
  `{\n  "chunk_size": 4096,${before}\n  "sha256s": [\n    "${sha256}"\n  ],\n  ${behind}"version": "1.0.0"\n}`;

async function openHashes(text: string): Promise<{ count: number; blockBytes: number }> {
  const bytes = Buffer.from(text);
  return openHashList(async function* (part) {
    yield part === null ? bytes : bytes.subarray(part.offset, part.offset + part.length);
  }, bytes.length);
}

test("a hash list that says nothing twice is read", async () => {
  expect(await openHashes(hashList("", '"backup_id": null, '))).toMatchObject({ count: 1, blockBytes: 4096 });
});

test.each([
  ["chunk_size before the list", hashList('\n  "chunk_size": 512,', "")],
  ["chunk_size behind the list", hashList("", '"chunk_size": 512, ')],
  ["sha256s behind the list", hashList("", '"sha256s": [], ')],
  ["sha256s before the list", hashList('\n  "sha256s": [],', "")],
])("a hash list with %s is damaged", async (_, text) => {
  await expect(openHashes(text)).rejects.toThrow(FormatError);
});

async function encryptedDocument(): Promise<string> {
  const label = { backupId: "b", volumeId: "v", parentId: null, createdAt: null, volumeBytes: 65536, objects: 1 };
  const chunks = await Array.fromAsync(encodeEncryptedMetadata(streamed("frame"), label));
  return Buffer.concat(chunks).toString("utf8");
}

test("an encrypted backup's label and frames with a key twice are none", async () => {
  const text = await encryptedDocument();
  expect(await readEncryptedLabel(streamed(text))).toMatchObject({ volumeBytes: 65536 });
  for (const twin of ['"volume_bytes": 1', '"encrypted": ["AAAA"]', '"x": {"y": 1, "y": 1}']) {
    const wrong = text.replace(/\n\}$/, `,\n  ${twin}\n}`);
    expect(await readEncryptedLabel(streamed(wrong))).toBeNull();
    await expect(Array.fromAsync(readMetadataFrames(streamed(wrong)))).rejects.toThrow(FormatError);
  }
});

test("a wrapped data key with a key twice is none", () => {
  const master = { version: "1", secret: Buffer.alloc(32, 7) };
  const object = Buffer.from(wrapDataKey(Buffer.alloc(32, 9), master, "name"));
  expect(unwrapDataKey(object, master, "name")).not.toBeNull();
  const twice = Buffer.from(object.toString("utf8").replace("{", '{"tephra_key":1,'));
  expect(unwrapDataKey(twice, master, "name")).toBeNull();
});

const record = { id: "b", container: "c", service_metadata: prefix, size: 1, object_count: 1 };
const recordText = `${JSON.stringify({ ...record, display_name: null, display_description: null }).slice(0, -1)}`;
const base64 = (text: string): string => Buffer.from(text).toString("base64");

test("an export record with a key twice is refused, and so is what it is wrapped in", () => {
  expect(decodeExportRecord(base64(`${recordText}}`)).container).toBe("c");
  for (const twin of ['"container": "d"', '"metadata": {"k": "1", "k": "2"}', '"x": [{"y": 1, "y": 1}]']) {
    expect(() => decodeExportRecord(base64(`${recordText}, ${twin}}`))).toThrow("twice");
  }
  const wrapped = `{"backup_service": "s", "backup_url": "${base64(`${recordText}}`)}"`;
  expect(parseRecordText(`${wrapped}}`).service).toBe("s");
  expect(() => parseRecordText(`${wrapped}, "backup_service": "t"}`)).toThrow("twice");
});

test("what a volume_meta with a key twice says about the volume is not believed", () => {
  const columns = '{"version": 2, "volume-base-metadata": {"size": 1, "tephra_bytes": 65536';
  expect(statedVolumeBytes(`${columns}}}`)).toBe(65536);
  expect(statedVolumeBytes(`${columns}, "tephra_bytes": 1}}`)).toBeNull();
  expect(statedVolumeBytes(`${columns}}, "volume-base-metadata": {}}`)).toBeNull();
});

test("a megabyte between two values is too long, whatever it is", async () => {
  for (const filler of [" ".repeat(2 ** 20 + 70_000), `"x": "${"y".repeat(2 ** 20 + 70_000)}", `]) {
    const events = streamJson(streamed(`{${filler}"a": 1}`), { keys: ["a"], lists: [] });
    await expect(Array.fromAsync(events)).rejects.toThrow("too long");
  }
});
