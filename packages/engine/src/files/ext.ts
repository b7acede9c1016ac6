import { FilesError } from "../errors.ts";
import { type Disk, damaged } from "./disk.ts";
import { type Replayed, readJournal, restoreMagic } from "./ext-journal.ts";
import {
  type Entry,
  type FileDetails,
  type FileExtent,
  type FileSystem,
  labelOf,
  permissionsOf,
  shownName,
  targetBytesMax,
  typeOfMode,
} from "./file-system.ts";

/*
 * ext2, ext3 and ext4 as the kernel's documentation has them (Documentation/filesystems/ext4). Indexes of directories are not used: their
 * blocks look like empty ones, and those with names are read in order.
 */

const compatJournal = 0x4;
const incompat = {
  filetype: 0x2,
  recover: 0x4,
  metaGroups: 0x10,
  extents: 0x40,
  bits64: 0x80,
  /** filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold. */
  known: 0x3_e7d6,
} as const;
const sparseSuper = 0x1;
const flags = { encrypted: 0x800, extents: 0x8_0000, inline: 0x1000_0000 } as const;
const rootInode = 2;
const extentMagic = 0xf30a;
const attributesMagic = 0xea02_0000;
const depthMax = 5;
/** 1 GiB of blocks of 1 KiB, which is the most that mke2fs makes. */
const journalBlocksMax = 1024 * 1024;
/** Longer extents are of bytes that were never written. */
const writtenBlocksMax = 32_768;

const has = (mask: number, flag: number): boolean => (mask & flag) !== 0;

export interface ExtInode extends FileDetails {
  flags: number;
  /** i_block: 60 bytes. */
  map: Buffer;
  whole: Buffer;
}

interface Run {
  block: number;
  count: number;
  /** On the disk; null: zeros. */
  start: number | null;
}

/** Null where there is none. @throws FilesError for one that cannot be read */
export async function openExt(disk: Disk): Promise<FileSystem | null> {
  if (!disk.holds(1024, 1024)) return null;
  const block = await disk.bytes(1024, 1024);
  if (block.readUInt16LE(0x38) !== 0xef53) return null;
  const files = new Ext(disk, block);
  if (files.isUnclean) await files.replay();
  return files;
}

class Ext implements FileSystem<ExtInode> {
  readonly kind: string;
  readonly label: string | null;
  readonly isUnclean: boolean;
  readonly #disk: Disk;
  readonly #incompat: number;
  readonly #isSparse: boolean;
  readonly #inodes: number;
  readonly #inodesPerGroup: number;
  readonly #inodeBytes: number;
  readonly #blockBytes: number;
  readonly #firstBlock: number;
  readonly #blocksPerGroup: number;
  readonly #descriptorBytes: number;
  readonly #firstMetaGroup: number;
  readonly #journal: number;
  /** Blocks of the journal that count instead of those of the file system, as numbers of blocks on the disk. */
  #replayed: ReadonlyMap<number, Replayed> = new Map();

  constructor(disk: Disk, block: Buffer) {
    const u32 = (at: number): number => block.readUInt32LE(at);
    this.#disk = disk;
    const isOld = u32(0x4c) === 0;
    this.#incompat = isOld ? 0 : u32(0x60);
    const unknown = this.#incompat & ~incompat.known;
    if (unknown !== 0)
      throw new FilesError(
        "unfit",
        `This ext file system has features that are not read: 0x${(unknown >>> 0).toString(16)}.`,
      );
    this.#isSparse = !isOld && has(u32(0x64), sparseSuper);
    const hasJournal = !isOld && has(u32(0x5c), compatJournal);
    this.kind = has(this.#incompat, incompat.extents) ? "ext4" : hasJournal ? "ext3" : "ext2";
    this.label = labelOf(block.subarray(0x78, 0x88));
    this.isUnclean = has(this.#incompat, incompat.recover);
    this.#inodes = u32(0);
    this.#firstBlock = u32(0x14);
    if (u32(0x18) > 6) throw damaged("its blocks are too large");
    this.#blockBytes = 1024 * 2 ** u32(0x18);
    this.#blocksPerGroup = u32(0x20);
    this.#inodesPerGroup = u32(0x28);
    this.#inodeBytes = isOld ? 128 : block.readUInt16LE(0x58);
    this.#descriptorBytes = has(this.#incompat, incompat.bits64) ? block.readUInt16LE(0xfe) : 32;
    this.#firstMetaGroup = u32(0x104);
    this.#journal = hasJournal ? u32(0xe0) : 0;
    const isPower = (value: number): boolean => value > 0 && (value & (value - 1)) === 0;
    const isSane =
      this.#blocksPerGroup > 0 &&
      this.#inodesPerGroup > 0 &&
      isPower(this.#inodeBytes) &&
      this.#inodeBytes >= 128 &&
      this.#inodeBytes <= this.#blockBytes &&
      isPower(this.#descriptorBytes) &&
      this.#descriptorBytes >= 32 &&
      this.#descriptorBytes <= this.#blockBytes;
    if (!isSane) throw damaged("its superblock makes no sense");
  }

  /** From now on, what has ended in the journal counts. A journal that makes no sense, is elsewhere or too long is left alone. */
  async replay(): Promise<void> {
    if (this.#journal === 0) return;
    try {
      const places: number[] = [];
      for await (const { block, count, start } of this.#runs(await this.#inode(this.#journal), 0)) {
        if (start === null || block !== places.length || places.length + count > journalBlocksMax) return;
        for (let each = 0; each < count; each++) places.push(start + each);
      }
      const placeOf = (place: number): number => {
        const block = places[place];
        if (block === undefined) throw damaged("its journal ends too early");
        return block;
      };
      const found = await readJournal((place) => this.#block(placeOf(place)));
      const entries = [...(found ?? [])].map(
        ([block, { place, isEscaped }]) => [block, { place: placeOf(place), isEscaped }] as const,
      );
      this.#replayed = new Map(entries);
    } catch (error) {
      if (!(error instanceof FilesError || error instanceof RangeError)) throw error;
    }
  }

  root(): Promise<ExtInode> {
    return this.#inode(rootInode);
  }

  async *entries(directory: ExtInode): AsyncGenerator<Entry<ExtInode>> {
    refuseEncrypted(directory);
    if (has(directory.flags, flags.inline)) {
      const data = this.#inlineData(directory);
      // Four bytes stand for `.` and `..`; what follows the 60 is a list of its own.
      yield* this.#names(data.subarray(4, 60));
      yield* this.#names(data.subarray(60));
      return;
    }
    const blocks = Math.ceil(directory.sizeBytes / this.#blockBytes);
    for await (const { block, count, start } of this.#runs(directory, 0)) {
      for (let each = 0; start !== null && each < count && block + each < blocks; each++)
        yield* this.#names(await this.#block(start + each));
    }
  }

  async *extents(file: ExtInode, fromByte: number): AsyncGenerator<FileExtent> {
    refuseEncrypted(file);
    if (has(file.flags, flags.inline)) {
      const from = this.#inlineData(file).subarray(0, file.sizeBytes);
      yield { at: 0, length: from.length, from };
      return;
    }
    for await (const { block, count, start } of this.#runs(file, Math.floor(fromByte / this.#blockBytes))) {
      if (start === null) continue;
      const [at, length, from] = [block, count, start].map((blocks) => blocks * this.#blockBytes);
      yield { at: at ?? 0, length: length ?? 0, from: from ?? 0 };
    }
  }

  async target(link: ExtInode): Promise<string> {
    refuseEncrypted(link);
    const { sizeBytes, map } = link;
    if (sizeBytes > targetBytesMax) throw damaged("a link is too long");
    const isInline = has(link.flags, flags.inline);
    if (isInline) return this.#inlineData(link).subarray(0, sizeBytes).toString("utf8");
    if (!has(link.flags, flags.extents) && sizeBytes < map.length) return map.subarray(0, sizeBytes).toString("utf8");
    for await (const { from } of this.extents(link, 0)) {
      if (typeof from === "number") return (await this.#bytes(from, sizeBytes)).toString("utf8");
    }
    throw damaged("a link leads nowhere");
  }

  #block(number: number): Promise<Buffer> {
    return this.#bytes(number * this.#blockBytes, this.#blockBytes);
  }

  /** Of what describes files; the bytes of files themselves are not in the journal, unless somebody has asked for that. */
  async #bytes(offset: number, length: number): Promise<Buffer> {
    const bytes = await this.#disk.bytes(offset, length);
    if (this.#replayed.size === 0) return bytes;
    for (let number = Math.floor(offset / this.#blockBytes); number * this.#blockBytes < offset + length; number++) {
      const instead = this.#replayed.get(number);
      if (instead === undefined) continue;
      const block = await this.#disk.bytes(instead.place * this.#blockBytes, this.#blockBytes);
      if (instead.isEscaped) restoreMagic(block);
      const at = number * this.#blockBytes - offset;
      block.copy(bytes, Math.max(0, at), Math.max(0, -at));
    }
    return bytes;
  }

  #hasSuperblock(group: number): boolean {
    if (!this.#isSparse || group <= 1) return true;
    return [3, 5, 7].some((base) => {
      let power = base;
      while (power < group) power *= base;
      return power === group;
    });
  }

  async #inode(number: number): Promise<ExtInode> {
    if (number < 1 || number > this.#inodes) throw damaged(`there is no inode ${number}`);
    const group = Math.floor((number - 1) / this.#inodesPerGroup);
    const table = await this.#inodeTable(group);
    const at = table * this.#blockBytes + ((number - 1) % this.#inodesPerGroup) * this.#inodeBytes;
    const whole = await this.#bytes(at, this.#inodeBytes);
    const mode = whole.readUInt16LE(0);
    const type = typeOfMode(mode);
    return {
      type,
      sizeBytes: sizeOf(whole),
      mode: permissionsOf(mode),
      uid: whole.readUInt16LE(2) + whole.readUInt16LE(0x78) * 65_536,
      gid: whole.readUInt16LE(0x18) + whole.readUInt16LE(0x7a) * 65_536,
      modifiedAt: modifiedAt(whole),
      flags: whole.readUInt32LE(0x20),
      map: whole.subarray(0x28, 0x64),
      whole,
    };
  }

  /** Its first block. */
  async #inodeTable(group: number): Promise<number> {
    const perBlock = this.#blockBytes / this.#descriptorBytes;
    const meta = Math.floor(group / perBlock);
    const first = meta * perBlock;
    const isTogether = !has(this.#incompat, incompat.metaGroups) || meta < this.#firstMetaGroup;
    const apart = first * this.#blocksPerGroup + (this.#hasSuperblock(first) ? 1 : 0);
    const block = this.#firstBlock + (isTogether ? 1 + meta : apart);
    const at = block * this.#blockBytes + (group - first) * this.#descriptorBytes;
    const descriptor = await this.#bytes(at, this.#descriptorBytes);
    const high = this.#descriptorBytes >= 64 ? descriptor.readUInt32LE(0x28) : 0;
    return descriptor.readUInt32LE(8) + high * 2 ** 32;
  }

  *#names(block: Buffer): Generator<Entry<ExtInode>> {
    const hasTypes = has(this.#incompat, incompat.filetype);
    for (let at = 0; at + 8 <= block.length; ) {
      const inode = block.readUInt32LE(at);
      const given = block.readUInt16LE(at + 4);
      // Of blocks of 64 KiB: what does not fit into the number, the whole block, is said as 0 or 65535.
      const length = given === 0 || given === 65_535 ? block.length - at : given;
      const nameBytes = hasTypes ? block.readUInt8(at + 6) : block.readUInt16LE(at + 6);
      if (length < 8 || length % 4 !== 0 || at + length > block.length || nameBytes + 8 > length)
        throw damaged("a directory's entries overlap");
      const name = block.subarray(at + 8, at + 8 + nameBytes);
      at += length;
      if (inode === 0 || nameBytes === 0) continue;
      const shown = shownName(name);
      if (shown !== "." && shown !== "..") yield { name: shown, open: () => this.#inode(inode) };
    }
  }

  #runs(inode: ExtInode, fromBlock: number): AsyncGenerator<Run> {
    if (has(inode.flags, flags.extents)) {
      const depth = inode.map.readUInt16LE(6);
      if (depth > depthMax) throw damaged("a tree of extents is too deep");
      return this.#extentRuns(inode.map, depth, { fromBlock, next: 0, isRoot: true });
    }
    return this.#mappedRuns(inode, fromBlock);
  }

  /** Of a node of the tree. Each one below the root has at least one extent, and all are in order: so no tree is walked for ever. */
  async *#extentRuns(
    node: Buffer,
    depth: number,
    walk: { fromBlock: number; next: number; isRoot: boolean },
  ): AsyncGenerator<Run> {
    const count = node.readUInt16LE(2);
    const isSane =
      node.readUInt16LE(0) === extentMagic && node.readUInt16LE(6) === depth && 12 + count * 12 <= node.length;
    if (!isSane || (count === 0 && !walk.isRoot)) throw damaged("a tree of extents makes no sense");
    walk.isRoot = false;
    for (let each = 1; each <= count; each++) {
      const at = each * 12;
      const block = node.readUInt32LE(at);
      if (depth > 0) {
        if (each < count && node.readUInt32LE(at + 12) <= walk.fromBlock) continue;
        const child = node.readUInt32LE(at + 4) + node.readUInt16LE(at + 8) * 2 ** 32;
        yield* this.#extentRuns(await this.#block(child), depth - 1, walk);
        continue;
      }
      const length = node.readUInt16LE(at + 4);
      const isWritten = length <= writtenBlocksMax;
      const blocks = isWritten ? length : length - writtenBlocksMax;
      if (block < walk.next || blocks === 0) throw damaged("extents overlap");
      walk.next = block + blocks;
      const start = node.readUInt32LE(at + 8) + node.readUInt16LE(at + 6) * 2 ** 32;
      yield { block, count: blocks, start: isWritten ? start : null };
    }
  }

  /** Of files without extents: twelve blocks, and blocks of blocks of them. Neighbours are one run. */
  async *#mappedRuns({ map, sizeBytes }: ExtInode, fromBlock: number): AsyncGenerator<Run> {
    const end = Math.ceil(sizeBytes / this.#blockBytes);
    let run: { block: number; count: number; start: number } | null = null;
    for await (const { block, start } of this.#mapped(map, { fromBlock, end })) {
      if (run !== null && run.block + run.count === block && run.start + run.count === start) run.count += 1;
      else {
        if (run !== null) yield run;
        run = { block, count: 1, start };
      }
    }
    if (run !== null) yield run;
  }

  async *#mapped(
    map: Buffer,
    bounds: { fromBlock: number; end: number },
  ): AsyncGenerator<{ block: number; start: number }> {
    const perBlock = this.#blockBytes / 4;
    let first = 0;
    for (let each = 0; each < 15; each++) {
      const level = Math.max(0, each - 11);
      yield* this.#mappedBelow(map.readUInt32LE(each * 4), { level, first, ...bounds });
      first += perBlock ** level;
    }
  }

  async *#mappedBelow(
    pointer: number,
    walk: { level: number; first: number; fromBlock: number; end: number },
  ): AsyncGenerator<{ block: number; start: number }> {
    const { level, first, fromBlock, end } = walk;
    const perBlock = this.#blockBytes / 4;
    if (pointer === 0 || first >= end || first + perBlock ** level <= fromBlock) return;
    if (level === 0) {
      yield { block: first, start: pointer };
      return;
    }
    const pointers = await this.#block(pointer);
    const span = perBlock ** (level - 1);
    for (let each = 0; each < perBlock && first + each * span < end; each++)
      yield* this.#mappedBelow(pointers.readUInt32LE(each * 4), {
        ...walk,
        level: level - 1,
        first: first + each * span,
      });
  }

  /** What is kept in the inode itself: 60 bytes in the place of the map, the rest in the attribute `system.data`. */
  #inlineData({ map, whole }: ExtInode): Buffer {
    if (whole.length < 0x82) return map;
    const start = 128 + whole.readUInt16LE(0x80) + 4;
    if (start > whole.length || whole.readUInt32LE(start - 4) !== attributesMagic) return map;
    for (let at = start; at + 16 <= whole.length && whole.readUInt32LE(at) !== 0; ) {
      const nameBytes = whole.readUInt8(at);
      const name = whole.subarray(at + 16, at + 16 + nameBytes).toString("latin1");
      if (whole.readUInt8(at + 1) === 7 && name === "data") {
        const value = start + whole.readUInt16LE(at + 2);
        const bytes = whole.readUInt32LE(at + 8);
        if (value + bytes > whole.length) throw damaged("an attribute is outside its inode");
        return Buffer.concat([map, whole.subarray(value, value + bytes)]);
      }
      at += 16 + Math.ceil(nameBytes / 4) * 4;
    }
    return map;
  }
}

function sizeOf(inode: Buffer): number {
  const size = inode.readUInt32LE(4) + inode.readUInt32LE(0x6c) * 2 ** 32;
  if (size > Number.MAX_SAFE_INTEGER) throw damaged("a file is too large");
  return size;
}

/** Two bits of the extra part of a time extend its seconds beyond 2038. */
function modifiedAt(inode: Buffer): number {
  const seconds = inode.readInt32LE(0x10);
  const hasExtra = inode.length >= 0x8c && inode.readUInt16LE(0x80) >= 0x0c;
  return seconds + (hasExtra ? (inode.readUInt32LE(0x88) % 4) * 2 ** 32 : 0);
}

function refuseEncrypted(inode: ExtInode): void {
  if (has(inode.flags, flags.encrypted)) throw new FilesError("unfit", "It is encrypted by the file system.");
}
