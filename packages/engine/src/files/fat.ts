import { type Disk, damaged } from "./disk.ts";
import { type Entry, type FileDetails, type FileExtent, type FileSystem, labelOf, shownName } from "./file-system.ts";

/* FAT with 12, 16 and 32 bits, and long names, as Microsoft's "FAT File System Specification" has it. */

const attribute = { volume: 0x08, directory: 0x10, longName: 0x0f } as const;
const entryBytes = 32;
/** A directory has at most 65,536 entries. */
const directoryBytesMax = 65_536 * entryBytes;
/** Of a name: 255 characters. */
const longPartsMax = 20;

interface FatFile extends FileDetails {
  /** 0: none; of the root of the older kinds, too. */
  cluster: number;
  isRoot: boolean;
}

interface Layout {
  bits: 12 | 16 | 32;
  table: number;
  tableBytes: number;
  /** Of the older kinds. */
  root: { at: number; length: number };
  data: number;
  clusterBytes: number;
  clusters: number;
  rootCluster: number;
  label: string | null;
}

/** Null where there is none. */
export async function openFat(disk: Disk): Promise<FileSystem | null> {
  const layout = disk.holds(0, 512) ? layoutOf(await disk.bytes(0, 512), disk.sizeBytes) : null;
  return layout && new Fat(disk, layout);
}

const isPower = (value: number): boolean => value > 0 && Number.isInteger(Math.log2(value));

function layoutOf(sector: Buffer, diskBytes: number): Layout | null {
  const sectorBytes = sector.readUInt16LE(11);
  const perCluster = sector.readUInt8(13);
  const reserved = sector.readUInt16LE(14);
  const tables = sector.readUInt8(16);
  const isFat =
    sector.readUInt16LE(510) === 0xaa55 &&
    [0xeb, 0xe9].includes(sector.readUInt8(0)) &&
    isPower(sectorBytes) &&
    sectorBytes >= 512 &&
    sectorBytes <= 4096 &&
    isPower(perCluster) &&
    sectorBytes * perCluster <= 256 * 1024 &&
    reserved > 0 &&
    [1, 2].includes(tables) &&
    sector.readUInt8(21) >= 0xf0;
  if (!isFat) return null;
  const rootBytes = sector.readUInt16LE(17) * entryBytes;
  const is32 = sector.readUInt16LE(22) === 0;
  const tableBytes = (is32 ? sector.readUInt32LE(36) : sector.readUInt16LE(22)) * sectorBytes;
  const table = reserved * sectorBytes;
  const rootAt = table + tables * tableBytes;
  const data = rootAt + Math.ceil(rootBytes / sectorBytes) * sectorBytes;
  const volumeBytes = Math.min(diskBytes, (sector.readUInt16LE(19) || sector.readUInt32LE(32)) * sectorBytes);
  const clusterBytes = sectorBytes * perCluster;
  const counted = Math.floor((volumeBytes - data) / clusterBytes);
  if (tableBytes === 0 || counted < 1) return null;
  const bits = is32 ? 32 : counted < 4085 ? 12 : 16;
  const clusters = Math.min(counted, Math.floor((tableBytes * 8) / bits) - 2);
  const rootCluster = is32 ? sector.readUInt32LE(44) : 0;
  const label = labelOf(sector.subarray(is32 ? 71 : 43, is32 ? 82 : 54));
  const isNamed = label !== null && label !== "NO NAME";
  const root = { at: rootAt, length: rootBytes };
  return { bits, table, tableBytes, root, data, clusterBytes, clusters, rootCluster, label: isNamed ? label : null };
}

class Fat implements FileSystem<FatFile> {
  readonly kind = "vfat";
  readonly label: string | null;
  readonly isUnclean = false;
  readonly #disk: Disk;
  readonly #layout: Layout;

  constructor(disk: Disk, layout: Layout) {
    this.#disk = disk;
    this.#layout = layout;
    this.label = layout.label;
  }

  async root(): Promise<FatFile> {
    const nothing = { sizeBytes: 0, mode: null, uid: null, gid: null, modifiedAt: null };
    return { ...nothing, type: "directory", cluster: this.#layout.rootCluster, isRoot: true };
  }

  async *entries(directory: FatFile): AsyncGenerator<Entry<FatFile>> {
    let long: LongName | null = null;
    for await (const cluster of this.#pieces(directory)) {
      for (let at = 0; at + entryBytes <= cluster.length; at += entryBytes) {
        const entry = cluster.subarray(at, at + entryBytes);
        if (entry[0] === 0) return;
        const kind = entry.readUInt8(11);
        if (entry[0] === 0xe5) long = null;
        else if (kind % 64 === attribute.longName) long = addPart(long, entry);
        else {
          const name = long?.next === 0 && long.sum === checksum(entry) ? nameOfParts(long.parts) : shortName(entry);
          long = null;
          if (name === "." || name === ".." || (kind & attribute.volume) !== 0) continue;
          const file = fileOf(entry, this.#layout.bits);
          yield { name, open: async () => file };
        }
      }
    }
  }

  async *extents(file: FatFile, fromByte: number): AsyncGenerator<FileExtent> {
    const { clusterBytes, data } = this.#layout;
    let extent: { at: number; length: number; from: number } | null = null;
    let at = 0;
    for await (const cluster of this.#chain(file.cluster)) {
      if (at >= file.sizeBytes) break;
      const from = data + (cluster - 2) * clusterBytes;
      if (extent !== null && extent.from + extent.length === from) extent.length += clusterBytes;
      else {
        if (extent !== null && extent.at + extent.length > fromByte) yield extent;
        extent = { at, length: clusterBytes, from };
      }
      at += clusterBytes;
    }
    if (at < file.sizeBytes) throw damaged("a file has fewer clusters than bytes");
    if (extent !== null) yield extent;
  }

  async target(): Promise<string> {
    throw damaged("FAT has no links");
  }

  async *#pieces(directory: FatFile): AsyncGenerator<Buffer> {
    const { root, bits, clusterBytes, data } = this.#layout;
    if (directory.isRoot && bits !== 32) {
      for (let at = 0; at < root.length; at += 4096)
        yield await this.#disk.bytes(root.at + at, Math.min(4096, root.length - at));
      return;
    }
    let read = 0;
    for await (const cluster of this.#chain(directory.cluster)) {
      if (read >= directoryBytesMax) throw damaged("a directory has no end");
      read += clusterBytes;
      yield await this.#disk.bytes(data + (cluster - 2) * clusterBytes, clusterBytes);
    }
  }

  /** @throws FilesError damaged when it has more clusters than there are: it goes in circles */
  async *#chain(first: number): AsyncGenerator<number> {
    const { clusters, bits } = this.#layout;
    const last = { 12: 0xff7, 16: 0xfff7, 32: 0xfff_fff7 }[bits];
    let count = 0;
    for (let cluster = first; cluster !== 0 && cluster < last; cluster = await this.#next(cluster)) {
      count += 1;
      if (cluster < 2 || cluster >= clusters + 2) throw damaged(`there is no cluster ${cluster}`);
      if (count > clusters) throw damaged("a chain of clusters goes in circles");
      yield cluster;
    }
  }

  async #next(cluster: number): Promise<number> {
    const { table, bits } = this.#layout;
    if (bits === 32) return (await this.#disk.bytes(table + cluster * 4, 4)).readUInt32LE(0) % 2 ** 28;
    if (bits === 16) return (await this.#disk.bytes(table + cluster * 2, 2)).readUInt16LE(0);
    const pair = (await this.#disk.bytes(table + Math.floor(cluster * 1.5), 2)).readUInt16LE(0);
    return cluster % 2 === 1 ? Math.floor(pair / 16) : pair % 4096;
  }
}

function fileOf(entry: Buffer, bits: number): FatFile {
  const isDirectory = (entry.readUInt8(11) & attribute.directory) !== 0;
  const high = bits === 32 ? entry.readUInt16LE(20) % 4096 : 0;
  return {
    type: isDirectory ? "directory" : "file",
    sizeBytes: isDirectory ? 0 : entry.readUInt32LE(28),
    mode: null,
    uid: null,
    gid: null,
    modifiedAt: timeOf(entry.readUInt16LE(24), entry.readUInt16LE(22)),
    cluster: entry.readUInt16LE(26) + high * 65_536,
    isRoot: false,
  };
}

/** Local times, in a zone that nobody has noted: taken as UTC. */
function timeOf(date: number, time: number): number | null {
  const [year, month, day] = [1980 + Math.floor(date / 512), Math.floor(date / 32) % 16, date % 32];
  if (month < 1 || month > 12 || day < 1) return null;
  const [hour, minute, second] = [Math.floor(time / 2048), Math.floor(time / 32) % 64, (time % 32) * 2];
  return Date.UTC(year, month - 1, day, hour, minute, second) / 1000;
}

/** Parts of a long name stand before the entry, the last first. `next`: how many are to come. */
interface LongName {
  parts: Buffer[];
  next: number;
  sum: number;
}

function addPart(before: LongName | null, entry: Buffer): LongName | null {
  const order = entry.readUInt8(0);
  const number = order % 64;
  const sum = entry.readUInt8(13);
  const part = Buffer.concat([entry.subarray(1, 11), entry.subarray(14, 26), entry.subarray(28, 32)]);
  if (order >= 64) return number >= 1 && number <= longPartsMax ? { parts: [part], next: number - 1, sum } : null;
  if (before === null || number !== before.next || sum !== before.sum) return null;
  return { parts: [part, ...before.parts], next: number - 1, sum };
}

function nameOfParts(parts: readonly Buffer[]): string {
  const text = Buffer.concat(parts).toString("utf16le").toWellFormed();
  const end = text.indexOf("\0");
  return (end === -1 ? text : text.slice(0, end)).replaceAll("/", "\u{fffd}");
}

const checksum = (entry: Buffer): number =>
  entry.subarray(0, 11).reduce((sum, byte) => ((sum % 2) * 128 + Math.floor(sum / 2) + byte) % 256, 0);

/** Bytes above 127 are of a code page that nobody has noted. */
function shortName(entry: Buffer): string {
  const bytes = Buffer.from(entry.subarray(0, 11));
  if (bytes[0] === 0x05) bytes[0] = 0xe5;
  const shown = [...bytes].map((byte) => (byte < 128 ? String.fromCharCode(byte) : "\u{fffd}")).join("");
  const lower = entry.readUInt8(12);
  const part = (from: number, to: number, isLower: boolean): string => {
    const text = shown.slice(from, to).trimEnd();
    return isLower ? text.toLowerCase() : text;
  };
  const [base, extension] = [part(0, 8, (lower & 8) !== 0), part(8, 11, (lower & 16) !== 0)];
  return shownName(Buffer.from(extension === "" ? base : `${base}.${extension}`));
}
