import { createHash } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { deflateSync, zstdCompressSync } from "node:zlib";
import { decodeExportRecord, parseRecordText } from "../../../packages/engine/src/catalogue/import-record.ts";
import {
  compressions,
  compressPieces,
  decompressExactly,
  levelDefault,
} from "../../../packages/engine/src/codec/compression.ts";
import { ByteReader } from "../../../packages/engine/src/encryption/byte-reader.ts";
import { unwrapDataKey, wrapDataKey } from "../../../packages/engine/src/encryption/data-key.ts";
import {
  encodeEncryptedMetadata,
  readEncryptedLabel,
  readMetadataFrames,
} from "../../../packages/engine/src/encryption/encrypted-metadata.ts";
import {
  decryptFrames,
  decryptPart,
  encryptFrame,
  frameKeysFor,
} from "../../../packages/engine/src/encryption/frames.ts";
import { parseMasterKeys } from "../../../packages/engine/src/encryption/master-keys.ts";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import { framesMagic } from "../../../packages/engine/src/format/encrypted-label.ts";
import { openHashList } from "../../../packages/engine/src/format/hash-list.ts";
import { FormatError } from "../../../packages/engine/src/format/json-stream.ts";
import { readMetadata } from "../../../packages/engine/src/format/metadata.ts";
import { openRepository } from "../../../packages/engine/src/open-repository.ts";
import { parseMapLine } from "../../../packages/engine/src/restore/map.ts";
import { parseStrictJson, UnusableJsonError } from "../../../packages/format/src/strict-json.ts";
import type { Random } from "./random.ts";

/** A parser that takes what an attacker may have written. */
export interface Fuzzed {
  name: string;
  /** Valid inputs, from which the others are made. */
  seeds: readonly Buffer[];
  /** Parses; resolves or throws one of the errors that are meant for bad input. Anything else is a crash. */
  parse(input: Buffer, random: Random): Promise<void>;
}

const prefix = "volume_d3d5c51a-1656-4716-883f-07d77b790767_20261120172141_backup_106b30de-63b9-4246-aa20-96a6e83a9414";
const lengthMax = 65_536;

async function* chunked(input: Buffer, random: Random): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < input.length; ) {
    const end = at + 1 + random.below(Math.max(1, input.length));
    yield input.subarray(at, end);
    at = end;
  }
}

const entry = (number: number, compression: string): string => `    {
      "${prefix}-${String(number).padStart(5, "0")}": {
        "compression": "${compression}",
        "length": 65536,
        "md5": "${createHash("md5").update(String(number)).digest("hex")}",
        "offset": ${(number - 1) * 65536}
      }
    }`;

const metadata = (entries: readonly string[]): string => `{
  "backup_description": null,
  "backup_id": "106b30de-63b9-4246-aa20-96a6e83a9414",
  "backup_name": "f\\u00fcll",
  "created_at": "2026-11-20 17:21:41+00:00",
  "objects": [
${entries.join(",\n")}
  ],
  "parent_id": null,
  "version": "1.0.0",
  "volume_id": "d3d5c51a-1656-4716-883f-07d77b790767",
  "volume_meta": "{\\"version\\": 2, \\"volume-base-metadata\\": {\\"size\\": 1}}"
}`;

const sha256 = (index: number): string => createHash("sha256").update(String(index)).digest("hex");
const hashList = `{
  "backup_description": null,
  "backup_id": "106b30de-63b9-4246-aa20-96a6e83a9414",
  "backup_name": "full",
  "chunk_size": 4096,
  "created_at": "2026-11-20 17:21:41+00:00",
  "sha256s": [
${[1, 2, 3, 4].map((index) => `    "${sha256(index)}"`).join(",\n")}
  ],
  "version": "1.0.0",
  "volume_id": "d3d5c51a-1656-4716-883f-07d77b790767"
}`;

const record = JSON.stringify({
  id: "106b30de-63b9-4246-aa20-96a6e83a9414",
  container: "10/6b/106b30de-63b9-4246-aa20-96a6e83a9414",
  service_metadata: prefix,
  size: 1,
  object_count: 5,
  display_name: "full",
  display_description: null,
  parent_id: null,
  metadata: { key: "value" },
});
const base64 = (text: string): string => Buffer.from(text).toString("base64");

const repetitive = Buffer.alloc(lengthMax, "text that repeats itself, ");
const storedSeeds = (["zlib", "bz2", "zstd"] as const).map((label) => {
  const encoding = { compression: label, level: levelDefault(label), zlibEncoder: "zlib" as const };
  const pieces = compressPieces(encoding, repetitive, () => false);
  return Buffer.concat(pieces ?? []);
});

const dataKey = createHash("sha256").update("data key").digest();
const master = { version: "1", secret: createHash("sha256").update("master key").digest() };
const frameKeys = frameKeysFor(dataKey, `${prefix}-00001`);
const frameText = Buffer.alloc(500, "what is in a frame ");
const frame = Buffer.concat(encryptFrame(frameKeys, { index: 0, last: true }, frameText));
const encryptedMetadata = Buffer.concat(
  await Array.fromAsync(
    encodeEncryptedMetadata(
      (async function* () {
        yield frame;
      })(),
      { backupId: "b", volumeId: "v", parentId: null, createdAt: null, volumeBytes: 65536, objects: 1 },
    ),
  ),
);

const compact = (text: string): Buffer => Buffer.from(JSON.stringify(JSON.parse(text)));

export const parsers: readonly Fuzzed[] = [
  {
    name: "metadata",
    seeds: [
      Buffer.from(metadata([entry(1, "zlib"), entry(2, "none"), entry(3, "bz2")])),
      Buffer.from(metadata([])),
      compact(metadata([entry(1, "zstd"), entry(100_000, "off")])),
    ],
    async parse(input, random) {
      for await (const entries of readMetadata(
        chunked(input, random),
        prefix,
        async () => 1 + random.below(lengthMax),
      )) {
        let end = 0;
        for (const { offset, length, number } of entries) {
          if (offset < end || length < 1 || !Number.isSafeInteger(offset + length) || number < 0)
            throw new Error("wrong");
          end = offset + length;
        }
      }
    },
  },
  {
    name: "strict JSON",
    seeds: [Buffer.from(metadata([entry(1, "zlib")])), compact(metadata([entry(1, "zlib")])), Buffer.from(record)],
    async parse(input) {
      // What is accepted is what every other reader takes it for.
      const read = parseStrictJson(input);
      if (!isDeepStrictEqual(read, JSON.parse(input.toString("utf8")))) throw new Error("read otherwise");
    },
  },
  {
    name: "hash list",
    seeds: [Buffer.from(hashList), compact(hashList), Buffer.from(hashList.replace(/\n {4}"[^\]]*/, ""))],
    async parse(input, random) {
      const list = await openHashList((part) => {
        const end = part === null ? input.length : part.offset + part.length;
        return chunked(input.subarray(part?.offset ?? 0, end), random);
      }, input.length);
      if (list.count > input.length) throw new Error("more hashes than bytes");
      const first = random.below(list.count + 2);
      await list.read(first, random.below(list.count + 2));
    },
  },
  {
    name: "encrypted metadata",
    seeds: [encryptedMetadata, Buffer.from(JSON.stringify(JSON.parse(encryptedMetadata.toString("utf8"))))],
    async parse(input, random) {
      const label = await readEncryptedLabel(chunked(input, random));
      if (label !== null && (label.objects < 0 || label.volumeBytes < 0)) throw new Error("wrong");
      const frames = new ByteReader(readMetadataFrames(chunked(input, random)));
      for await (const text of decryptFrames(frameKeys, frames)) {
        if (!frameText.equals(text)) throw new Error("what was not written is authentic");
      }
    },
  },
  {
    name: "encrypted object",
    seeds: [Buffer.concat([framesMagic, frame])],
    async parse(input, random) {
      const read = (part: { offset: number; length: number | null }) => {
        const end = part.length === null ? input.length : part.offset + part.length;
        return chunked(input.subarray(part.offset, end), random);
      };
      for await (const text of decryptPart(frameKeys, read, { offset: 0, length: null })) {
        if (!frameText.equals(text)) throw new Error("what was not written is authentic");
      }
    },
  },
  {
    name: "wrapped data key",
    seeds: [Buffer.from(wrapDataKey(dataKey, master, prefix))],
    async parse(input) {
      const unwrapped = unwrapDataKey(input, master, prefix);
      if (unwrapped !== null && !unwrapped.equals(dataKey)) throw new Error("another key");
    },
  },
  {
    name: "master keys",
    seeds: [Buffer.from(`# keys\n1:${dataKey.toString("base64")}\n2:${master.secret.toString("base64")}\n`)],
    async parse(input) {
      parseMasterKeys(input.toString("utf8"), "It");
    },
  },
  {
    name: "export record",
    seeds: [
      Buffer.from(base64(record)),
      Buffer.from(JSON.stringify({ backup_service: "cinder.backup.drivers.posix", backup_url: base64(record) })),
      Buffer.from(record),
    ],
    async parse(input, random) {
      // Half of the inputs are changed below the base64, where the interesting parts are.
      const text = random.below(2) === 0 ? input.toString("utf8") : input.toString("base64");
      const decoded = decodeExportRecord(parseRecordText(text).url);
      if (decoded.container?.split("/").includes("..") || !decoded.prefix.startsWith("volume_"))
        throw new Error("wrong");
    },
  },
  {
    name: "repository URL",
    seeds: [
      "posix:/srv/backups",
      "posix:relative/folder",
      "s3://bucket?endpoint=http://127.0.0.1:1&region=us-east-1&path_style=true",
      "swift:container?auth=http://127.0.0.1:1/auth/v1.0&user=a:b&key=c",
      "nfs:server:/share?options=vers=4",
    ].map((url) => Buffer.from(url)),
    async parse(input) {
      await using _ = await openRepository(input.toString("utf8"));
    },
  },
  {
    name: "codec input",
    seeds: [...storedSeeds, deflateSync(Buffer.alloc(4_000_000)), zstdCompressSync(Buffer.alloc(20_000_000))],
    async parse(input, random) {
      const label = compressions[random.below(compressions.length)] as (typeof compressions)[number];
      const length = random.below(2) === 0 ? lengthMax : 1 + random.below(lengthMax);
      const decoded = decompressExactly(label, new Uint8Array(input), length);
      if (decoded instanceof Uint8Array && decoded.length !== length) throw new Error("not the declared length");
    },
  },
  {
    name: "map line",
    seeds: [
      [0, 1, 0, 65536, "zlib", "2a6bdd1d3574253ba1f51631608ba8fa", [[0, 4096]]],
      [3, 100_000, 65536, 4096, "none", null, [[65536, 69632]]],
    ].map((line) => Buffer.from(JSON.stringify(line))),
    async parse(input) {
      parseMapLine(input.toString("latin1"));
    },
  },
];

/** Whether an error is one that bad input is answered with. */
export function isAnswer(error: unknown): boolean {
  return error instanceof FormatError || error instanceof EngineError || error instanceof UnusableJsonError;
}
