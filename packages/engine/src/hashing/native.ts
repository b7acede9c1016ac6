import { createRequire } from "node:module";

/** The functions of packages/engine/native/addon.c. Wrong arguments throw and touch nothing. */
export interface NativeAddon {
  /** Bit n: this processor can do path n. */
  paths(): number;
  /** `digests` gets 32 bytes per block, `zero` one byte; a short last block is hashed over its actual bytes. */
  hashBlocks(
    path: number,
    data: Uint8Array,
    blockBytes: number,
    zeroDigest: Uint8Array,
    digests: Uint8Array,
    zero: Uint8Array,
  ): void;
  md5Start(states: Uint8Array): void;
  /** Takes the whole 64-byte steps of at most 16 messages into their states, of 16 bytes each. */
  md5Update(path: number, states: Uint8Array, data: Uint8Array, offsets: Float64Array, lengths: Uint32Array): void;
  /** `tail`: the bytes behind the last whole step. */
  md5Finish(state: Uint8Array, tail: Uint8Array, totalBytes: number, digest: Uint8Array): void;
}

/** Messages that md5Update takes at most. */
export const md5MessagesMax = 16;

/** By the numbers that the addon gives them. */
export const nativePaths = ["plain", "avx2", "avx512", "sha"] as const;
export type NativePath = (typeof nativePaths)[number];

/** The addon, or null where it was not built or cannot be loaded here. */
export function loadNative(): NativeAddon | null {
  const folder = import.meta.url.endsWith(".ts") ? "../../dist/native" : "../native";
  try {
    return createRequire(import.meta.url)(`${folder}/hashing.node`) as NativeAddon;
  } catch {
    return null;
  }
}

export function pathNumber(path: NativePath): number {
  return nativePaths.indexOf(path);
}

/** What this processor can do; "plain" is always among it. */
export function availablePaths(addon: NativeAddon): NativePath[] {
  const bits = addon.paths();
  return nativePaths.filter((_, number) => Math.floor(bits / 2 ** number) % 2 === 1);
}
