import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { UnsupportedCompressionError } from "../../packages/engine/src/errors.ts";
import { encodeHashes, hashListHead, hashListTail, openHashList } from "../../packages/engine/src/format/hash-list.ts";
import { FormatError } from "../../packages/engine/src/format/json-stream.ts";
import type { BackupLayout } from "../../packages/engine/src/format/layout.ts";
import { metadataEntry, metadataHead, metadataTail, readMetadata } from "../../packages/engine/src/format/metadata.ts";
import type { ObjectEntry } from "../../packages/engine/src/format/object-entry.ts";
import { times } from "../kit/long.ts";
import { type Random, randomFrom } from "../kit/random.ts";

const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? Math.floor(Math.random() * 2 ** 31));
const inputs = times({ usual: 2000, long: 100_000 });
/** In milliseconds; the long form takes some minutes. */
const timeout = times({ usual: 60_000, long: 1_200_000 });
const prefix =
  "volume_b2cd0a95-23c4-4b6d-9d6c-5a9f5dd0a0d1_20261120172141_az_nova_backup_1f0f4f0c-90ab-4f4e-8d63-6b8ff1b2a0c0";
const layout: BackupLayout = {
  backupId: "1f0f4f0c-90ab-4f4e-8d63-6b8ff1b2a0c0",
  volumeId: "b2cd0a95-23c4-4b6d-9d6c-5a9f5dd0a0d1",
  container: "c",
  prefix,
  compression: "zlib",
  level: 6,
  objectBytes: 65536,
  blockBytes: 32768,
  volumeBytes: 0,
  createdAt: "2026-11-20 17:21:41+00:00",
  name: 'a name with "objects": [ in it',
  description: null,
  volumeMeta: null,
  parentId: null,
};

const pick = <T>(random: Random, of: readonly T[]): T => of[random(of.length)] as T;
const digitsOf = (random: Random, count: number): string =>
  Array.from({ length: count }, () => random(16).toString(16)).join("");

/** A document as Cinder and this engine write it. */
function documentOf(random: Random): string {
  const entries: string[] = [];
  let [number, offset] = [0, 0];
  for (let left = random(8); left > 0; left--) {
    number += 1 + random(3) * random(50_000);
    const length = 1 + random(100_000);
    const compression = pick(random, ["none", "zlib", "zstd", "bz2"] as const);
    entries.push(metadataEntry(prefix, { number, offset, length, md5: digitsOf(random, 32), compression }));
    offset += length + random(2) * random(1000);
  }
  const inside = entries.length === 0 ? "" : `\n${entries.join(",\n")}\n  `;
  return `${metadataHead(layout)}${inside}${metadataTail(layout)}`;
}

const fragments = [
  '"objects": [',
  '  "objects": [\n',
  "\n    {\n",
  ",",
  ",,",
  "]",
  "}",
  "{",
  "[",
  '"',
  "\\",
  "\u0000",
  "é",
  "null",
  "01",
  "-1",
  "1e3",
  "1.0",
  "9007199254740993",
  '"md5": null',
  "-00001",
  "\t",
  " ",
  "\n",
];

/** The document with a few things wrong, or as it is. */
function mutated(random: Random, text: string): string {
  let result = text;
  for (let left = random(4); left > 0; left--) {
    const at = random(result.length + 1);
    const lines = result.split("\n");
    const line = random(lines.length);
    switch (random(8)) {
      case 0:
        result = result.slice(0, at) + result.slice(at + 1 + random(10));
        break;
      case 1:
        result = result.slice(0, at) + pick(random, fragments) + result.slice(at);
        break;
      case 2:
        result = result.slice(0, at) + String.fromCharCode(random(256)) + result.slice(at + 1);
        break;
      case 3:
        result = lines.toSpliced(line, 1).join("\n");
        break;
      case 4:
        result = lines.toSpliced(line, 0, lines[random(lines.length)] as string).join("\n");
        break;
      case 5:
        result = result.replace(/\d+/g, (digits) => (random(12) === 0 ? `${digits}${random(10)}` : digits));
        break;
      case 6:
        // As other writers lay documents out.
        result = pick(random, [
          result.replaceAll("\n", ""),
          result.replaceAll("  ", "\t"),
          result.replaceAll("\n", "\r\n"),
        ]);
        break;
      case 7:
        result = `{"outer": ${result}, ${result.slice(1)}`;
        break;
    }
  }
  return result;
}

/** The text in chunks, cut anywhere. */
async function* cut(random: Random, text: string): AsyncGenerator<Uint8Array> {
  const bytes = Buffer.from(text);
  const chunkMax = pick(random, [1, 7, 100, 3000, 1_000_000]);
  for (let at = 0; at < bytes.length; ) {
    const length = 1 + random(chunkMax);
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

/** What a parser makes of a document: everything in it, or that it is refused. */
async function answerOf(random: Random, text: string, bulk: boolean): Promise<unknown> {
  const entries: ObjectEntry[] = [];
  try {
    const reading = readMetadata(cut(random, text), prefix, async () => 77, { bulk });
    for (let step = await reading.next(); ; step = await reading.next()) {
      if (step.done === true) return { entries, header: step.value };
      entries.push(...step.value);
    }
  } catch (error) {
    // Which of several faults is told depends on how much of the text is looked at together.
    if (error instanceof FormatError || error instanceof UnsupportedCompressionError) return "refused";
    throw error;
  }
}

test(`metadata read in bulk is what the parser makes of it (seed ${seed})`, { timeout }, async () => {
  const random = randomFrom(seed);
  let accepted = 0;
  for (let input = 0; input < inputs; input++) {
    const text = mutated(random, documentOf(random));
    const slow = await answerOf(random, text, false);
    expect(await answerOf(random, text, true), `input ${input}: ${text}`).toEqual(slow);
    if (slow !== "refused") accepted++;
  }
  // Unharmed documents are a fifth of all.
  expect(accepted).toBeGreaterThan(inputs / 10);
});

test("a list of entries that is nested elsewhere in the document is not the list of its objects", async () => {
  const random = randomFrom(1);
  const entry = metadataEntry(prefix, { number: 1, offset: 0, length: 5, md5: "0".repeat(32), compression: "none" });
  const nested = `{\n  "x": {\n  "objects": [\n${entry}\n  ]},${metadataHead(layout).slice(1)}${metadataTail(layout)}`;
  const answer = (await answerOf(random, nested, true)) as { entries: ObjectEntry[] };
  expect(answer.entries).toEqual([]);
  expect(await answerOf(random, nested, false)).toEqual(answer);
});

/** A hash list of runs of few hashes, as holes make them, and everything wrong with it that `harm` does. */
function hashListOf(random: Random): { text: string; digests: Buffer } {
  const known = Array.from({ length: 3 }, (_, index) => createHash("sha256").update(String(index)).digest());
  const runs: Buffer[] = [];
  for (let left = 1 + random(5); left > 0; left--) {
    const run = pick(random, [1, 2, 255, 256, 257, 600]);
    const digest = pick(random, known);
    for (let each = 0; each < run; each++) runs.push(digest);
  }
  const digests = Buffer.concat(runs);
  const lines = Buffer.from(encodeHashes(digests)).toString("latin1");
  return { text: `${hashListHead(layout)}\n${lines}\n  ${hashListTail(layout)}`, digests };
}

async function hashesOf(text: string): Promise<unknown> {
  const bytes = Buffer.from(text, "latin1");
  try {
    const list = await openHashList(async function* (part) {
      yield part === null ? bytes : bytes.subarray(part.offset, part.offset + part.length);
    }, bytes.length);
    return Buffer.from(await list.read(0, list.count)).toString("hex");
  } catch (error) {
    if (error instanceof FormatError) return "refused";
    throw error;
  }
}

/** The same by JSON.parse: what any reader sees in a document. */
function plainHashesOf(text: string): unknown {
  try {
    const { sha256s, chunk_size, version } = JSON.parse(text);
    const right = Array.isArray(sha256s) && Number.isInteger(chunk_size) && version === "1.0.0";
    const all = right && sha256s.every((each: unknown) => typeof each === "string" && /^[0-9a-f]{64}$/.test(each));
    return all ? sha256s.join("") : "refused";
  } catch {
    return "refused";
  }
}

test(`hash lists read by pages are what is in the document (seed ${seed})`, { timeout }, async () => {
  const random = randomFrom(seed);
  for (let input = 0; input < inputs / 10; input++) {
    const { text, digests } = hashListOf(random);
    expect(await hashesOf(text)).toBe(digests.toString("hex"));
    // One byte of the lines changes, as on a medium: always inside what is compared page by page.
    const from = text.indexOf('"sha256s": [') + '"sha256s": ['.length;
    const at = from + random(text.length - from - 60);
    const harmed = `${text.slice(0, at)}${String.fromCharCode(32 + random(90))}${text.slice(at + 1)}`;
    const expected = plainHashesOf(harmed);
    const found = await hashesOf(harmed);
    // Lines of fixed width with a space in place of their newline are JSON, and may be refused: nobody writes them.
    const spaced = /^(?! {4}"[0-9a-f]{64}",?$)./m.test(harmed.slice(from + 1, harmed.lastIndexOf("\n  ],")));
    if (found === "refused" && spaced) continue;
    expect(found, `input ${input}, byte ${at}`).toBe(expected);
  }
});
