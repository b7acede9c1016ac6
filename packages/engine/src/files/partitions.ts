import { type Disk, u64le } from "./disk.ts";

/** Most that are looked for. */
const partitionsMax = 256;
const logicalMax = 128;
const extendedTypes = [0x05, 0x0f, 0x85];
const protectiveType = 0xee;

/** A part of a disk. 0 is the whole of one that has no table. */
export interface Partition {
  number: number;
  /** Bytes. */
  start: number;
  length: number;
  /** By its table; null: it has none. */
  name: string | null;
}

/** Those of a disk, by its GPT or MBR, in the order of their numbers; none where it has no table. */
export async function partitionsOf(disk: Disk): Promise<Partition[]> {
  if (!disk.holds(0, 512)) return [];
  const mbr = await disk.bytes(0, 512);
  if (mbr.readUInt16LE(510) !== 0xaa55) return [];
  const entries = entriesOf(mbr);
  if (entries.some(({ type }) => type === protectiveType)) {
    for (const sectorBytes of [512, 4096]) {
      const found = await gptOf(disk, sectorBytes);
      if (found !== null) return found;
    }
  }
  return mbrOf(disk, entries);
}

interface MbrEntry {
  isBootable: boolean;
  type: number;
  /** Sectors of 512 bytes. */
  start: number;
  length: number;
}

const entriesOf = (sector: Buffer): MbrEntry[] =>
  [446, 462, 478, 494].map((at) => ({
    isBootable: sector.readUInt8(at) % 128 === 0,
    type: sector.readUInt8(at + 4),
    start: sector.readUInt32LE(at + 8),
    length: sector.readUInt32LE(at + 12),
  }));

async function mbrOf(disk: Disk, entries: readonly MbrEntry[]): Promise<Partition[]> {
  // The end of a boot sector of another kind is no table.
  if (entries.some(({ isBootable }) => !isBootable)) return [];
  const found: Partition[] = [];
  let logical = 5;
  const add = (number: number, start: number, length: number): void => {
    const isInside = length > 0 && start > 0 && start * 512 < disk.sizeBytes;
    if (isInside) found.push({ number, start: start * 512, length: length * 512, name: null });
  };
  for (const [at, { type, start, length }] of entries.entries()) {
    if (type === 0 || type === protectiveType) continue;
    if (!extendedTypes.includes(type)) add(at + 1, start, length);
    else
      for await (const inner of logicalOf(disk, start)) {
        add(logical, inner.start, inner.length);
        logical += 1;
      }
  }
  return found.sort((one, other) => one.number - other.number);
}

/** Partitions within an extended one: a chain of tables with one each. One that goes in circles ends with the most that are looked for. */
async function* logicalOf(disk: Disk, extended: number): AsyncGenerator<{ start: number; length: number }> {
  let at = extended;
  const seen = new Set<number>();
  while (seen.size < logicalMax && !seen.has(at) && disk.holds(at * 512, 512)) {
    seen.add(at);
    const table = await disk.bytes(at * 512, 512);
    if (table.readUInt16LE(510) !== 0xaa55) return;
    const [own, next] = entriesOf(table);
    if (own !== undefined && own.type !== 0 && !extendedTypes.includes(own.type))
      yield { start: at + own.start, length: own.length };
    if (next === undefined || !extendedTypes.includes(next.type) || next.start === 0) return;
    at = extended + next.start;
  }
}

async function gptOf(disk: Disk, sectorBytes: number): Promise<Partition[] | null> {
  if (!disk.holds(sectorBytes, 512)) return null;
  const header = await disk.bytes(sectorBytes, 512);
  if (header.toString("latin1", 0, 8) !== "EFI PART") return null;
  const [table, count, entryBytes] = [
    u64le(header, 72) * sectorBytes,
    header.readUInt32LE(80),
    header.readUInt32LE(84),
  ];
  if (entryBytes < 128 || entryBytes > 4096 || entryBytes % 8 !== 0) return null;
  const found: Partition[] = [];
  for (let each = 0; each < Math.min(count, partitionsMax); each++) {
    if (!disk.holds(table + each * entryBytes, 128)) break;
    const entry = await disk.bytes(table + each * entryBytes, 128);
    if (entry.subarray(0, 16).every((byte) => byte === 0)) continue;
    const [first, last] = [u64le(entry, 32) * sectorBytes, u64le(entry, 40) * sectorBytes];
    if (first === 0 || last < first || first >= disk.sizeBytes) continue;
    const text = entry.toString("utf16le", 56, 128).toWellFormed();
    const end = text.indexOf("\0");
    const name = end === -1 ? text : text.slice(0, end);
    found.push({ number: each + 1, start: first, length: last - first + sectorBytes, name: name === "" ? null : name });
  }
  return found;
}
