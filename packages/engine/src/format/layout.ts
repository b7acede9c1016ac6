import { blockBytesMin, isObjectPrefix, keyVersionPattern, objectBytesMax } from "@tephra/format";
import { type Compression, codecOf, type Encoding, levelsOf, type ZlibEncoder } from "../codec/compression.ts";
import { InvalidLayoutError, InvalidObjectNameError } from "../errors.ts";
import type { Extent } from "./extents.ts";

/** Everything that determines the bytes and names of a backup. Fixed at plan time and never decided again. */
export interface BackupLayout {
  backupId: string;
  volumeId: string;
  container: string;
  /** service_metadata in Cinder: the prefix of all object names. */
  prefix: string;
  /** The label of compressed objects, as configured. */
  compression: Compression;
  /** The encoder's level, see levelDefault; zlib's where compression is off. */
  level: number;
  /** The encoder of zlib streams; default `zlib`. Part of the plan: all workers that copy an object must produce the same bytes. */
  zlibEncoder?: ZlibEncoder;
  /** Size of a window of the volume, a multiple of blockBytes. */
  objectBytes: number;
  /** The hash unit. */
  blockBytes: number;
  volumeBytes: number;
  /** `YYYY-MM-DD HH:MM:SS+00:00`, with or without six digits of fraction. */
  createdAt: string;
  name: string | null;
  description: string | null;
  /** The volume_meta string of the format, see encodeVolumeMeta. */
  volumeMeta: string | null;
  parentId: string | null;
  /** Whether zeros are compressed although compression is off; default true. */
  compressZeros?: boolean;
  /** Whether its objects are encrypted at rest; default false. Needs a repository with master keys. */
  encrypted?: boolean;
}

/** Throws InvalidLayoutError unless the numbers fit each other. */
export function checkLayout(layout: BackupLayout): void {
  const { blockBytes, objectBytes, volumeBytes, level } = layout;
  const refuse = (reason: string): never => {
    throw new InvalidLayoutError(reason);
  };
  if (!Number.isSafeInteger(volumeBytes) || volumeBytes < 0) {
    refuse(`Volume size ${volumeBytes} is not a size in bytes.`);
  }
  if (!Number.isSafeInteger(blockBytes) || blockBytes < blockBytesMin) {
    refuse(`Block size ${blockBytes} is not an integer of at least ${blockBytesMin}.`);
  }
  if (!Number.isSafeInteger(objectBytes) || objectBytes < blockBytes || objectBytes > objectBytesMax) {
    refuse(`Object size ${objectBytes} is not an integer between the block size and ${objectBytesMax}.`);
  }
  if (objectBytes % blockBytes !== 0) {
    refuse(`Object size ${objectBytes} is not a multiple of the block size ${blockBytes}.`);
  }
  const { compression, zlibEncoder } = encodingOf(layout);
  if (zlibEncoder !== "zlib" && codecOf(compression) !== "zlib") {
    refuse(`The encoder ${zlibEncoder} makes zlib streams, and the compression is ${compression}.`);
  }
  const { min, max } = levelsOf(compression, zlibEncoder);
  if (!Number.isInteger(level) || level < min || level > max) {
    refuse(`Compression level ${level} is not between ${min} and ${max}.`);
  }
  checkPrefix(layout.prefix);
}

/** The encoding that a layout's objects use. */
export function encodingOf({ compression, level, zlibEncoder = "zlib" }: BackupLayout): Encoding {
  return { compression, level, zlibEncoder };
}

/** Throws InvalidObjectNameError unless the prefix is complete. Returns it. */
export function checkPrefix(prefix: string): string {
  if (!isObjectPrefix(prefix)) {
    throw new InvalidObjectNameError(`Not the prefix of a backup's objects: ${JSON.stringify(prefix.slice(0, 300))}.`);
  }
  return prefix;
}

export function metadataName(prefix: string): string {
  return `${prefix}_metadata`;
}

export function hashListName(prefix: string): string {
  return `${prefix}_sha256file`;
}

/** The object that holds an encrypted backup's data key, wrapped by the master key of this version. */
export function keyName(prefix: string, masterVersion: string): string {
  return `${prefix}${keyMark}${masterVersion}`;
}

const keyMark = "_key_";

/** The version in the name of a wrapped data key, or null when the name does not belong to exactly this prefix. */
export function keyVersion(prefix: string, name: string): string | null {
  if (!name.startsWith(prefix + keyMark)) return null;
  const version = name.slice(prefix.length + keyMark.length);
  return keyVersionPattern.test(version) ? version : null;
}

/** Data objects are numbered from 1, with at least five digits. */
export function dataName(prefix: string, number: number): string {
  return `${prefix}-${String(number).padStart(5, "0")}`;
}

/** The number in a data object's name, or null when the name does not belong to exactly this prefix. */
export function dataNumber(prefix: string, name: string): number | null {
  if (!name.startsWith(`${prefix}-`)) return null;
  const digits = name.slice(prefix.length + 1);
  if (!/^(?:\d{5}|[1-9]\d{5,14})$/.test(digits)) return null;
  return Number(digits);
}

/** The most objects that one window of an incremental can produce: every other block changed. */
export function objectsPerWindow(layout: BackupLayout): number {
  return Math.ceil(layout.objectBytes / layout.blockBytes / 2);
}

/** Object numbers that a range may use: greater than `from`, up to and including `to`. They follow from the position alone. */
export function numbersOfRange(layout: BackupLayout, range: Extent): { from: number; to: number } {
  const firstWindow = range.offset / layout.objectBytes;
  const windows = Math.ceil(range.length / layout.objectBytes);
  const perWindow = layout.parentId === null ? 1 : objectsPerWindow(layout);
  return { from: firstWindow * perWindow, to: (firstWindow + windows) * perWindow };
}

export function blocksOf(bytes: number, blockBytes: number): number {
  return Math.ceil(bytes / blockBytes);
}
