import { hash } from "node:crypto";
import { loadNative, md5MessagesMax, type NativeAddon, type NativePath, pathNumber } from "./native.ts";

/** How the format's two digests are computed. Plain data, so that it can be passed to threads. */
export interface HashingChoice {
  sha256: "openssl" | Exclude<NativePath, "plain">;
  md5: "openssl" | "avx2" | "avx512";
}

/** A contiguous part of a buffer. */
export interface Span {
  offset: number;
  length: number;
}

/** SHA-256 of blocks and MD5 of objects. All implementations give the same result and differ only in speed. */
export interface Hashing {
  readonly choice: HashingChoice;
  /**
   * Writes the SHA-256 of every block of `data` (the last one over its actual bytes), 32 bytes each, to the start of `digests`, and 1 to
   * the start of `zero` for every block that is all zeros.
   */
  hashBlocks(data: Uint8Array, blockBytes: number, digests: Uint8Array, zero: Uint8Array): void;
  /** Hex MD5 of every span. */
  md5(data: Uint8Array, spans: readonly Span[]): string[];
  /** Multi-lane MD5 of several messages that arrive piece by piece; null where it is unavailable or slower. */
  readonly md5InStep: Md5InStep | null;
}

export interface Md5InStep {
  /** Initial digest states: plain bytes, which another thread may continue. */
  start(count: number): Uint8Array<ArrayBuffer>;
  /** Updates every message's state with its next piece. Every piece but a message's last is a multiple of 64 bytes long. */
  update(states: Uint8Array, data: Uint8Array, spans: readonly Span[]): void;
  /** Finalizes digest `index`: `last` is the message's last piece, which update has already taken. Returns hex. */
  finish(states: Uint8Array, index: number, last: Uint8Array, totalBytes: number): string;
}

/** The fallback where there is no alternative. */
export const opensslChoice: HashingChoice = { sha256: "openssl", md5: "openssl" };

/** Throws when the choice is unavailable here: make it on the same machine, see chooseHashing. */
export function openHashing(choice: HashingChoice): Hashing {
  const addon = choice.sha256 === "openssl" && choice.md5 === "openssl" ? null : loadNative();
  if (addon === null) {
    if (choice.sha256 !== "openssl" || choice.md5 !== "openssl") throw new Error("native hashing is not available");
    return { choice, hashBlocks: opensslHashBlocks(), md5: opensslMd5, md5InStep: null };
  }
  const md5InStep = choice.md5 === "openssl" ? null : nativeMd5InStep(addon, choice.md5);
  return {
    choice,
    hashBlocks: choice.sha256 === "openssl" ? opensslHashBlocks() : nativeHashBlocks(addon, choice.sha256),
    md5: choice.md5 === "openssl" ? opensslMd5 : nativeMd5(addon, choice.md5),
    md5InStep,
  };
}

/** Caches zeros of the last block size used, and their digest. */
function zeroBlocks(): (blockBytes: number) => { zeros: Buffer; digest: Buffer } {
  let known = { zeros: Buffer.alloc(0), digest: Buffer.alloc(0) };
  return (blockBytes) => {
    if (known.zeros.length !== blockBytes) {
      const zeros = Buffer.alloc(blockBytes);
      known = { zeros, digest: hash("sha256", zeros, "buffer") };
    }
    return known;
  };
}

function opensslHashBlocks(): Hashing["hashBlocks"] {
  const zeroBlock = zeroBlocks();
  return (data, blockBytes, digests, zero) => {
    const { zeros, digest } = zeroBlock(blockBytes);
    const count = Math.ceil(data.length / blockBytes);
    for (let block = 0; block < count; block++) {
      const bytes = data.subarray(block * blockBytes, Math.min((block + 1) * blockBytes, data.length));
      const isZero = zeros.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;
      zero[block] = isZero ? 1 : 0;
      digests.set(isZero && bytes.length === blockBytes ? digest : hash("sha256", bytes, "buffer"), block * 32);
    }
  };
}

function nativeHashBlocks(addon: NativeAddon, path: NativePath): Hashing["hashBlocks"] {
  const zeroBlock = zeroBlocks();
  const openssl = opensslHashBlocks();
  return (data, blockBytes, digests, zero) => {
    // Lanes advance 64 bytes at a time; the addon's plain path, which takes any length, is slower than OpenSSL.
    if (blockBytes % 64 !== 0 || data.length < blockBytes) openssl(data, blockBytes, digests, zero);
    else addon.hashBlocks(pathNumber(path), data, blockBytes, zeroBlock(blockBytes).digest, digests, zero);
  };
}

function opensslMd5(data: Uint8Array, spans: readonly Span[]): string[] {
  return spans.map(({ offset, length }) => hash("md5", data.subarray(offset, offset + length), "hex"));
}

function nativeMd5(addon: NativeAddon, path: NativePath): Hashing["md5"] {
  const inStep = nativeMd5InStep(addon, path);
  return (data, spans) => {
    if (spans.length < 2) return opensslMd5(data, spans);
    // Messages of similar length are grouped: a lane is idle once its message has ended.
    const order = spans.map((_, index) => index).sort((one, other) => lengthAt(spans, one) - lengthAt(spans, other));
    const digests: string[] = new Array(spans.length);
    for (let first = 0; first < order.length; first += md5MessagesMax) {
      const group = order.slice(first, first + md5MessagesMax);
      const messages = group.map((index) => spans[index] as Span);
      const states = inStep.start(messages.length);
      inStep.update(states, data, messages);
      for (const [at, index] of group.entries()) {
        const { offset, length } = messages[at] as Span;
        digests[index] = inStep.finish(states, at, data.subarray(offset, offset + length), length);
      }
    }
    return digests;
  };
}

function lengthAt(spans: readonly Span[], index: number): number {
  return (spans[index] as Span).length;
}

function nativeMd5InStep(addon: NativeAddon, path: NativePath): Md5InStep {
  const number = pathNumber(path);
  return {
    start(count) {
      const states = new Uint8Array(count * 16);
      addon.md5Start(states);
      return states;
    },
    update(states, data, spans) {
      const offsets = Float64Array.from(spans, ({ offset }) => offset);
      const lengths = Uint32Array.from(spans, ({ length }) => length);
      addon.md5Update(number, states, data, offsets, lengths);
    },
    finish(states, index, last, totalBytes) {
      const digest = Buffer.alloc(16);
      const tail = last.subarray(last.length - (last.length % 64));
      addon.md5Finish(states.subarray(index * 16, index * 16 + 16), tail, totalBytes, digest);
      return digest.toString("hex");
    },
  };
}
