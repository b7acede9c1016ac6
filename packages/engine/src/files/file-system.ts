export type FileType =
  | "file"
  | "directory"
  | "link"
  | "block_device"
  | "character_device"
  | "pipe"
  | "socket"
  | "unknown";

/** What is told of a file. Null: the file system does not say. */
export interface FileDetails {
  type: FileType;
  sizeBytes: number;
  /** The permissions, with setuid, setgid and sticky. */
  mode: number | null;
  uid: number | null;
  gid: number | null;
  /** Seconds since 1970. */
  modifiedAt: number | null;
}

/** Bytes of a file: where they are on the disk of the file system, or themselves. Between them are zeros. */
export interface FileExtent {
  /** In the file. */
  at: number;
  length: number;
  from: number | Uint8Array;
}

export interface Entry<Node> {
  name: string;
  open(): Promise<Node>;
}

/**
 * A file system that is read. Whatever it says is checked before it is believed: FilesError `damaged`. No method goes deeper into folders
 * or follows a link. Lengths of lists are not bounded: who takes them stops.
 */
export interface FileSystem<Node extends FileDetails = FileDetails> {
  /** Such as `ext4`. */
  readonly kind: string;
  readonly label: string | null;
  /** Whether changes wait in a journal; null: not known. */
  readonly isUnclean: boolean | null;
  root(): Promise<Node>;
  /** In the directory's own order, without `.` and `..`. */
  entries(directory: Node): AsyncIterable<Entry<Node>>;
  /** Ascending; those that end before `fromByte` may be left out. The last may reach beyond the file's end. */
  extents(file: Node, fromByte: number): AsyncIterable<FileExtent>;
  target(link: Node): Promise<string>;
}

/** Bytes that no name can have in a path, and those that are no UTF-8, become U+FFFD; by what is shown, the file is found. */
export const shownName = (bytes: Buffer): string => bytes.toString("utf8").replaceAll(/[/\0]/g, "\u{fffd}");

/** Of a superblock: up to the first NUL. */
export function labelOf(bytes: Buffer): string | null {
  const end = bytes.indexOf(0);
  const label = shownName(end === -1 ? bytes : bytes.subarray(0, end)).trim();
  return label === "" ? null : label;
}

const types: Readonly<Record<number, FileType>> = {
  1: "pipe",
  2: "character_device",
  4: "directory",
  6: "block_device",
  8: "file",
  10: "link",
  12: "socket",
};

/** Of `st_mode`. */
export const typeOfMode = (mode: number): FileType => types[Math.floor(mode / 4096)] ?? "unknown";
export const permissionsOf = (mode: number): number => mode % 4096;

/** A link's target is no longer than a path can be. */
export const targetBytesMax = 4096;
