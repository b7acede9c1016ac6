import { objectBytesMax } from "@tephra/format";
import { type CopiedRange, type CopyInput, copyObjects, stageCopied, type TakenWindow } from "../backup/copy-range.ts";
import { type SealResult, sealCopied } from "../backup/seal.ts";
import { type BackupReference, damaged, keyOf } from "../chain/backup-reference.ts";
import { type Chain, openChain, streamEntries } from "../chain/chain.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { codecOf } from "../codec/compression.ts";
import { beginBackup } from "../encryption/begin-backup.ts";
import { InvalidBackupError, ObjectMissingError } from "../errors.ts";
import { cutRanges, cutWindows, type Extent } from "../format/extents.ts";
import { cachedHashList, type HashList } from "../format/hash-list.ts";
import { type BackupLayout, blocksOf, dataName } from "../format/layout.ts";
import type { MetadataHeader } from "../format/metadata.ts";
import type { RangeReport } from "../format/range-report.ts";
import type { Repository } from "../repository/repository.ts";
import { regionsWithin } from "../restore/regions.ts";
import type { RunContext, WriteContext } from "../run/run-context.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import { ChainSource } from "./chain-source.ts";

export interface SquashInput {
  /** The newest backup, whose id the new full backup bears, and everything that it builds on; newest first. */
  chain: readonly BackupReference[];
  repository: Repository;
  layout: BackupLayout;
}

/** What of a new full backup follows from its chain. */
export interface SquashShape {
  /** Of the newest backup: the new one takes over all of it but the parent. */
  header: MetadataHeader;
  /** Size of its windows: that of the full backup at the bottom, so that its objects can be taken as they are. */
  objectBytes: number;
  blockBytes: number;
  volumeBytes: number;
}

/** What became of the windows. */
export interface SquashCounts {
  /** Taken as they were stored. */
  takenBytes: number;
  /** Merged: read, checked and stored anew; bytes of the volume. */
  mergedBytes: number;
}

/**
 * Reads the metadata of a chain and decides where the objects of its new full backup begin and end. `objectBytes` is used where the full
 * backup has no windows of one size, or too large ones.
 *
 * @throws InvalidBackupError for a full backup, and for one without a list of hashes; DamagedObjectError
 */
export async function planSquash(
  input: { chain: readonly BackupReference[]; objectBytes: number },
  signal: AbortSignal,
): Promise<SquashShape> {
  const { header, hashes, volumeBytes } = await openIncremental(input.chain, signal);
  const { blockBytes } = hashes;
  const known = await windowOf(input.chain.at(-1) as BackupReference, signal);
  const usable = known !== null && known % blockBytes === 0 && known <= objectBytesMax;
  const fitting = Math.max(1, Math.floor(input.objectBytes / blockBytes)) * blockBytes;
  return { header, objectBytes: usable ? known : fitting, blockBytes, volumeBytes };
}

async function openIncremental(
  references: readonly BackupReference[],
  signal: AbortSignal,
): Promise<Chain & { hashes: HashList; header: MetadataHeader }> {
  const chain = await openChain(references, signal);
  const [newest] = references;
  const header = chain.summaries[0]?.header;
  const id = newest?.backupId ?? "";
  if (header === undefined || references.length < 2) {
    throw new InvalidBackupError(`Backup ${id} is a full backup: there is nothing to squash.`);
  }
  if (chain.hashes === null)
    throw new InvalidBackupError(`Backup ${id} has no list of hashes, so it cannot be squashed.`);
  return { ...chain, hashes: cachedHashList(chain.hashes), header };
}

/** The size of all objects of a full backup but the last one, each at a multiple of it; null where they are not so, or there is one object. */
async function windowOf(full: BackupReference, signal: AbortSignal): Promise<number | null> {
  let size: number | null = null;
  let shorter = false;
  for await (const batch of streamEntries(full, signal)) {
    for (const { offset, length } of batch) {
      if (size === null && offset === 0) size = length;
      else if (size === null || shorter || offset % size !== 0 || length > size) return null;
      shorter = length < size;
    }
  }
  return size;
}

/** Copies one range of the new full backup, and stages its slices: see copyRange. beginBackup must have been called. */
export async function squashRange(
  engine: EngineContext,
  input: SquashInput & { range: Extent; staging: { operationId: string; name: string } },
  ctx: RunContext,
): Promise<{ report: RangeReport } & SquashCounts> {
  const chain = await openIncremental(input.chain, ctx.signal);
  const { copied, ...counts } = await squashObjects(engine, { ...input, chain }, ctx);
  return { report: await stageCopied(input, copied, ctx), ...counts };
}

/** Squashes a chain in one call. */
export async function squashWhole(
  engine: EngineContext,
  input: SquashInput,
  ctx: RunContext,
): Promise<SealResult & SquashCounts> {
  const { repository, layout } = input;
  const chain = await openIncremental(input.chain, ctx.signal);
  await beginBackup(input, ctx);
  const ranges: CopiedRange[] = [];
  const total = { takenBytes: 0, mergedBytes: 0 };
  let bytesStored = 0;
  for (const range of cutRanges({ ...layout, rangeBytes: wholeRangeBytes, rangesMax: 16_384 })) {
    const onProgress: RunContext["onProgress"] = (done) =>
      ctx.onProgress({ bytesDone: range.offset + done.bytesDone, bytesStored: bytesStored + done.bytesStored });
    const { copied, takenBytes, mergedBytes } = await squashObjects(
      engine,
      { ...input, chain, range },
      { ...ctx, onProgress },
    );
    ranges.push(copied);
    bytesStored += copied.report.bytesStored;
    total.takenBytes += takenBytes;
    total.mergedBytes += mergedBytes;
  }
  return { ...(await sealCopied({ repository, layout, ranges }, ctx)), ...total };
}

/** Bounds the part of the merged map that is held at a time. */
const wholeRangeBytes = 8 * 1024 ** 3;

/** A chain that has been opened, with the list of hashes that the new backup takes over. */
type OpenedChain = Chain & { hashes: HashList };

async function squashObjects(
  engine: EngineContext,
  input: { chain: OpenedChain; repository: Repository; layout: BackupLayout; range: Extent },
  ctx: RunContext,
): Promise<{ copied: CopiedRange } & SquashCounts> {
  const { chain, repository, layout, range } = input;
  const objects = await windowsOf(chain, layout, range, ctx.signal);
  const counts = { takenBytes: 0, mergedBytes: 0 };
  const take: CopyInput["take"] = async (window, key, put) => {
    const found = await takeable(input, window, objects.get(window.offset) ?? []);
    const taken = found && (await takeObject(input, found, key, put));
    counts[taken ? "takenBytes" : "mergedBytes"] += window.length;
    return taken && { ...taken, hashes: await hashesOf(chain.hashes, window) };
  };
  const source = new ChainSource(engine, { chain, objects, windowBytes: layout.objectBytes, ctx });
  const copied = await copyObjects(engine, { source, repository, layout, range, parent: null, take }, ctx);
  await compareHashes(chain, range, copied);
  return { copied, ...counts };
}

const hashesOf = ({ read, blockBytes }: HashList, { offset, length }: Extent): Promise<Uint8Array> =>
  read(offset / blockBytes, blocksOf(length, blockBytes));

/** The objects that each window of a range is made of, by where the window begins. */
async function windowsOf(
  chain: Chain,
  { objectBytes }: BackupLayout,
  range: Extent,
  signal: AbortSignal,
): Promise<Map<number, MappedObject[]>> {
  const windows = new Map<number, MappedObject[]>();
  for await (const { objects } of regionsWithin(chain, range, 1, signal)) {
    for (const object of objects) {
      const firsts = new Set<number>();
      for (const [start, end] of object.segments) {
        for (const { offset } of cutWindows(
          { offset: start - (start % objectBytes), length: end - start + (start % objectBytes) },
          objectBytes,
        )) {
          firsts.add(offset);
        }
      }
      for (const first of firsts) windows.set(first, [...(windows.get(first) ?? []), object]);
    }
  }
  return windows;
}

interface FoundObject {
  reference: BackupReference;
  object: MappedObject;
}

/**
 * The object that is all of a window, where it can be taken as it is: stored in the same repository, and encrypted neither there nor in the
 * new backup, since frames are bound to a data key and a name (format 10).
 */
async function takeable(
  { chain, repository, layout }: { chain: Chain; repository: Repository; layout: BackupLayout },
  window: Extent,
  objects: readonly MappedObject[],
): Promise<FoundObject | null> {
  const [object] = objects;
  if (object === undefined || objects.length > 1 || layout.encrypted === true) return null;
  const { entry, segments, layer } = object;
  const [whole] = segments;
  const isAll = entry.offset === window.offset && entry.length === window.length && segments.length === 1;
  if (!isAll || whole?.[0] !== window.offset || whole[1] !== window.offset + window.length || entry.md5 === null)
    return null;
  const reference = chain.references[layer] as BackupReference;
  if (reference.repository !== repository || (await repository.encryption?.isEncrypted(reference)) === true)
    return null;
  return { reference, object };
}

/** What is stored must have the size that its entry allows; what it holds is not looked at. DamagedObjectError. */
async function takeObject(
  { repository }: { repository: Repository },
  { reference, object: { entry } }: FoundObject,
  to: { container: string; name: string },
  put: WriteContext,
): Promise<Omit<TakenWindow, "hashes">> {
  const from = keyOf(reference, dataName(reference.prefix, entry.number));
  try {
    const { sizeBytes: storedBytes } = await repository.stat(from);
    const isRaw = codecOf(entry.compression) === "none";
    if (isRaw ? storedBytes !== entry.length : storedBytes > entry.length) {
      throw damaged(reference, from.name, `${storedBytes} bytes are stored, of ${entry.length} of the volume`);
    }
    const outcome = await repository.copyIfAbsent(from, to, put);
    const { offset, length, md5, compression } = entry;
    return { entry: { offset, length, md5, compression }, storedBytes, outcome };
  } catch (error) {
    throw error instanceof ObjectMissingError ? damaged(reference, from.name, "it is missing", error) : error;
  }
}

/** What was merged must have the hashes that the list of the newest backup states. */
async function compareHashes(
  { hashes, references }: OpenedChain,
  range: Extent,
  { hashes: found }: CopiedRange,
): Promise<void> {
  let at = range.offset;
  for (const some of found) {
    const length = (some.length / 32) * hashes.blockBytes;
    if (Buffer.compare(await hashesOf(hashes, { offset: at, length }), some) !== 0) {
      throw new InvalidBackupError(
        `What was merged of backup ${references[0]?.backupId} at byte ${at} is not what its list of hashes says.`,
      );
    }
    at += length;
  }
}
