import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createSecretKey,
  hash,
  hkdfSync,
  type KeyObject,
} from "node:crypto";
import { framesMagic } from "../format/encrypted-label.ts";
import { FormatError } from "../format/json-stream.ts";
import { ByteReader } from "./byte-reader.ts";

/**
 * An encrypted object, cut into frames so that it can be read and written in bounded memory and in parts:
 *
 *     "tephra" 0x00 0x01 | frame | frame | …          8 bytes, then frames of 65,564 bytes; the last one may be shorter
 *
 *     frame = nonce (12) | ciphertext (as long as the plaintext: 65,536; the last one 0 to 65,536) | tag (16)
 *
 * AES-256-GCM. The keys belong to one name, and the additional data of a frame is its index (64 bits, big-endian) and a byte that is 1
 * for the last frame: no frame is valid at another place or in another object, and truncation is detected. An empty object has one empty
 * frame; otherwise no frame is empty.
 *
 * The nonce is the start of HMAC-SHA-256(nonce key, additional data | SHA-256 of the plaintext). So equal plaintext gives equal bytes,
 * which lets a second attempt adopt what the first has stored, and different plaintext under the same name never reuses a nonce (0007).
 */
export const frameTextBytes = 64 * 1024;

const nonceBytes = 12;

const tagBytes = 16;

const overheadBytes = nonceBytes + tagBytes;

const frameBytes = frameTextBytes + overheadBytes;

/** About 1 MiB: every chunk is a separate write. */
const framesPerChunk = 16;

/** The two keys of one name. */
export interface FrameKeys {
  cipher: KeyObject;
  nonce: KeyObject;
}

export interface FramePlace {
  index: number;
  last: boolean;
}

/** The keys for one name under a secret of 32 bytes. */
export function frameKeysFor(secret: Uint8Array, name: string): FrameKeys {
  const both = Buffer.from(hkdfSync("sha256", secret, "", `tephra frames 1\0${name}`, 64));
  return { cipher: createSecretKey(both.subarray(0, 32)), nonce: createSecretKey(both.subarray(32)) };
}

/** The nonce of a frame whose plaintext has this SHA-256. */
export function frameNonce(keys: FrameKeys, place: FramePlace, textDigest: Uint8Array): Buffer {
  return createHmac("sha256", keys.nonce).update(placeBytes(place)).update(textDigest).digest().subarray(0, nonceBytes);
}

/** A frame as its three pieces. */
export function encryptFrame(keys: FrameKeys, place: FramePlace, text: Uint8Array): Buffer[] {
  const nonce = frameNonce(keys, place, hash("sha256", text, "buffer"));
  const cipher = createCipheriv("aes-256-gcm", keys.cipher, nonce).setAAD(placeBytes(place));
  return [nonce, cipher.update(text), cipher.final(), cipher.getAuthTag()];
}

/** FormatError unless the frame is unmodified and belongs at this place under these keys. */
export function decryptFrame(keys: FrameKeys, place: FramePlace, frame: Uint8Array): Uint8Array<ArrayBuffer> {
  if (frame.length < overheadBytes) throw new FormatError("it breaks off in the middle of an encrypted frame");
  const tagAt = frame.length - tagBytes;
  const decipher = createDecipheriv("aes-256-gcm", keys.cipher, frame.subarray(0, nonceBytes), {
    authTagLength: tagBytes,
  });
  decipher.setAAD(placeBytes(place)).setAuthTag(frame.subarray(tagAt));
  const text = decipher.update(frame.subarray(nonceBytes, tagAt));
  try {
    decipher.final();
  } catch (cause) {
    throw new FormatError(`its encrypted frame ${place.index} is not what was written there`, { cause });
  }
  return text;
}

/** The plaintext in frames, `perChunk` of them per chunk. A chunk of the body is no longer used once the next one is requested. */
export async function* encryptFrames(
  keys: FrameKeys,
  body: Uint8Array | AsyncIterable<Uint8Array>,
  perChunk: number = framesPerChunk,
): AsyncGenerator<Buffer> {
  const reader = new ByteReader(body);
  try {
    let pieces: Buffer[] = [];
    for (let index = 0, last = false; !last; index++) {
      const text = await reader.take(frameTextBytes);
      last = await reader.atEnd();
      pieces.push(...encryptFrame(keys, { index, last }, text));
      if (!last && (index + 1) % perChunk !== 0) continue;
      yield Buffer.concat(pieces);
      pieces = [];
    }
  } finally {
    await reader.close();
  }
}

/** An object in its stored form. */
export async function* encryptObject(
  keys: FrameKeys,
  body: Uint8Array | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  yield framesMagic;
  yield* encryptFrames(keys, body);
}

/**
 * Decrypts the frames remaining in a reader, starting with frame `first`: at most `count`, and the object's last frame must be marked as
 * such. FormatError.
 */
export async function* decryptFrames(
  keys: FrameKeys,
  reader: ByteReader,
  { first, count }: { first: number; count: number } = { first: 0, count: Number.POSITIVE_INFINITY },
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  for (let index = first, last = false; !last && index < first + count; index++) {
    const frame = await reader.take(frameBytes);
    last = await reader.atEnd();
    yield decryptFrame(keys, { index, last }, frame);
  }
}

/** Reads stored bytes from `offset`: `length` of them, or to the end when null. */
export type ReadStored = (part: { offset: number; length: number | null }) => AsyncIterable<Uint8Array>;

/** Decrypts part of an object; a part that extends past the end is truncated. `length` null: to the end. FormatError. */
export async function* decryptPart(
  keys: FrameKeys,
  read: ReadStored,
  part: { offset: number; length: number | null },
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const end = part.length === null ? Number.POSITIVE_INFINITY : part.offset + part.length;
  if (end <= part.offset) return;
  const first = Math.floor(part.offset / frameTextBytes);
  const count = Math.ceil(end / frameTextBytes) - first;
  const offset = first === 0 ? 0 : framesMagic.length + first * frameBytes;
  // One byte more than the frames: a following byte proves that the last of them is not the object's last.
  const length = framesMagic.length + (first + count) * frameBytes + 1 - offset;
  const reader = new ByteReader(read({ offset, length: Number.isFinite(length) ? length : null }));
  try {
    if (first === 0) await expectMagic(reader);
    else if (await reader.atEnd()) return;
    let start = first * frameTextBytes;
    for await (const text of decryptFrames(keys, reader, { first, count })) {
      const wanted = text.subarray(Math.max(0, part.offset - start), end - start);
      if (wanted.length > 0) yield wanted;
      start += frameTextBytes;
    }
  } finally {
    await reader.close();
  }
}

async function expectMagic(reader: ByteReader): Promise<void> {
  if (!framesMagic.equals(await reader.take(framesMagic.length))) {
    throw new FormatError("it is not an encrypted object, as all of its backup are");
  }
}

/** Plaintext length of an object of this stored size; null when no object has that size. Unauthenticated until decrypted. */
export function textBytesOf(storedBytes: number): number | null {
  const bytes = storedBytes - framesMagic.length;
  const whole = Math.floor(bytes / frameBytes);
  const rest = bytes % frameBytes;
  if (bytes < overheadBytes) return null;
  if (rest === 0) return whole * frameTextBytes;
  const emptyLast = rest === overheadBytes && whole > 0;
  return rest < overheadBytes || emptyLast ? null : whole * frameTextBytes + rest - overheadBytes;
}

function placeBytes({ index, last }: FramePlace): Buffer {
  const bytes = Buffer.alloc(9);
  bytes.writeBigUInt64BE(BigInt(index));
  bytes[8] = last ? 1 : 0;
  return bytes;
}
