import { open } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { constants, deflateSync, zstdCompressSync } from "node:zlib";
import { chooseHashing } from "../packages/engine/src/hashing/choose-hashing.ts";
import { type HashingChoice, openHashing, opensslChoice } from "../packages/engine/src/hashing/hashing.ts";
import { execute, GiB, MiB } from "./contenders.ts";

/** Processor seconds that one core needs for one GiB of an image. */
export interface Limits {
  /** By cp: reading, and writing what is no hole. */
  copy: number;
  /** SHA-256 of every block that is not zero. */
  sha256: number;
  /** MD5 of 16 objects in step, as raw ones are hashed. */
  md5Lanes: number;
  /** MD5 of one object alone, as compressed ones are hashed. */
  md5Single: number;
  zstd3: number;
  zlib6: number;
}

const blockBytes = 32 * 1024;
const sampleBytes = 256 * MiB;
/** The sample's pieces lie at equal distances: the kinds of data of an image are in it as they are in the image. */
const pieces = 16;
/** Of each piece, what is encoded. */
const encodedBytes = 2 * MiB;

/** Which digests this processor computes how: the goals stand for one with AVX-512 and without SHA extensions. */
export function hashingHere(): HashingChoice {
  return chooseHashing();
}

/** Measures what bounds a backup of this image here: each part alone, on one core, the better of two tries. */
export async function limitsOf(image: string, folder: string): Promise<Limits> {
  const sample = await readSample(image);
  const hashing = openHashing(hashingHere());
  const openssl = openHashing(opensslChoice);
  const digests = new Uint8Array((sample.length / blockBytes) * 32);
  const zero = new Uint8Array(sample.length / blockBytes);
  const pieceBytes = sample.length / pieces;
  const lanes = Array.from({ length: pieces }, (_, index) => ({ offset: index * pieceBytes, length: pieceBytes }));
  const whole = { offset: 0, length: sample.length };
  const encoded = Buffer.concat(lanes.map(({ offset }) => sample.subarray(offset, offset + encodedBytes)));
  const zstd = { params: { [constants.ZSTD_c_compressionLevel]: 3 } };
  return {
    copy: await copySeconds(image, folder),
    sha256: perGib(sample.length, () => hashing.hashBlocks(sample, blockBytes, digests, zero)),
    md5Lanes: perGib(sample.length, () => void hashing.md5(sample, lanes)),
    md5Single: perGib(sample.length, () => void openssl.md5(sample, [whole])),
    zstd3: perGib(encoded.length, () => void zstdCompressSync(encoded, zstd)),
    zlib6: perGib(encoded.length, () => void deflateSync(encoded, { level: 6 })),
  };
}

/** Seconds below which a GiB cannot be done by all cores at once, if nothing but these parts took time. */
export function bound(...parts: number[]): string {
  const cores = Math.min(2, availableParallelism());
  const seconds = parts.reduce((sum, part) => sum + part, 0) / cores;
  return `bound ${seconds.toFixed(2)} s`;
}

async function readSample(image: string): Promise<Buffer<ArrayBuffer>> {
  await using file = await open(image, "r");
  const sample = Buffer.from(new ArrayBuffer(sampleBytes));
  const { size } = await file.stat();
  const pieceBytes = sampleBytes / pieces;
  for (let piece = 0; piece < pieces; piece++) {
    await file.read(sample, piece * pieceBytes, pieceBytes, Math.floor((piece * (size - pieceBytes)) / (pieces - 1)));
  }
  return sample;
}

function perGib(bytes: number, work: () => void): number {
  const tries = [0, 1].map(() => {
    const before = process.cpuUsage();
    work();
    const { user, system } = process.cpuUsage(before);
    return (user + system) / 1e6;
  });
  return (Math.min(...tries) * GiB) / bytes;
}

async function copySeconds(image: string, folder: string): Promise<number> {
  const tries: number[] = [];
  for (const _ of [0, 1, 2]) {
    const { stderr } = await execute("/usr/bin/time", ["-f", "%U %S", "cp", image, join(folder, "limit-copy")]);
    const [user = 0, system = 0] = stderr.trim().split(" ").map(Number);
    tries.push(user + system);
    await execute("rm", [join(folder, "limit-copy")]);
  }
  return Math.min(...tries);
}
