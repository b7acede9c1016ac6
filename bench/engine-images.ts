import { copyFile, open } from "node:fs/promises";
import { noiseOf, textOf } from "./sparse-file.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** Numbers below 1, the same for the same seed. */
function drawsOf(seed: string): () => number {
  const bytes = noiseOf(`draws ${seed}`);
  return () => bytes(4).readUInt32LE() / 2 ** 32;
}

/** An image of noise. */
export async function writeRandomImage(path: string, sizeBytes: number): Promise<void> {
  await using file = await open(path, "w");
  const noise = noiseOf("random image");
  for (let at = 0; at < sizeBytes; at += MiB) await file.write(noise(Math.min(MiB, sizeBytes - at)), 0, undefined, at);
}

/** 40 % holes, 30 % text that compresses about 3 to 1 and 30 % noise, in extents of 64 KiB to 4 MiB. */
export async function writeMixedImage(path: string, sizeBytes: number): Promise<void> {
  await using file = await open(path, "w");
  await file.truncate(sizeBytes);
  const draw = drawsOf("mixed image");
  const noise = noiseOf("mixed image");
  const text = textOf("mixed image", 48 * MiB);
  for (let at = 0; at < sizeBytes; ) {
    const length = Math.min((1 + Math.floor(draw() * 64)) * 64 * KiB, sizeBytes - at);
    const kind = draw();
    const from = Math.floor(draw() * (text.length - length));
    if (kind >= 0.7) await file.write(noise(length), 0, length, at);
    else if (kind >= 0.4) await file.write(text, from, length, at);
    at += length;
  }
}

/** A copy in which some positions of 64 KiB, drawn at random, hold something else. */
export async function writeChangedImage(
  from: string,
  path: string,
  change: { percent: number; seed: string },
): Promise<void> {
  await copyFile(from, path);
  await changeImage(path, change);
}

/** Writes something else to some positions of 64 KiB, drawn at random. */
export async function changeImage(path: string, { percent, seed }: { percent: number; seed: string }): Promise<void> {
  await using file = await open(path, "r+");
  const units = Math.floor((await file.stat()).size / (64 * KiB));
  const draw = drawsOf(`changed ${seed}`);
  const noise = noiseOf(`changed ${seed}`);
  const changed = new Set<number>();
  while (changed.size < Math.max(1, Math.round((units * percent) / 100))) changed.add(Math.floor(draw() * units));
  for (const unit of changed) await file.write(noise(64 * KiB), 0, 64 * KiB, unit * 64 * KiB);
}
