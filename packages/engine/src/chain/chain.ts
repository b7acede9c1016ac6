import { EngineError, InvalidBackupError } from "../errors.ts";
import { type HashList, openHashList } from "../format/hash-list.ts";
import { dataName, hashListName, metadataName } from "../format/layout.ts";
import { type MeasureEntry, type MetadataHeader, readMetadata } from "../format/metadata.ts";
import type { ObjectEntry } from "../format/object-entry.ts";
import { statedVolumeBytes } from "../format/volume-meta.ts";
import { asDamage, type BackupReference, confirmed, damaged, keyOf } from "./backup-reference.ts";
import { measureObject } from "./decode-object.ts";
import { type MergeStep, mergeLayers } from "./merge-layers.ts";

/** Result of one pass over a backup's metadata. */
export interface LayerSummary {
  header: MetadataHeader;
  objects: number;
  /** End offset of the last object in the volume; 0 when there is none. */
  endBytes: number;
}

/** A backup to be restored with all its ancestors, validated once. */
export interface Chain {
  /** Newest first; the last one is full. */
  references: readonly BackupReference[];
  summaries: readonly LayerSummary[];
  /** The newest backup's hash list; null when it is missing. */
  hashes: HashList | null;
  /** Volume length when the newest backup was made; exact when there is a hash list. */
  volumeBytes: number;
}

/** No realistic chain is longer; each member costs an open stream while merging. */
const membersMax = 1000;
/** No driver writes larger objects: Cinder holds each one in memory. Bounds the work for metadata without lengths. */
const measuredBytesMax = 4 * 1024 ** 3;

/**
 * Reads every member's metadata and checks that the members form a chain. InvalidBackupError when they do not, DamagedObjectError (seen
 * twice) for objects that are missing or malformed.
 */
export async function openChain(references: readonly BackupReference[], signal: AbortSignal): Promise<Chain> {
  const [newest] = references;
  if (newest === undefined) throw new InvalidBackupError("There is nothing to restore from.");
  if (references.length > membersMax) throw new InvalidBackupError(`The chain has more than ${membersMax} members.`);
  const summaries: LayerSummary[] = [];
  for (const reference of references) summaries.push(await summarize(reference, signal));
  for (const [index, summary] of summaries.entries()) checkLink(references, index, summary, summaries[index + 1]);
  const hashes = await findHashList(newest, signal);
  const volumeBytes = await chainVolumeBytes({ references, summaries, hashes, signal });
  return { references, summaries, hashes, volumeBytes };
}

/** Reads a metadata object from end to end, checking every entry. */
export function summarize(reference: BackupReference, signal: AbortSignal): Promise<LayerSummary> {
  return confirmed(async () => {
    let objects = 0;
    let endBytes = 0;
    const batches = streamEntries(reference, signal);
    for (let batch = await batches.next(); ; batch = await batches.next()) {
      if (batch.done) return { header: batch.value, objects, endBytes };
      objects += batch.value.length;
      const last = batch.value.at(-1);
      if (last !== undefined) endBytes = last.offset + last.length;
    }
  });
}

/** The entries of a backup's metadata in ascending order. Damage is reported on first sight; see confirmed. */
export async function* streamEntries(
  reference: BackupReference,
  signal: AbortSignal,
): AsyncGenerator<ObjectEntry[], MetadataHeader> {
  const name = metadataName(reference.prefix);
  const measure: MeasureEntry = ({ number, compression }) => {
    const object = { name: dataName(reference.prefix, number), compression };
    return measureObject(reference, object, { lengthMax: measuredBytesMax, signal });
  };
  try {
    return yield* readMetadata(reference.repository.get(keyOf(reference, name), { signal }), reference.prefix, measure);
  } catch (error) {
    throw asDamage(reference, name, error);
  }
}

/** Opens a backup's hash list. DamagedObjectError, seen twice, here and for every later partial read. */
export async function readHashList(reference: BackupReference, signal: AbortSignal): Promise<HashList> {
  const name = hashListName(reference.prefix);
  const key = keyOf(reference, name);
  const attempt = <Result>(read: () => Promise<Result>): Promise<Result> =>
    confirmed(async () => {
      try {
        return await read();
      } catch (error) {
        throw asDamage(reference, name, error);
      }
    });
  const list = await attempt(async () => {
    const { sizeBytes } = await reference.repository.stat(key);
    return openHashList((part) => reference.repository.get(key, { ...part, signal }), sizeBytes);
  });
  return { ...list, read: (first, count) => attempt(() => list.read(first, count)) };
}

/** The hash list, or null when there is none: a restore can do without, but must say so. A damaged list still counts as damage. */
export async function findHashList(reference: BackupReference, signal: AbortSignal): Promise<HashList | null> {
  try {
    return await readHashList(reference, signal);
  } catch (error) {
    const cause = error instanceof EngineError ? error.cause : null;
    if (cause instanceof EngineError && cause.code === "object_missing") return null;
    throw error;
  }
}

function checkLink(
  references: readonly BackupReference[],
  index: number,
  summary: LayerSummary,
  below: LayerSummary | undefined,
): void {
  const reference = references[index] as BackupReference;
  const parentId = summary.header.parentId;
  const name = metadataName(reference.prefix);
  if (below === undefined) {
    if (typeof parentId !== "string") return;
    throw damaged(reference, name, `it is an incremental of ${parentId}, which is not in the chain`);
  }
  if (parentId === undefined || below.header.backupId === null || parentId === below.header.backupId) return;
  const said = parentId === null ? "a full backup" : `an incremental of ${parentId}`;
  throw damaged(reference, name, `it is ${said}, but was to be restored on top of ${below.header.backupId}`);
}

/**
 * The exact length of the volume. The format has no field for it, but it follows from what every writer does:
 *  - the hash list has one hash per block, so the length lies within the last block;
 *  - a backup that contains the last block stores it up to the end of the volume;
 *  - one that does not shares the last block with its parent: if the parent's list is longer, that block is a full one,
 *    otherwise the parent's volume ends at the same place.
 */
async function chainVolumeBytes(input: {
  references: readonly BackupReference[];
  summaries: readonly LayerSummary[];
  hashes: HashList | null;
  signal: AbortSignal;
}): Promise<number> {
  const { references, summaries, hashes, signal } = input;
  if (hashes === null) return unhashedVolumeBytes(summaries);
  const { count, blockBytes } = hashes;
  if (count === 0) return 0;
  for (const [index, reference] of references.entries()) {
    const summary = summaries[index] as LayerSummary;
    if (summary.endBytes > (count - 1) * blockBytes) {
      if (summary.endBytes <= count * blockBytes) return summary.endBytes;
      throw damaged(reference, metadataName(reference.prefix), "its objects end behind its list of hashes");
    }
    const below = references[index + 1];
    if (below === undefined) {
      throw damaged(reference, metadataName(reference.prefix), "its objects end before the end of the volume");
    }
    const belowCount = (await readHashList(below, signal)).count;
    if (belowCount > count) return count * blockBytes;
    if (belowCount < count) {
      throw damaged(reference, metadataName(reference.prefix), "the end of the volume is in no member of the chain");
    }
  }
  return count * blockBytes;
}

/** Without a hash list: the length recorded by this service if the objects do not exceed it, otherwise the end of the last object. */
function unhashedVolumeBytes(summaries: readonly LayerSummary[]): number {
  const end = Math.max(...summaries.map(({ endBytes }) => endBytes));
  const stated = statedVolumeBytes(summaries[0]?.header.volumeMeta ?? null);
  return stated !== null && stated <= end ? stated : end;
}

/**
 * The exact length of the volume at the time of one backup, from that backup alone where possible: from its objects when they reach the
 * last block, otherwise from the length that this service records in volume_meta. InvalidBackupError when only the chain can tell.
 */
export async function volumeBytesOf(reference: BackupReference, signal: AbortSignal): Promise<number> {
  const summary = await summarize(reference, signal);
  const { count, blockBytes } = await readHashList(reference, signal);
  const inLastBlock = (bytes: number): boolean => bytes > (count - 1) * blockBytes && bytes <= count * blockBytes;
  if (count === 0) return 0;
  if (inLastBlock(summary.endBytes)) return summary.endBytes;
  const stated = statedVolumeBytes(summary.header.volumeMeta);
  if (stated !== null && inLastBlock(stated)) return stated;
  throw new InvalidBackupError("The length of the volume cannot be told without the backups below this one.");
}

/** The merged map of a chain. */
export function chainSteps(chain: Chain, signal: AbortSignal): AsyncGenerator<MergeStep> {
  const { references, volumeBytes, hashes } = chain;
  // Without a hash list there is no block size, and objects may start and end anywhere.
  return mergeChain({ references, volumeBytes, blockBytes: hashes?.blockBytes ?? 1 }, signal);
}

/** The merged map of a chain whose sizes are already known. */
export function mergeChain(
  chain: { references: readonly BackupReference[]; volumeBytes: number; blockBytes: number },
  signal: AbortSignal,
): AsyncGenerator<MergeStep> {
  const { references, volumeBytes, blockBytes } = chain;
  const layers = references.map((reference) => streamEntries(reference, signal));
  return mergeLayers({ references, layers, volumeBytes, blockBytes });
}

/** Warnings about a chain that can be restored nevertheless. */
export function chainWarnings(chain: Pick<Chain, "references" | "hashes">): string[] {
  const [newest] = chain.references;
  if (chain.hashes !== null || newest === undefined) return [];
  return [
    `Backup ${newest.backupId} has no list of hashes (${hashListName(newest.prefix)} is missing): ` +
      "only lengths and MD5 sums are checked.",
  ];
}
