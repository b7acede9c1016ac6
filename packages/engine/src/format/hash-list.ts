import { LRUCache } from "lru-cache";
import { z } from "zod";
import { EncryptionKeyMissingError } from "../errors.ts";
import { framesMagic } from "./encrypted-label.ts";
import { FormatError, parseDocument, streamJson } from "./json-stream.ts";
import type { BackupLayout } from "./layout.ts";
import { pythonString } from "./python-json.ts";

/**
 * `_sha256file`, one line per block, so that the line of block n starts at a fixed offset:
 *
 *     …,\n  "sha256s": [\n
 *         "<64 hex digits>",\n      4 + 66 + 1 + 1 = 72 bytes
 *         "<64 hex digits>"\n  ],\n  "version": "1.0.0", …
 */
export const hashLineBytes = 72;
const digestBytes = 32;
const version = "1.0.0";
/** Bound on where the list starts in Cinder's layout: names and descriptions have at most 255 characters there, of up to 12 bytes each. */
const headBytesMax = 64 * 1024;
const tailBytesMax = 4 * 1024;
const headMarker = '\n  "sha256s": [\n';
const tailMarker = "\n  ],\n";
/** Blocks per read of the list: 2.25 MiB of text. */
export const hashesPerReadMax = 32 * 1024;

/** The text before the first hash. */
export function hashListHead(layout: BackupLayout): string {
  return [
    "{",
    `  "backup_description": ${layout.description === null ? "null" : pythonString(layout.description)},`,
    `  "backup_id": ${pythonString(layout.backupId)},`,
    `  "backup_name": ${layout.name === null ? "null" : pythonString(layout.name)},`,
    `  "chunk_size": ${layout.blockBytes},`,
    `  "created_at": ${pythonString(layout.createdAt)},`,
    '  "sha256s": [',
  ].join("\n");
}

/** The text after the last hash. */
export function hashListTail(layout: BackupLayout): string {
  return ["],", `  "version": "${version}",`, `  "volume_id": ${pythonString(layout.volumeId)}`, "}"].join("\n");
}

const emptyLine = Buffer.from(`    "${"0".repeat(2 * digestBytes)}",\n`);
const digitsStart = 5;
/** Both hex digits of every byte value. */
const digitsOfByte = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0")).join(""));
/** The value of every hex digit; other characters map to a bit that no digit value has. */
const noDigit = 16;
const valueOfDigit = new Uint8Array(256).fill(noDigit);
for (let value = 0; value < 16; value++) valueOfDigit[value.toString(16).charCodeAt(0)] = value;

/** Hashes that are compared at once: of a hole, all of them are one hash. */
const pageHashes = 256;

/**
 * The lines of consecutive hashes (32 bytes each), separated by commas and newlines, without a separator at either end. Encoded byte by
 * byte: a string per line would take four times as long. A page of one hash is one line, copied.
 */
export function encodeHashes(digests: Uint8Array): Uint8Array<ArrayBuffer> {
  const count = digests.length / digestBytes;
  const lines = new Uint8Array(Math.max(0, count * hashLineBytes - 2));
  Buffer.from(lines.buffer).fill(emptyLine);
  for (let first = 0; first < count; first += pageHashes) {
    const end = Math.min(first + pageHashes, count);
    const same = repeats(digests.subarray(first * digestBytes, end * digestBytes), digestBytes);
    for (let index = first; index < (same ? first + 1 : end); index++) encodeLine(digests, lines, index);
    if (same) repeat(lines, first * hashLineBytes, Math.min(end * hashLineBytes, lines.length), hashLineBytes);
  }
  return lines;
}

function encodeLine(digests: Uint8Array, lines: Uint8Array, index: number): void {
  const from = index * digestBytes;
  const at = index * hashLineBytes + digitsStart;
  for (let byte = 0; byte < digestBytes; byte++) {
    const digits = 2 * (digests[from + byte] as number);
    lines[at + 2 * byte] = digitsOfByte[digits] as number;
    lines[at + 2 * byte + 1] = digitsOfByte[digits + 1] as number;
  }
}

/** Whether bytes consist of equal units: whether they are what they are a unit further on. */
function repeats(bytes: Uint8Array, unitBytes: number): boolean {
  if (bytes.length <= unitBytes || bytes[0] !== bytes[unitBytes]) return false;
  return Buffer.compare(bytes.subarray(unitBytes), bytes.subarray(0, bytes.length - unitBytes)) === 0;
}

/** Repeats the unit at `start` up to `end`, which may cut the last one short. */
function repeat(bytes: Uint8Array, start: number, end: number, unitBytes: number): void {
  for (let filled = unitBytes; start + filled < end; filled *= 2) {
    bytes.copyWithin(start + filled, start, Math.min(start + filled, end - filled));
  }
}

/** Reads part of an object; Repository.get bound to one hash list. */
export type ReadHashList = (part: { offset: number; length: number } | null) => AsyncIterable<Uint8Array>;

/** A hash list that can be read in parts. */
export interface HashList {
  blockBytes: number;
  /** Number of blocks of the volume. */
  count: number;
  /** 32 bytes for each of `count` blocks from `first`; FormatError when the list does not contain them. */
  read(first: number, count: number): Promise<Uint8Array<ArrayBuffer>>;
}

/** Blocks read and cached together: 32 MiB of a volume with 4 KiB blocks, 256 MiB with 32 KiB blocks. */
const cachedBlocks = 8192;
/** Most cached parts, of 256 KiB each. */
const cachedPartsMax = 16;

/** The same list for many small reads close to each other: up to 4 MiB of what was read is cached. */
export function cachedHashList(list: HashList): HashList {
  const parts = new LRUCache<number, Promise<Uint8Array>>({ max: cachedPartsMax });
  const partOf = (index: number): Promise<Uint8Array> => {
    const known = parts.get(index);
    if (known !== undefined) return known;
    const first = index * cachedBlocks;
    const part = list.read(first, Math.min(cachedBlocks, list.count - first));
    part.catch(() => parts.delete(index));
    parts.set(index, part);
    return part;
  };
  const read: HashList["read"] = async (first, count) => {
    if (count === 0 || first < 0 || first + count > list.count) return list.read(first, count);
    const digests = new Uint8Array(count * digestBytes);
    for (let done = 0; done < count; ) {
      const index = Math.floor((first + done) / cachedBlocks);
      const from = first + done - index * cachedBlocks;
      const some = (await partOf(index)).subarray(from * digestBytes, (from + count - done) * digestBytes);
      digests.set(some, done * digestBytes);
      done += some.length / digestBytes;
    }
    return digests;
  };
  return { ...list, read };
}

/**
 * Opens a hash list of `sizeBytes`. In Cinder's layout, two small reads suffice and every part is read by its offset; any other layout is
 * parsed as a stream, each time. Throws FormatError, and EncryptionKeyMissingError for an encrypted list read as stored.
 */
export async function openHashList(read: ReadHashList, sizeBytes: number): Promise<HashList> {
  return (await openFixedWidth(read, sizeBytes)) ?? (await openStreamed(read));
}

const headSchema = z.object({
  chunk_size: z
    .int()
    .min(1)
    .max(2 ** 40),
});
/** The document around the hashes, with an empty list in their place. */
const frameSchema = headSchema.extend({ sha256s: z.tuple([]), version: z.literal(version) });

async function openFixedWidth(read: ReadHashList, sizeBytes: number): Promise<HashList | null> {
  const head = await readText(read, { offset: 0, length: Math.min(headBytesMax, sizeBytes) });
  if (head.startsWith(framesMagic.toString("latin1"))) {
    throw new EncryptionKeyMissingError(
      "The backup is encrypted: its repository was opened without master keys, or the backup's own key object is gone.",
    );
  }
  const headEnd = head.indexOf(headMarker);
  const tailStart = Math.max(0, sizeBytes - tailBytesMax);
  const tail = await readText(read, { offset: tailStart, length: sizeBytes - tailStart });
  const listEnd = tail.lastIndexOf(tailMarker);
  if (headEnd < 0 || listEnd < 0) return null;
  const linesStart = headEnd + headMarker.length;
  const linesBytes = tailStart + listEnd - linesStart;
  const count = (linesBytes + 2) / hashLineBytes;
  if (!Number.isInteger(count) || count < 1) return null;
  const around = `${head.slice(0, headEnd)}"sha256s": [],${tail.slice(listEnd + tailMarker.length)}`;
  const frame = frameSchema.safeParse(documentOrNull(Buffer.from(around, "latin1")));
  if (!frame.success) return null;
  return {
    blockBytes: frame.data.chunk_size,
    count,
    read: (first, wanted) => readLines(read, { linesStart, count }, first, wanted),
  };
}

async function readLines(
  read: ReadHashList,
  list: { linesStart: number; count: number },
  first: number,
  wanted: number,
): Promise<Uint8Array<ArrayBuffer>> {
  if (first < 0 || first + wanted > list.count) throw new FormatError(`it has ${list.count} hashes only`);
  const digests = new Uint8Array(wanted * digestBytes);
  for (let done = 0; done < wanted; done += hashesPerReadMax) {
    const some = Math.min(hashesPerReadMax, wanted - done);
    const offset = list.linesStart + (first + done) * hashLineBytes;
    const lines = await readBytes(read, { offset, length: some * hashLineBytes - 2 });
    decodeLines(lines, some, digests.subarray(done * digestBytes, (done + some) * digestBytes));
  }
  return digests;
}

/** Called for every block of a volume; as strict as comparing with the output of `encodeHashes`. A page of equal lines is one line, decoded once. */
function decodeLines(lines: Buffer, count: number, into: Uint8Array): void {
  if (lines.length !== count * hashLineBytes - 2) throw new FormatError("it is shorter than its own layout says");
  for (let first = 0; first < count; first += pageHashes) {
    const end = Math.min(first + pageHashes, count);
    // The last line ends without a separator: compared with whole ones, it would not be equal.
    const same = end < count && repeats(lines.subarray(first * hashLineBytes, end * hashLineBytes), hashLineBytes);
    for (let index = first; index < (same ? first + 1 : end); index++) decodeLine(lines, into, index);
    if (same) repeat(into, first * digestBytes, end * digestBytes, digestBytes);
  }
}

function decodeLine(lines: Buffer, into: Uint8Array, index: number): void {
  const start = index * hashLineBytes;
  const digitsEnd = start + digitsStart + 2 * digestBytes;
  let wrong = 0;
  for (let at = start; at < start + digitsStart; at++)
    wrong |= (lines[at] as number) ^ (emptyLine[at - start] as number);
  for (let at = digitsEnd; at < Math.min(start + hashLineBytes, lines.length); at++) {
    wrong |= (lines[at] as number) ^ (emptyLine[at - start] as number);
  }
  for (let at = start + digitsStart, byte = index * digestBytes; at < digitsEnd; at += 2, byte++) {
    const high = valueOfDigit[lines[at] as number] as number;
    const low = valueOfDigit[lines[at + 1] as number] as number;
    wrong |= (high | low) & noDigit;
    into[byte] = high * 16 + low;
  }
  if (wrong !== 0) throw new FormatError("a line of it is not a SHA-256");
}

async function openStreamed(read: ReadHashList): Promise<HashList> {
  let blockBytes: number | null = null;
  let stated: unknown = null;
  let count = 0;
  for await (const events of streamJson(read(null), { keys: ["chunk_size", "version"], lists: ["sha256s"] })) {
    for (const event of events) {
      if (event.inList) {
        digestOf(event.value);
        count++;
      } else if (event.key === "version") {
        stated = event.value;
      } else {
        const parsed = headSchema.safeParse({ chunk_size: event.value });
        if (parsed.success) blockBytes = parsed.data.chunk_size;
      }
    }
  }
  if (stated !== version) throw new FormatError("its version is not supported");
  if (blockBytes === null) throw new FormatError("its chunk_size is missing or impossible");
  return { blockBytes, count, read: (first, wanted) => readStreamed(read, count, first, wanted) };
}

async function readStreamed(
  read: ReadHashList,
  count: number,
  first: number,
  wanted: number,
): Promise<Uint8Array<ArrayBuffer>> {
  if (first < 0 || first + wanted > count) throw new FormatError(`it has ${count} hashes only`);
  const digests = new Uint8Array(wanted * digestBytes);
  if (wanted === 0) return digests;
  let index = 0;
  for await (const events of streamJson(read(null), { keys: [], lists: ["sha256s"] })) {
    for (const event of events) {
      if (index >= first && index < first + wanted) digests.set(digestOf(event.value), (index - first) * digestBytes);
      index++;
    }
    if (index >= first + wanted) return digests;
  }
  throw new FormatError("it changed while it was read");
}

function digestOf(value: unknown): Uint8Array {
  if (typeof value !== "string" || !/^[0-9a-f]{64}$/.test(value)) {
    throw new FormatError("a line of it is not a SHA-256");
  }
  return Buffer.from(value, "hex");
}

async function readText(read: ReadHashList, part: { offset: number; length: number }): Promise<string> {
  return (await readBytes(read, part)).toString("latin1");
}

async function readBytes(read: ReadHashList, part: { offset: number; length: number }): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  if (part.length > 0) for await (const chunk of read(part)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function documentOrNull(bytes: Uint8Array): unknown {
  try {
    return parseDocument(bytes);
  } catch {
    return null;
  }
}
