import { FilesError } from "../errors.ts";
import type { Disk } from "./disk.ts";
import { openExt } from "./ext.ts";
import { openFat } from "./fat.ts";
import type { FileSystem } from "./file-system.ts";
import { type Partition, partitionsOf } from "./partitions.ts";
import { openXfs } from "./xfs.ts";

/** What is recognized, and not read. */
const others: readonly { kind: string; at: number; magic: string }[] = [
  ...[0, 512, 1024, 1536].map((sector) => ({ kind: "lvm", at: sector + 24, magic: "LVM2 001" })),
  { kind: "luks", at: 0, magic: "LUKS\xba\xbe" },
  { kind: "ntfs", at: 3, magic: "NTFS    " },
  { kind: "exfat", at: 3, magic: "EXFAT   " },
  { kind: "bitlocker", at: 3, magic: "-FVE-FS-" },
  { kind: "swap", at: 4086, magic: "SWAPSPACE2" },
  { kind: "btrfs", at: 0x1_0040, magic: "_BHRfS_M" },
  { kind: "iso9660", at: 0x8001, magic: "CD001" },
  { kind: "raid", at: 4096, magic: "\xfc\x4e\x2b\xa9" },
];

/** A partition, and what is in it. */
export interface PartitionDetails extends Partition {
  /** `ext4`, `xfs`, `vfat`, or another one that is recognized; null: unknown. */
  fileSystem: string | null;
  label: string | null;
  /** Whether changes wait in a journal; null: not known. */
  isUnclean: boolean | null;
  /** Why its files cannot be read; null: they can. */
  problem: string | null;
}

type Found = PartitionDetails & { files: FileSystem | null };

/** Of a disk without a table of partitions, the whole as number 0. */
export async function examine(disk: Disk): Promise<Found[]> {
  const whole = { number: 0, start: 0, length: disk.sizeBytes, name: null };
  // A table is believed before a file system that an earlier use may have left, except that of a FAT's boot sector.
  const partitions = (await openFat(disk)) === null ? await partitionsOf(disk) : [];
  if (partitions.length === 0) return [await look(disk, whole)];
  const found: Found[] = [];
  for (const partition of partitions) found.push(await look(disk.part(partition.start, partition.length), partition));
  return found;
}

async function look(disk: Disk, partition: Partition): Promise<Found> {
  const nothing = { ...partition, label: null, isUnclean: null, files: null };
  for (const { kind, at, magic } of others) {
    const is = disk.holds(at, magic.length) && (await disk.bytes(at, magic.length)).toString("latin1") === magic;
    if (is) return { ...nothing, fileSystem: kind, problem: `${kind} is not read` };
  }
  for (const [kind, open] of [
    ["xfs", openXfs],
    ["ext", openExt],
    ["vfat", openFat],
  ] as const) {
    try {
      const files = await open(disk);
      if (files === null) continue;
      const { label, isUnclean } = files;
      return { ...partition, fileSystem: files.kind, label, isUnclean, problem: null, files };
    } catch (error) {
      if (!(error instanceof FilesError)) throw error;
      return { ...nothing, fileSystem: kind, problem: error.message };
    }
  }
  return { ...nothing, fileSystem: null, problem: "no file system that can be read" };
}

/** The file system of a partition; without a number, of the only one that has one. @throws FilesError */
export async function chooseFileSystem(
  disk: Disk,
  number: number | null,
): Promise<{ files: FileSystem; disk: Disk; partition: number }> {
  const all = await examine(disk);
  const readable = all.filter(({ files }) => files !== null);
  if (number === null && readable.length > 1) {
    const choice = readable.map((each) => `${each.number} (${each.fileSystem})`).join(", ");
    throw new FilesError("unfit", `Several partitions have a file system: name one of ${choice}.`);
  }
  const chosen = number === null ? readable[0] : all.find((each) => each.number === number);
  if (number !== null && chosen === undefined) throw new FilesError("missing", `The disk has no partition ${number}.`);
  if (chosen?.files == null) throw new FilesError("unfit", reasonOf(chosen === undefined ? all : [chosen]));
  const { files, start, length } = chosen;
  return { files, disk: disk.part(start, length), partition: chosen.number };
}

function reasonOf(looked: readonly PartitionDetails[]): string {
  const seen = looked.map(({ number, problem }) => `${number === 0 ? "the disk" : `partition ${number}`}: ${problem}`);
  return `There is no file system that can be read (${seen.slice(0, 8).join("; ")}).`;
}
