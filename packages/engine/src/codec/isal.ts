import { createHash } from "node:crypto";
import { CodecUnavailableError } from "../errors.ts";
import { openSystemLibrary, type SystemLibrary } from "./system-library.ts";

/**
 * zlib streams by Intel's ISA-L. Layout of its `struct isal_zstream` (isa-l/igzip_lib.h, soname 2) on every 64-bit system: the size, and
 * the offsets of the members used here. `state` is internal_state.state, which says whether the stream has ended.
 */
export const zstream = {
  bytes: 82_384,
  nextIn: 0,
  availIn: 8,
  nextOut: 16,
  availOut: 24,
  level: 40,
  levelBufferBytes: 44,
  levelBuffer: 48,
  endOfStream: 56,
  gzipFlag: 60,
  state: 84,
};

const COMP_OK = 0;
/** Writes the trailer (Adler-32) but no header, whose level bits differ between releases. */
const IGZIP_ZLIB_NO_HDR = 4;
const ZSTATE_END = 11;

/** RFC 1950 section 2.2: 32 KiB window, the fastest algorithm. */
const header = Uint8Array.of(0x78, 0x01);
/** ISAL_DEF_LVLx_DEFAULT. The size determines where deflate blocks end, and so the bytes of the stream. */
const levelBufferBytes = [0, 282_624, 331_776, 348_160];
/** Input and output per call; bounds how long a call takes. Changing it changes the output bytes. */
const stepBytes = 1024 * 1024;
/** Added to the data's length in the first output buffer, so that small streams take a single call. */
const spareBytes = 1024;

/**
 * SHA-256 of each level's output for the sample. Releases 2.30 and 2.31 agree on x86 processors with SSE 4.2, and at level 3 with AVX2
 * but without AVX-512. Others find different matches.
 */
const sampleDigests = [
  "6fd07477aee101d9efc57f3a2f71d14c4c98a4644616ece1d266ff9ff13f2500",
  "27d2b3ca2a6aae49e1a2c51eba1bce4952db4201e9479ddbec62cc92d8be1872",
  "89f7d19f3391ee406f6af76eb9a6bd2c79200973eb8725b92679c93ead6f6f92",
  "2065c92c2d7f35eb8010dc65a6915bb36755df5265154f3bff04b261b5ea6560",
];
const sampleBytes = 512 * 1024;

const prototypes = { init: "void isal_deflate_init(uint64 stream)", deflate: "int isal_deflate(uint64 stream)" };

interface Encoder extends SystemLibrary<keyof typeof prototypes> {
  /** Memory reused for one stream after another. */
  state: DataView;
  stateAddress: bigint;
  level: Uint8Array;
  /** Levels whose output was found to match the expected bytes. */
  checkedLevels: Set<number>;
}

/** Loaded once per thread, for the first object that is compressed with it. */
const encoders: Encoder[] = [];

function encoder(): Encoder {
  const [loaded] = encoders;
  if (loaded !== undefined) return loaded;
  const functions = openSystemLibrary("zlib by ISA-L", "libisal.so.2", prototypes);
  const state = new Uint8Array(zstream.bytes);
  const opened: Encoder = {
    ...functions,
    state: new DataView(state.buffer),
    stateAddress: functions.address(state),
    level: new Uint8Array(Math.max(...levelBufferBytes)),
    checkedLevels: new Set(),
  };
  encoders.push(opened);
  return opened;
}

/**
 * Throws CodecUnavailableError unless this machine has an ISA-L that produces the same bytes as every other machine: two workers that
 * copy the same object must agree.
 */
export function requireIsal(level: number): void {
  const { checkedLevels } = encoder();
  if (checkedLevels.has(level)) return;
  const digest = createHash("sha256");
  for (const piece of isalPieces(sample(), level, () => false) ?? []) digest.update(piece);
  if (digest.digest("hex") !== sampleDigests[level]) {
    const reason = `libisal.so.2 makes other bytes at level ${level} on this processor, or in this release, than elsewhere`;
    throw new CodecUnavailableError("zlib by ISA-L", reason);
  }
  checkedLevels.add(level);
}

/** Words repeated near and far, with errors in them: hash and match-search variants find different matches in it, and blocks fill up. */
function sample(): Uint8Array {
  const data = new Uint8Array(sampleBytes);
  let draw = 1;
  for (let at = 0; at < data.length; at++) {
    draw = (Math.imul(draw, 1_103_515_245) + 12_345) >>> 0;
    const back = (at >>> 8) * 37 + 5;
    data[at] = at > back && draw >>> 29 !== 0 ? (data[at - back] as number) : 97 + ((draw >>> 16) % 23);
  }
  return data;
}

/**
 * Compresses `data` to one zlib stream (RFC 1950) in pieces of at most 1 MiB. Returns null when the stream would not be shorter than the
 * data, and undefined as soon as `cancelled` returns true. Equal input and level (0 to 3) give equal bytes on all machines that pass
 * requireIsal.
 */
export function isalPieces(
  data: Uint8Array,
  level: number,
  cancelled: () => boolean,
): Uint8Array<ArrayBuffer>[] | null | undefined {
  const { state, stateAddress, calls, address } = start(level);
  const pieces: Uint8Array<ArrayBuffer>[] = [header.slice()];
  let output = new Uint8Array(Math.min(stepBytes, data.length + spareBytes));
  let filled = 0;
  let total = header.length;
  for (let at = 0; ; ) {
    if (cancelled()) return undefined;
    const input = data.subarray(at, at + stepBytes);
    const room = output.length - filled;
    state.setBigUint64(zstream.nextIn, input.length > 0 ? address(input) : 0n, true);
    state.setUint32(zstream.availIn, input.length, true);
    state.setUint16(zstream.endOfStream, at + input.length >= data.length ? 1 : 0, true);
    state.setBigUint64(zstream.nextOut, address(output.subarray(filled)), true);
    state.setUint32(zstream.availOut, room, true);
    const status = calls.deflate(stateAddress);
    if (status !== COMP_OK) throw new Error(`ISA-L failed (${status})`);
    const produced = room - state.getUint32(zstream.availOut, true);
    at += input.length - state.getUint32(zstream.availIn, true);
    filled += produced;
    total += produced;
    if (total >= data.length) return null;
    const ended = state.getUint32(zstream.state, true) === ZSTATE_END;
    if (!ended && filled < output.length) continue;
    pieces.push(filled < output.length ? new Uint8Array(output.buffer.transfer(filled)) : output);
    if (ended) return pieces;
    output = new Uint8Array(stepBytes);
    filled = 0;
  }
}

/** A new stream of this level, reusing the memory of the previous one. */
function start(level: number): Encoder {
  const opened = encoder();
  const { state, stateAddress, calls } = opened;
  calls.init(stateAddress);
  state.setUint32(zstream.level, level, true);
  state.setUint32(zstream.levelBufferBytes, levelBufferBytes[level] as number, true);
  state.setBigUint64(zstream.levelBuffer, opened.address(opened.level), true);
  state.setUint16(zstream.gzipFlag, IGZIP_ZLIB_NO_HDR, true);
  return opened;
}
