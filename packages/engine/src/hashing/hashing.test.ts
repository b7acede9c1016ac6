import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { chooseHashing } from "./choose-hashing.ts";
import { type Hashing, type HashingChoice, openHashing, opensslChoice, type Span } from "./hashing.ts";
import { availablePaths, loadNative } from "./native.ts";

const addon = loadNative();
const paths = addon === null ? [] : availablePaths(addon);
const md5Paths = paths.filter((path) => path === "avx2" || path === "avx512");
const choices: HashingChoice[] = [
  opensslChoice,
  ...paths.filter((path) => path !== "plain").map((sha256): HashingChoice => ({ sha256, md5: "openssl" })),
  ...md5Paths.map((md5): HashingChoice => ({ sha256: "openssl", md5 })),
];

const digest = (algorithm: string, bytes: Uint8Array): string => createHash(algorithm).update(bytes).digest("hex");

/** Random bytes with blocks of zeros among them. */
const volumes = fc
  .tuple(fc.integer({ min: 512, max: 4096 }), fc.integer({ min: 1, max: 200_000 }), fc.integer(), fc.boolean())
  .map(([blockBytes, length, seed, aligned]) => {
    const block = aligned ? blockBytes - (blockBytes % 64) : blockBytes;
    const data = new Uint8Array(length);
    let state = seed | 1;
    for (let at = 0; at < length; at++) {
      state = (Math.imul(state, 1103515245) + 12345) | 0;
      data[at] = Math.floor(at / block) % 3 === Math.abs(seed % 3) ? 0 : state >>> 16;
    }
    return { data, blockBytes: block };
  });

function expectBlocks(hashing: Hashing, data: Uint8Array, blockBytes: number): void {
  const count = Math.ceil(data.length / blockBytes);
  const digests = Buffer.alloc(count * 32);
  const zero = new Uint8Array(count).fill(9);
  hashing.hashBlocks(data, blockBytes, digests, zero);
  for (let block = 0; block < count; block++) {
    const bytes = data.subarray(block * blockBytes, (block + 1) * blockBytes);
    expect(digests.toString("hex", block * 32, block * 32 + 32)).toBe(digest("sha256", bytes));
    expect(zero[block]).toBe(bytes.every((byte) => byte === 0) ? 1 : 0);
  }
}

describe.each(choices)("hashing with sha256 $sha256 and md5 $md5", (choice) => {
  const hashing = openHashing(choice);

  test("gives the SHA-256 of every block and finds zeros, whatever the sizes", () => {
    fc.assert(
      fc.property(volumes, ({ data, blockBytes }) => expectBlocks(hashing, data, blockBytes)),
      { numRuns: 40 },
    );
  });

  test("gives the MD5 of any number of spans of any length", () => {
    const lengths = fc.array(fc.integer({ min: 0, max: 3000 }), { maxLength: 40 });
    fc.assert(
      fc.property(volumes, lengths, ({ data }, wanted) => {
        const spans: Span[] = wanted.map((length, index) => {
          const offset = (index * 977) % data.length;
          return { offset, length: Math.min(length, data.length - offset) };
        });
        const expected = spans.map(({ offset, length }) => digest("md5", data.subarray(offset, offset + length)));
        expect(hashing.md5(data, spans)).toEqual(expected);
      }),
      { numRuns: 60 },
    );
  });

  test("gives the MD5 of messages that come piece by piece and end at different times", () => {
    const { md5InStep } = hashing;
    if (md5InStep === null) return;
    const lengths = fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 16 });
    fc.assert(
      fc.property(volumes, lengths, ({ data }, wanted) => {
        const messages = wanted.map((length, index) => data.subarray((index * 13) % data.length).subarray(0, length));
        const states = md5InStep.start(messages.length);
        const digests: string[] = [];
        const longest = Math.max(...messages.map(({ length }) => length));
        for (let at = 0; at < longest; at += 640) {
          const pieces = messages.map((message) => message.subarray(at, at + 640));
          const joined = Buffer.concat(pieces);
          let offset = 0;
          const spans = pieces.map(({ length }): Span => {
            offset += length;
            return { offset: offset - length, length };
          });
          md5InStep.update(states, joined, spans);
          for (const [index, piece] of pieces.entries()) {
            const total = (messages[index] as Uint8Array).length;
            if (piece.length > 0 && at + piece.length === total) {
              digests[index] = md5InStep.finish(states, index, piece, total);
            }
          }
        }
        expect(digests).toEqual(messages.map((message) => digest("md5", message)));
      }),
      { numRuns: 60 },
    );
  });
});

describe("choosing", () => {
  test("takes something that works here", () => {
    expectBlocks(openHashing(chooseHashing()), new Uint8Array(100_000).fill(7), 4096);
  });

  test("can be forced to OpenSSL", () => {
    expect(chooseHashing("openssl")).toEqual(opensslChoice);
  });

  test.skipIf(md5Paths.length === 0)("can be forced to native code", () => {
    const choice = chooseHashing("native");
    expect(choice.sha256).not.toBe("openssl");
    expect(choice.md5).not.toBe("openssl");
  });
});

describe.skipIf(addon === null)("the addon", () => {
  test("refuses wrong arguments instead of touching memory", () => {
    const bytes = (length: number): Uint8Array => new Uint8Array(length);
    expect(() => addon?.hashBlocks(0, bytes(100), 10, bytes(32), bytes(319), bytes(10))).toThrow(RangeError);
    expect(() => addon?.hashBlocks(0, bytes(100), 0, bytes(32), bytes(320), bytes(10))).toThrow(RangeError);
    expect(() => addon?.hashBlocks(7, bytes(100), 10, bytes(32), bytes(320), bytes(10))).toThrow(RangeError);
    expect(() => addon?.md5Update(0, bytes(16), bytes(9), Float64Array.of(5), Uint32Array.of(5))).toThrow(RangeError);
    expect(() => addon?.md5Update(0, bytes(16), bytes(9), Float64Array.of(-1), Uint32Array.of(5))).toThrow(RangeError);
    expect(() => addon?.md5Update(0, bytes(8), bytes(9), Float64Array.of(0), Uint32Array.of(5))).toThrow(RangeError);
    expect(() => addon?.md5Finish(bytes(16), bytes(64), 64, bytes(16))).toThrow(RangeError);
  });
});
