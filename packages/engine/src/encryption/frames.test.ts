import { createHash, randomBytes } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { framesMagic } from "../format/encrypted-label.ts";
import { FormatError } from "../format/json-stream.ts";
import { decryptPart, encryptObject, type FrameKeys, frameKeysFor, frameTextBytes, textBytesOf } from "./frames.ts";

const frameBytes = frameTextBytes + 28;
const secret = createHash("sha256").update("data key").digest();
const name = "volume_v_20261120172141_backup_b-00001";
const keys = frameKeysFor(secret, name);

/** Bytes determined by the seed alone. */
function textOf(seedText: string, length: number): Buffer {
  const parts: Buffer[] = [];
  for (let index = 0; index * 32 < length; index++)
    parts.push(createHash("sha256").update(`${seedText} ${index}`).digest());
  return Buffer.concat(parts).subarray(0, length);
}

async function* chunked(text: Buffer, chunkBytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < text.length; at += chunkBytes) yield text.subarray(at, at + chunkBytes);
}

async function encrypt(text: Buffer, chunkBytes = 10_000, under: FrameKeys = keys): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(encryptObject(under, chunked(text, chunkBytes))));
}

async function decrypt(
  stored: Buffer,
  part: { offset: number; length: number | null } = { offset: 0, length: null },
  under: FrameKeys = keys,
): Promise<Buffer> {
  const read = ({ offset, length }: { offset: number; length: number | null }) =>
    chunked(stored.subarray(offset, length === null ? stored.length : offset + length), 7000);
  return Buffer.concat(await Array.fromAsync(decryptPart(under, read, part)));
}

const lengths = fc.oneof(
  fc.integer({ min: 0, max: 3 * frameTextBytes }),
  fc.constantFrom(0, 1, frameTextBytes - 1, frameTextBytes, frameTextBytes + 1, 2 * frameTextBytes),
);

test("a text of any length comes back whole and in every part, and its stored length tells its own", async () => {
  await fc.assert(
    fc.asyncProperty(
      lengths,
      fc.nat(),
      fc.nat(),
      fc.integer({ min: 1, max: 100_000 }),
      async (length, from, to, chunk) => {
        const text = textOf("whole", length);
        const stored = await encrypt(text, chunk);
        expect(stored.subarray(0, 8)).toEqual(framesMagic);
        expect(textBytesOf(stored.length)).toBe(length);
        expect((await decrypt(stored)).equals(text)).toBe(true);
        const offset = from % (length + 2);
        const part = { offset, length: to % (length + frameTextBytes) };
        expect((await decrypt(stored, part)).equals(text.subarray(offset, offset + part.length))).toBe(true);
        expect((await decrypt(stored, { offset, length: null })).equals(text.subarray(offset))).toBe(true);
      },
    ),
    { numRuns: 60 },
  );
});

test("equal text under one name gives equal bytes, however it comes in chunks", async () => {
  const text = textOf("same", 2 * frameTextBytes + 5);
  const stored = await encrypt(text, 1);
  expect((await encrypt(text, 1_000_000)).equals(stored)).toBe(true);
  expect(stored.includes(text.subarray(0, 32))).toBe(false);
  const elsewhere = await encrypt(text, 1000, frameKeysFor(secret, `${name}0`));
  expect(elsewhere.subarray(8, 40).equals(stored.subarray(8, 40))).toBe(false);
});

test("lengths that no object has are told", () => {
  const wrong = [0, 7, 8, 8 + 27, 8 + frameBytes + 27, 8 + frameBytes + 28];
  expect(wrong.map(textBytesOf)).toEqual(wrong.map(() => null));
  expect([8 + 28, 8 + 29, 8 + frameBytes, 8 + frameBytes + 29].map(textBytesOf)).toEqual([
    0,
    1,
    frameTextBytes,
    frameTextBytes + 1,
  ]);
});

describe("what was not written there is refused", () => {
  const text = textOf("refused", 3 * frameTextBytes);
  const frame = (stored: Buffer, index: number): Buffer =>
    stored.subarray(8 + index * frameBytes, 8 + (index + 1) * frameBytes);
  const joined = (...frames: Buffer[]): Buffer => Buffer.concat([framesMagic, ...frames]);

  test.each<{ what: string; change: (stored: Buffer, other: Buffer) => Buffer }>([
    { what: "swapped frames", change: (stored) => joined(frame(stored, 1), frame(stored, 0), frame(stored, 2)) },
    { what: "a frame twice", change: (stored) => joined(frame(stored, 0), frame(stored, 0), frame(stored, 2)) },
    { what: "a frame left out", change: (stored) => joined(frame(stored, 0), frame(stored, 2)) },
    {
      what: "a frame of another object",
      change: (stored, other) => joined(frame(other, 0), frame(stored, 1), frame(stored, 2)),
    },
    { what: "another object", change: (_, other) => other },
    { what: "an end at a frame", change: (stored) => joined(frame(stored, 0), frame(stored, 1)) },
    { what: "an end in a frame", change: (stored) => stored.subarray(0, 8 + 2 * frameBytes + 100) },
    { what: "an end in a nonce", change: (stored) => stored.subarray(0, 8 + 2 * frameBytes + 5) },
    { what: "a truncated tag", change: (stored) => stored.subarray(0, -1) },
    { what: "no frame at all", change: () => framesMagic },
    { what: "nothing at all", change: () => Buffer.alloc(0) },
    { what: "bytes behind the end", change: (stored) => Buffer.concat([stored, Buffer.of(0)]) },
    { what: "another frame behind the end", change: (stored) => Buffer.concat([stored, frame(stored, 2)]) },
    { what: "the text itself", change: () => text },
    { what: "another form", change: (stored) => Buffer.concat([Buffer.from("tephra\0\u0003"), stored.subarray(8)]) },
  ])("$what", async ({ change }) => {
    const other = await encrypt(text, 1000, frameKeysFor(secret, `${name}1`));
    const changed = change(await encrypt(text), other);
    await expect(decrypt(changed)).rejects.toBeInstanceOf(FormatError);
    await expect(decrypt(changed, { offset: 0, length: text.length })).rejects.toBeInstanceOf(FormatError);
  });

  test("any changed bit", async () => {
    const stored = await encrypt(textOf("bits", 1000));
    for (let at = 0; at < stored.length; at += 13) {
      const changed = Buffer.from(stored);
      changed[at] = (changed[at] ?? 0) ^ (1 << (at % 8));
      await expect(decrypt(changed), `byte ${at}`).rejects.toBeInstanceOf(FormatError);
    }
  });

  test("another data key, another name", async () => {
    const stored = await encrypt(text);
    const wrong = [frameKeysFor(randomBytes(32), name), frameKeysFor(secret, `${name}9`)];
    for (const under of wrong) await expect(decrypt(stored, undefined, under)).rejects.toBeInstanceOf(FormatError);
  });

  test("a part at an end that was cut off, where the part before it is still good", async () => {
    const cut = (await encrypt(text)).subarray(0, 8 + 2 * frameBytes);
    expect(await decrypt(cut, { offset: 0, length: frameTextBytes })).toHaveLength(frameTextBytes);
    await expect(decrypt(cut, { offset: frameTextBytes + 10, length: 10 })).rejects.toBeInstanceOf(FormatError);
  });
});

test("two contents under one name share no nonce", async () => {
  const one = await encrypt(textOf("one", 2 * frameTextBytes));
  const other = await encrypt(textOf("other", 2 * frameTextBytes));
  const nonces = [one, other].flatMap((stored) =>
    [0, 1].map((index) => stored.toString("hex", 8 + index * frameBytes, 20 + index * frameBytes)),
  );
  expect(new Set(nonces).size).toBe(4);
});
