import { FilesError } from "../errors.ts";
import { chooseFileSystem, examine, type PartitionDetails } from "./detect.ts";
import { type Disk, damaged } from "./disk.ts";
import type { FileDetails, FileExtent, FileSystem, FileType } from "./file-system.ts";

/** Nothing is deeper: PATH_MAX of Linux. */
const pathBytesMax = 4096;
/** Stretches of a file that are told at a time. */
const extentsMax = 4096;

/** What is asked of a disk. `partition`: null: the only one with a file system. */
export type FilesRequest =
  | { kind: "partitions" }
  | { kind: "list"; path: string; partition: number | null; after: number; limit: number }
  | { kind: "extents"; path: string; partition: number | null; from: number };

/** A file as it is listed. `damaged`: it has an entry in its folder, and nothing that makes sense. */
export interface ListedFile {
  name: string;
  type: FileType | "damaged";
  size: number | null;
  mode: number | null;
  uid: number | null;
  gid: number | null;
  /** Seconds since 1970. */
  modifiedAt: number | null;
  /** Of a link: what it says, which is followed by nobody. */
  target: string | null;
}

export interface Listing {
  partition: number;
  fileSystem: string;
  files: ListedFile[];
  /** What to ask for `after`, to go on; null: there is no more. */
  next: number | null;
}

/** A file, and where its bytes are on the disk: all stretches that are not zeros from where was asked, up to `end`. */
export interface FileMap {
  sizeBytes: number;
  extents: FileExtent[];
  end: number;
}

export interface FilesAnswers {
  partitions: PartitionDetails[];
  list: Listing;
  extents: FileMap;
}

/** @throws FilesError, and what the disk cannot read */
export async function answerFiles(disk: Disk, request: FilesRequest): Promise<FilesAnswers[FilesRequest["kind"]]> {
  if (request.kind === "partitions") return (await examine(disk)).map(({ files: _, ...details }) => details);
  const names = namesOf(request.path);
  const chosen = await chooseFileSystem(disk, request.partition);
  const { files } = chosen;
  const node = await find(files, names);
  if (request.kind === "list") {
    if (node.type !== "directory") throw new FilesError("unfit", `${request.path} is not a directory: ${said(node)}.`);
    return { partition: chosen.partition, fileSystem: files.kind, ...(await list(files, node, request)) };
  }
  if (node.type !== "file") throw new FilesError("unfit", `${request.path} is not a file: ${said(node)}.`);
  return map(files, node, { from: request.from, disk: chosen.disk });
}

const said = ({ type }: FileDetails): string => `its type is ${type}`;

function namesOf(path: string): string[] {
  if (Buffer.byteLength(path) > pathBytesMax)
    throw new FilesError("invalid", `path: has more than ${pathBytesMax} bytes.`);
  if (path.includes("\0")) throw new FilesError("invalid", "path: has a NUL.");
  const names = path.split("/").filter((name) => name !== "" && name !== ".");
  if (names.includes("..")) throw new FilesError("invalid", "path: must not have .. in it.");
  return names;
}

/** Links on the way are not followed. */
async function find(files: FileSystem, names: readonly string[]): Promise<FileDetails> {
  let node = await files.root();
  let path = "";
  for (const name of names) {
    if (node.type === "link") {
      const target = await files.target(node);
      throw new FilesError(
        "unfit",
        `${path} is not a directory: it is a link to ${target}, and links are not followed.`,
      );
    }
    if (node.type !== "directory")
      throw new FilesError("unfit", `${path === "" ? "/" : path} is not a directory: ${said(node)}.`);
    path += `/${name}`;
    node = await findIn(files, node, { name, path });
  }
  return node;
}

async function findIn(files: FileSystem, directory: FileDetails, { name, path }: { name: string; path: string }) {
  for await (const entry of files.entries(directory)) {
    if (entry.name === name) return entry.open();
  }
  // FAT's names are the same in any case.
  if (files.kind === "vfat") {
    for await (const entry of files.entries(directory)) {
      if (entry.name.toLowerCase() === name.toLowerCase()) return entry.open();
    }
  }
  throw new FilesError("missing", `There is no ${path}.`);
}

async function list(
  files: FileSystem,
  directory: FileDetails,
  { after, limit }: { after: number; limit: number },
): Promise<{ files: ListedFile[]; next: number | null }> {
  const listed: ListedFile[] = [];
  let seen = 0;
  for await (const entry of files.entries(directory)) {
    seen += 1;
    if (seen <= after) continue;
    if (listed.length === limit) return { files: listed, next: after + limit };
    listed.push(await tell(files, entry));
  }
  return { files: listed, next: null };
}

async function tell(
  files: FileSystem,
  { name, open }: { name: string; open(): Promise<FileDetails> },
): Promise<ListedFile> {
  try {
    const node = await open();
    const { type, sizeBytes: size, mode, uid, gid, modifiedAt } = node;
    return { name, type, size, mode, uid, gid, modifiedAt, target: type === "link" ? await files.target(node) : null };
  } catch (error) {
    // Another file of the folder may be sound. What the disk cannot read is nothing of the file system's.
    if (!(error instanceof FilesError || error instanceof RangeError)) throw error;
    const nothing = { size: null, mode: null, uid: null, gid: null, modifiedAt: null, target: null };
    return { name, type: "damaged", ...nothing };
  }
}

async function map(
  files: FileSystem,
  node: FileDetails,
  { from, disk }: { from: number; disk: Disk },
): Promise<FileMap> {
  const { sizeBytes } = node;
  const extents: FileExtent[] = [];
  for await (const extent of files.extents(node, from)) {
    if (extent.at >= sizeBytes) break;
    if (extent.at + extent.length <= from) continue;
    const last = extents.at(-1);
    if (extents.length === extentsMax && last !== undefined) return { sizeBytes, extents, end: last.at + last.length };
    const length = Math.min(extent.length, sizeBytes - extent.at);
    if (typeof extent.from !== "number") extents.push({ ...extent, length });
    else if (disk.holds(extent.from, length)) extents.push({ at: extent.at, length, from: disk.start + extent.from });
    else throw damaged("a file has bytes beyond the end of the disk");
  }
  return { sizeBytes, extents, end: sizeBytes };
}
