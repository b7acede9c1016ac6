import { damaged } from "./disk.ts";

/*
 * The journal of ext3 and ext4 (jbd2, Documentation/filesystems/ext4/journal). Numbers are big-endian. Whole blocks are kept in it until they
 * have reached their places: those of transactions that have ended count instead of what is there. Fast commits are not read.
 */

const magic = 0xc03b_3998;
const kind = { descriptor: 1, commit: 2, superblocks: [3, 4], revoke: 5 } as const;
const feature = { bits64: 0x2, checksums2: 0x8, checksums3: 0x10, fastCommits: 0x20 } as const;
const tagFlag = { escaped: 0x1, sameUuid: 0x2, last: 0x8 } as const;
const fastBlocksDefault = 256;
/** Of the log; a longer one is not read, so that no request takes for ever. */
const walkedBytesMax = 128 * 1024 * 1024;

const has = (mask: number, flag: number): boolean => (mask & flag) !== 0;

/** What counts instead of a block of the file system: a block of the journal, by its place in it. */
export interface Replayed {
  place: number;
  /** Its first four bytes are the magic number, which no block may have in the journal. */
  isEscaped: boolean;
}

export const restoreMagic = (block: Buffer): void => void block.writeUInt32BE(magic, 0);

/** A block that the log has of a transaction that has ended, if it is not revoked later. */
interface Tag extends Replayed {
  number: number;
  sequence: number;
}

/**
 * The blocks that count instead of those of the file system, by their numbers there; null for a journal that is too long to be read.
 *
 * @throws FilesError damaged
 */
export async function readJournal(read: (place: number) => Promise<Buffer>): Promise<Map<number, Replayed> | null> {
  const log = logOf(await read(0));
  const found = log.start === 0 ? { tags: [], revokes: [] } : await walk(log, read);
  if (found === null) return null;
  const wanted = new Set(found.tags.map(({ number }) => number));
  const revoked = new Map<number, number>();
  for (const { place, sequence } of found.revokes) {
    for (const number of revokedBy(await read(place), log)) if (wanted.has(number)) revoked.set(number, sequence);
  }
  const counting = found.tags.filter(({ number, sequence }) => (revoked.get(number) ?? -1) < sequence);
  return new Map(counting.map(({ number, place, isEscaped }) => [number, { place, isEscaped }]));
}

interface Walked {
  tags: Tag[];
  /** Blocks of the log with numbers of revoked blocks. */
  revokes: { place: number; sequence: number }[];
}

/** All transactions that have ended, in order; null: they are too long. */
async function walk(log: Log, read: (place: number) => Promise<Buffer>): Promise<Walked | null> {
  const length = log.end - log.first;
  const ended: Walked = { tags: [], revokes: [] };
  let pending: Walked = { tags: [], revokes: [] };
  const after = (place: number): number => log.first + ((place - log.first + 1) % length);
  let [place, sequence, walked] = [log.start, log.sequence, 0];
  for (;;) {
    const block = await read(place);
    if (block.readUInt32BE(0) !== magic || block.readUInt32BE(8) !== sequence) return ended;
    const what = block.readUInt32BE(4);
    if (what === kind.descriptor) {
      for (const tag of tagsOf(block, log)) {
        place = after(place);
        walked += 1;
        pending.tags.push({ ...tag, place, sequence });
      }
    } else if (what === kind.revoke) pending.revokes.push({ place, sequence });
    else if (what === kind.commit) {
      for (const tag of pending.tags) ended.tags.push(tag);
      for (const revoke of pending.revokes) ended.revokes.push(revoke);
      pending = { tags: [], revokes: [] };
      sequence = (sequence + 1) % 2 ** 32;
    } else return ended;
    place = after(place);
    walked += 1;
    if (walked > length || walked * block.length > walkedBytesMax) return null;
  }
}

interface Log {
  first: number;
  end: number;
  start: number;
  sequence: number;
  features: number;
}

function logOf(block: Buffer): Log {
  const isOne = block.readUInt32BE(0) === magic && kind.superblocks.some((each) => each === block.readUInt32BE(4));
  if (!isOne || block.readUInt32BE(0xc) !== block.length) throw damaged("its journal has no superblock");
  const features = block.readUInt32BE(4) === kind.superblocks[1] ? block.readUInt32BE(0x28) : 0;
  const fastBlocks = has(features, feature.fastCommits) ? block.readUInt32BE(0x54) || fastBlocksDefault : 0;
  const [first, start, sequence] = [block.readUInt32BE(0x14), block.readUInt32BE(0x1c), block.readUInt32BE(0x18)];
  const end = block.readUInt32BE(0x10) - fastBlocks;
  if (first < 1 || first >= end || (start !== 0 && (start < first || start >= end)))
    throw damaged("its journal makes no sense");
  return { first, end, start, sequence, features };
}

/** The blocks that follow a descriptor, in order. */
function* tagsOf(block: Buffer, { features }: Log): Generator<{ number: number; isEscaped: boolean }> {
  const [is64, is2, is3] = [feature.bits64, feature.checksums2, feature.checksums3].map((each) => has(features, each));
  const tagBytes = is3 ? 16 : 8 + (is64 ? 4 : 0) + (is2 ? 2 : 0);
  const end = block.length - (is2 || is3 ? 4 : 0);
  for (let at = 12; at + tagBytes <= end; ) {
    const flags = is3 ? block.readUInt32BE(at + 4) : block.readUInt16BE(at + 6);
    const high = is64 ? block.readUInt32BE(at + 8) : 0;
    yield { number: block.readUInt32BE(at) + high * 2 ** 32, isEscaped: has(flags, tagFlag.escaped) };
    if (has(flags, tagFlag.last)) return;
    at += tagBytes + (has(flags, tagFlag.sameUuid) ? 0 : 16);
  }
}

/** Blocks that are something else since: what earlier transactions, and this one, have of them does not count. */
function* revokedBy(block: Buffer, { features }: Log): Generator<number> {
  const bytes = has(features, feature.bits64) ? 8 : 4;
  const end = Math.min(block.readUInt32BE(12), block.length);
  for (let at = 16; at + bytes <= end; at += bytes)
    yield bytes === 4 ? block.readUInt32BE(at) : Number(block.readBigUInt64BE(at));
}
