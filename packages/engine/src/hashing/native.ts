import { createRequire } from "node:module";

/** The functions of packages/engine/native/addon.c. Invalid arguments throw and modify nothing. */
export interface NativeAddon {
  /** Bit n is set when this processor supports path n. */
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
  /** Feeds the whole 64-byte blocks of at most 16 messages into their states, of 16 bytes each. */
  md5Update(path: number, states: Uint8Array, data: Uint8Array, offsets: Float64Array, lengths: Uint32Array): void;
  /** `tail`: the bytes after the last whole 64-byte block. */
  md5Finish(state: Uint8Array, tail: Uint8Array, totalBytes: number, digest: Uint8Array): void;
}

/** Most messages per call of md5Update. */
export const md5MessagesMax = 16;

/** Indexed by the addon's path numbers. */
export const nativePaths = ["plain", "avx2", "avx512", "sha"] as const;
export type NativePath = (typeof nativePaths)[number];

/** The addon, or null where it was not built or cannot be loaded here. */
export function loadNative(): NativeAddon | null {
  try {
    // By name: from a bundle, no relative path leads there.
    return createRequire(import.meta.url)("@tephra/engine/hashing.node") as NativeAddon;
  } catch {
    return null;
  }
}

export function pathNumber(path: NativePath): number {
  return nativePaths.indexOf(path);
}

/** Paths that this processor supports; always includes "plain". */
export function availablePaths(addon: NativeAddon): NativePath[] {
  const bits = addon.paths();
  return nativePaths.filter((_, number) => Math.floor(bits / 2 ** number) % 2 === 1);
}
