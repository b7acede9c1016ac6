import { FilesError } from "../errors.ts";
import { type Disk, damaged, u64be, within53 } from "./disk.ts";
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
 * XFS, versions 4 and 5, as its authors describe it ("XFS Algorithms & Data Structures"). Numbers are big-endian. An inode's number says
 * where it is, so that no index of inodes is read; the hashes of directories are not used either.
 */

/** Entry types, sparse inodes, UUID of metadata, big times, repair needed, 64-bit counts of extents, exchanged ranges, parents. */
const incompatKnown = 0xff;
const incompatTypes = 0x1;
const features2Types = 0x200;
const isRealtime = 0x1;
const flag2 = { bigTime: 0x8, manyExtents: 0x10 } as const;
const format = { local: 1, extents: 2, tree: 3 } as const;
/** Beyond it, a directory has its hashes. */
const directoryBytesMax = 2 ** 35;
const freeTag = 0xffff;
const depthMax = 9;

const has = (mask: number, flag: number): boolean => (mask & flag) !== 0;

interface XfsInode extends FileDetails {
  format: number;
  /** The bytes that say where the file's are, or are the file's. */
  fork: Buffer;
  extentsCount: number;
}

/** In blocks. */
interface Run {
  block: number;
  count: number;
  start: number;
  isWritten: boolean;
}

/** Null where there is none. @throws FilesError for one that cannot be read */
export async function openXfs(disk: Disk): Promise<FileSystem | null> {
  if (!disk.holds(0, 512)) return null;
  const block = await disk.bytes(0, 512);
  if (block.toString("latin1", 0, 4) !== "XFSB") return null;
  return new Xfs(disk, block);
}

class Xfs implements FileSystem<XfsInode> {
  readonly kind = "xfs";
  readonly label: string | null;
  /** Its log does not say without being searched. */
  readonly isUnclean = null;
  readonly #disk: Disk;
  readonly #isV5: boolean;
  readonly #hasTypes: boolean;
  readonly #blockBytes: number;
  readonly #inodeBytes: number;
  readonly #directoryBlocks: number;
  readonly #root: number;
  readonly #groups: number;
  readonly #groupBlocks: number;
  /** Bits of a number of a block within its group, and of an inode within its block. */
  readonly #blockBits: number;
  readonly #inodeBits: number;

  constructor(disk: Disk, block: Buffer) {
    this.#disk = disk;
    const version = block.readUInt16BE(100) % 16;
    if (version !== 4 && version !== 5) throw new FilesError("unfit", `XFS of version ${version} is not read.`);
    this.#isV5 = version === 5;
    const features = this.#isV5 ? block.readUInt32BE(216) : 0;
    const unknown = features & ~incompatKnown;
    if (unknown !== 0)
      throw new FilesError("unfit", `This XFS has features that are not read: 0x${(unknown >>> 0).toString(16)}.`);
    this.#hasTypes = this.#isV5 ? has(features, incompatTypes) : has(block.readUInt32BE(200), features2Types);
    this.label = labelOf(block.subarray(108, 120));
    const logs = { block: 120, inode: 122, inodes: 123, group: 124, directory: 192 } as const;
    const log = (what: keyof typeof logs): number => block.readUInt8(logs[what]);
    const isSane =
      log("block") >= 9 &&
      log("block") <= 16 &&
      log("inode") >= 8 &&
      log("inode") <= 11 &&
      log("inode") <= log("block") &&
      log("inodes") === log("block") - log("inode") &&
      log("group") >= 1 &&
      log("group") <= 31 &&
      log("directory") + log("block") <= 16;
    if (!isSane) throw damaged("its superblock makes no sense");
    this.#blockBytes = 2 ** log("block");
    this.#inodeBytes = 2 ** log("inode");
    this.#directoryBlocks = 2 ** log("directory");
    this.#blockBits = log("group");
    this.#inodeBits = log("inodes");
    this.#root = u64be(block, 56);
    this.#groupBlocks = block.readUInt32BE(84);
    this.#groups = block.readUInt32BE(88);
    if (this.#groupBlocks === 0 || this.#groupBlocks > 2 ** this.#blockBits)
      throw damaged("its superblock makes no sense");
  }

  root(): Promise<XfsInode> {
    return this.#inode(this.#root);
  }

  async *entries(directory: XfsInode): AsyncGenerator<Entry<XfsInode>> {
    if (directory.format === format.local) {
      yield* this.#shortNames(directory.fork);
      return;
    }
    const unit = this.#directoryBlocks;
    const last = directoryBytesMax / this.#blockBytes;
    let parts: Buffer[] = [];
    for await (const { block, count, start } of this.#runs(directory, 0)) {
      for (let each = 0; each < count; each++) {
        if (block + each >= last) return;
        if ((block + each) % unit === 0) parts = [];
        parts.push(await this.#block(start, each));
        if ((block + each) % unit !== unit - 1) continue;
        if (parts.length !== unit) throw damaged("a directory has a gap");
        yield* this.#names(Buffer.concat(parts));
      }
    }
  }

  async *extents(file: XfsInode, fromByte: number): AsyncGenerator<FileExtent> {
    if (file.format === format.local) {
      const from = file.fork.subarray(0, file.sizeBytes);
      yield { at: 0, length: from.length, from };
      return;
    }
    for await (const { block, count, start, isWritten } of this.#runs(file, Math.floor(fromByte / this.#blockBytes))) {
      if (!isWritten) continue;
      const length = count * this.#blockBytes;
      yield { at: block * this.#blockBytes, length, from: this.#place(start, count) };
    }
  }

  async target(link: XfsInode): Promise<string> {
    const { sizeBytes } = link;
    if (sizeBytes > targetBytesMax) throw damaged("a link is too long");
    if (link.format === format.local) return link.fork.subarray(0, sizeBytes).toString("utf8");
    const parts: Buffer[] = [];
    let left = sizeBytes;
    for await (const { start, count } of this.#runs(link, 0)) {
      if (left === 0) break;
      // Of version 5, a header stands before each run.
      const header = this.#isV5 ? 56 : 0;
      const blocks = Math.min(count, Math.ceil((left + header) / this.#blockBytes));
      const bytes = await this.#disk.bytes(this.#place(start, blocks), blocks * this.#blockBytes);
      if (this.#isV5 && bytes.toString("latin1", 0, 4) !== "XSLM") throw damaged("a link has no header");
      const part = bytes.subarray(header, header + left);
      parts.push(part);
      left -= part.length;
    }
    if (left > 0) throw damaged("a link leads nowhere");
    return Buffer.concat(parts).toString("utf8");
  }

  /** Where blocks of the file system are, in bytes. Their number names their group and that within it. */
  #place(block: number, count: number): number {
    const group = Math.floor(block / 2 ** this.#blockBits);
    const within = block % 2 ** this.#blockBits;
    if (group >= this.#groups || within + count > this.#groupBlocks) throw damaged(`there is no block ${block}`);
    return (group * this.#groupBlocks + within) * this.#blockBytes;
  }

  #block(start: number, each = 0): Promise<Buffer> {
    return this.#disk.bytes(this.#place(start + each, 1), this.#blockBytes);
  }

  async #inode(number: number): Promise<XfsInode> {
    const perBlock = 2 ** this.#inodeBits;
    const at = this.#place(Math.floor(number / perBlock), 1) + (number % perBlock) * this.#inodeBytes;
    const inode = await this.#disk.bytes(at, this.#inodeBytes);
    const version = inode.readUInt8(4);
    if (inode.toString("latin1", 0, 2) !== "IN" || version < 1 || version > 3)
      throw damaged(`there is no inode ${number}`);
    if (version === 3 && this.#isV5 && inode.readBigUInt64BE(152) !== BigInt(number))
      throw damaged(`there is no inode ${number}`);
    const mode = inode.readUInt16BE(2);
    const type = typeOfMode(mode);
    if (type === "file" && has(inode.readUInt16BE(90), isRealtime))
      throw new FilesError("unfit", "It is on the realtime device, which is not read.");
    const flags2 = version === 3 ? Number(inode.readBigUInt64BE(120) % 256n) : 0;
    const literal = version === 3 ? 176 : 100;
    const attributes = inode.readUInt8(82) * 8;
    if (literal + attributes > inode.length) throw damaged("an inode's forks are outside of it");
    return {
      type,
      sizeBytes: u64be(inode, 56),
      mode: permissionsOf(mode),
      uid: inode.readUInt32BE(8),
      gid: inode.readUInt32BE(12),
      modifiedAt: has(flags2, flag2.bigTime)
        ? Number(inode.readBigUInt64BE(40) / 1_000_000_000n) - 2 ** 31
        : inode.readInt32BE(40),
      format: inode.readUInt8(5),
      fork: inode.subarray(literal, attributes === 0 ? inode.length : literal + attributes),
      extentsCount: has(flags2, flag2.manyExtents) ? u64be(inode, 24) : inode.readUInt32BE(76),
    };
  }

  /** Few names, in the inode. */
  *#shortNames(fork: Buffer): Generator<Entry<XfsInode>> {
    const count = fork.readUInt8(0);
    const inodeBytes = fork.readUInt8(1) > 0 ? 8 : 4;
    let at = 2 + inodeBytes;
    for (let each = 0; each < count; each++) {
      const nameBytes = at < fork.length ? fork.readUInt8(at) : 0;
      const name = shownName(fork.subarray(at + 3, at + 3 + nameBytes));
      const place = at + 3 + nameBytes + (this.#hasTypes ? 1 : 0);
      at = place + inodeBytes;
      if (nameBytes === 0 || at > fork.length) throw damaged("a directory is longer than its inode");
      const inode = inodeBytes === 4 ? fork.readUInt32BE(place) : u64be(fork, place);
      if (name !== "." && name !== "..") yield { name, open: () => this.#inode(inode) };
    }
  }

  /** A block of a directory, of any form. */
  *#names(block: Buffer): Generator<Entry<XfsInode>> {
    const magic = block.toString("latin1", 0, 4);
    const isOnly = magic === "XD2B" || magic === "XDB3";
    if (!isOnly && magic !== "XD2D" && magic !== "XDD3") throw damaged("a directory's block is none");
    // The only block of a directory ends with its hashes, and their number before the last four bytes.
    const hashes = isOnly ? 8 + block.readUInt32BE(block.length - 8) * 8 : 0;
    const end = block.length - hashes;
    for (let at = magic.endsWith("3") ? 64 : 16; at < end; ) {
      if (at + 8 > end) throw damaged("a directory's entries overlap");
      if (block.readUInt16BE(at) === freeTag) {
        const length = block.readUInt16BE(at + 2);
        if (length === 0 || length % 8 !== 0) throw damaged("a directory's entries overlap");
        at += length;
        continue;
      }
      const nameBytes = at + 8 < end ? block.readUInt8(at + 8) : 0;
      const length = Math.ceil((9 + nameBytes + (this.#hasTypes ? 1 : 0) + 2) / 8) * 8;
      if (nameBytes === 0 || at + length > end) throw damaged("a directory's entries overlap");
      const name = shownName(block.subarray(at + 9, at + 9 + nameBytes));
      const inode = block.readBigUInt64BE(at);
      at += length;
      if (name !== "." && name !== "..") yield { name, open: async () => this.#inode(within53(inode)) };
    }
  }

  async *#runs({ format: form, fork, extentsCount }: XfsInode, fromBlock: number): AsyncGenerator<Run> {
    const walk = { fromBlock, next: 0 };
    if (form === format.extents) {
      if (extentsCount * 16 > fork.length) throw damaged("an inode has more extents than room");
      yield* records(fork.subarray(0, extentsCount * 16), walk);
    } else if (form === format.tree) {
      const count = fork.readUInt16BE(2);
      const room = Math.floor((fork.length - 4) / 16);
      const level = fork.readUInt16BE(0);
      if (count === 0 || count > room || level < 1 || level > depthMax)
        throw damaged("a tree of extents makes no sense");
      yield* this.#below({ node: fork, keys: 4, room, count, level }, walk);
    } else throw damaged("an inode has no extents");
  }

  /** Of the nodes below one. Each has at least one extent, and all are in order: so no tree is walked for ever. */
  async *#below(
    { node, keys, room, count, level }: { node: Buffer; keys: number; room: number; count: number; level: number },
    walk: { fromBlock: number; next: number },
  ): AsyncGenerator<Run> {
    for (let each = 0; each < count; each++) {
      if (each + 1 < count && u64be(node, keys + (each + 1) * 8) <= walk.fromBlock) continue;
      const block = await this.#block(u64be(node, keys + room * 8 + each * 8));
      const magic = block.toString("latin1", 0, 4);
      if (magic !== "BMAP" && magic !== "BMA3") throw damaged("a tree of extents makes no sense");
      const header = magic === "BMA3" ? 72 : 24;
      const entries = block.readUInt16BE(6);
      const most = Math.floor((block.length - header) / 16);
      if (block.readUInt16BE(4) !== level - 1 || entries === 0 || entries > most)
        throw damaged("a tree of extents makes no sense");
      if (level === 1) yield* records(block.subarray(header, header + entries * 16), walk);
      else yield* this.#below({ node: block, keys: header, room: most, count: entries, level: level - 1 }, walk);
    }
  }
}

/** Sixteen bytes each: a bit for what was never written, 54 of the place in the file, 52 of that on the disk, 21 of the length. */
function* records(bytes: Buffer, walk: { next: number }): Generator<Run> {
  for (let at = 0; at < bytes.length; at += 16) {
    const [high, low] = [bytes.readBigUInt64BE(at), bytes.readBigUInt64BE(at + 8)];
    const block = within53((high >> 9n) % 2n ** 54n);
    const count = Number(low % 2n ** 21n);
    if (block < walk.next || count === 0) throw damaged("extents overlap");
    walk.next = block + count;
    yield { block, count, start: Number(((high % 512n) << 43n) + (low >> 21n)), isWritten: high >> 63n === 0n };
  }
}
