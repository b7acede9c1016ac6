import { backupIdPattern, containerProblem, reservedContainer } from "@tephra/format";
import { InvalidContainerError, InvalidObjectNameError } from "../errors.ts";
import type { EncryptedLabel } from "../format/encrypted-label.ts";
import type { WriteContext } from "../run/run-context.ts";
import type { OnPassedOver } from "./passed-over.ts";

export interface ObjectKey {
  container: string;
  name: string;
}

/** Where the objects of one backup are stored. */
export interface BackupPlace {
  container: string;
  prefix: string;
}

export interface ListedObject {
  name: string;
  sizeBytes: number;
  modifiedAt: Date;
  /** Hex MD5 of the stored bytes, where the store lists one. */
  md5?: string;
}

/** Something of this service that belongs to no backup. `modifiedAt` is the time of its newest part. */
export type Leftover = { modifiedAt: Date } & (
  | { kind: "staged"; operationId: string }
  /** An object that was being written, under a temporary name. */
  | { kind: "temporary"; name: string }
  /** A multi-part upload that was never completed. */
  | { kind: "upload"; container: string; name: string; id: string }
);

/**
 * Where backups are stored. Dumb on purpose: no retry, no cache, no knowledge of the format beyond the names it generates. Every method
 * throws RepositoryUnavailableError when the storage fails, with `retryable` saying whether waiting may help; RepositoryDeniedError when
 * it denies these credentials, RepositoryThrottledError when it wants fewer requests.
 */
export interface Repository extends AsyncDisposable {
  readonly driver: "posix" | "nfs" | "s3" | "swift";
  /**
   * `files`: puts are written piece by piece, with a fence check before each, and probing for write access costs next to nothing.
   * `objects`: the whole body is sent once per attempt.
   */
  readonly storage: "files" | "objects";
  /** Cinder's name for the backup service: the driver's class path there. */
  readonly service: string;
  /**
   * True when a put writes as it reads and has finished with a chunk as soon as it asks for the next one, so that the chunk's memory may
   * be reused. Otherwise chunks must stay unmodified until the put has ended.
   */
  readonly streamsPuts?: boolean;
  /**
   * The URL's container, which must respond; other containers may belong to others. Null where the repository is a folder: subfolders
   * that cannot be listed may belong to the file system or to others.
   */
  readonly ownContainer: string | null;
  /** Present when backups can be encrypted here: master keys are available. */
  readonly encryption?: RepositoryEncryption;

  /**
   * Reads the marker that makes a place a repository; needs no write permission. RepositoryUnavailableError when the place is missing or
   * cannot be read; RepositoryUnmarkedError when it exists without a marker, like an unmounted share.
   */
  identity(): Promise<{ id: string }>;
  /**
   * Resolves when objects can be stored, as far as can be checked without leaving one: read and write permissions are separate. Asks the
   * service each time. Throws what a put would: RepositoryDeniedError, RepositoryUnavailableError that is not retryable.
   */
  checkWritable(): Promise<void>;
  /** How many bytes can still be stored, by the file system or a quota; null: nothing says. */
  freeBytes(): Promise<number | null>;
  /** Warnings for an operator about this place, in sentences; it can be written nevertheless. Empty when there are none. */
  remarks(): Promise<string[]>;
  /** Creates the place and its marker where absent. Idempotent; concurrent callers get the same identity. */
  initialize(): Promise<{ id: string }>;

  /** The container of a backup whose request names none. */
  defaultContainer(backupId: string): string;
  /** The prefix of a backup's object names, in the form of the corresponding Cinder driver. */
  defaultPrefix(input: { volumeId: string; backupId: string; at: Date }): string;
  /** Creates the container if it does not exist. */
  ensureContainer(container: string): Promise<void>;

  /**
   * Stores an object unless the name is taken; durable when it resolves, also when the object existed before. A name taken by equal bytes
   * gives "exists", by other bytes ObjectConflictError. The object appears completely or not at all; after a failure or abort nothing is
   * left under the name. The fence is called before every write and before publishing. RepositoryFullError when space runs out. The body
   * is consumed at most once, and its chunks must stay unmodified until the put has ended.
   */
  putIfAbsent(
    key: ObjectKey,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    ctx: WriteContext,
  ): Promise<"stored" | "exists">;
  /**
   * Begins a new object whose bytes threads write themselves; only where objects are files. Null, with nothing begun, where the name is
   * taken or the written bytes are to be seen here: it is then put as a body. The fence is called before anything is created.
   */
  openDraft?(key: ObjectKey, ctx: WriteContext): Promise<ObjectDraft | null>;
  /**
   * Stores under `to` the bytes that are stored under `from`, as they are; the storage copies them itself wherever it can. Atomic, durable
   * and adopting as putIfAbsent, and so is its result. ObjectMissingError for `from`. An encrypted object is bound to its name and is not
   * copied: InvalidObjectNameError.
   */
  copyIfAbsent(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<"stored" | "exists">;
  /** Streams an object or part of it; a part that extends past the end is truncated. Chunks belong to the reader. ObjectMissingError. */
  get(
    key: ObjectKey,
    options?: { offset?: number; length?: number; signal?: AbortSignal },
  ): AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** Opens an object stored as a file, so that threads can read it directly; only where objects are files. */
  openFile?(key: ObjectKey): Promise<ObjectFile>;
  /**
   * The link-free path of an object stored as a file, for threads that open many small ones themselves: they compare it with the location
   * of the file they opened. It need not exist.
   */
  filePath?(key: ObjectKey): Promise<string>;
  /** ObjectMissingError. */
  stat(key: ObjectKey): Promise<{ sizeBytes: number }>;
  /**
   * Objects whose names start with the prefix, in any order, in bounded memory; a missing container is empty. Times are the storage's. An
   * entry that cannot be read is an error, or is skipped and reported if there is a callback.
   */
  list(container: string, prefix: string, onPassedOver?: OnPassedOver): AsyncIterable<ListedObject>;
  /** Removes an object; removing a missing one is success. */
  remove(key: ObjectKey): Promise<void>;
  /**
   * Every container that may hold backups, the repository's own first; excludes internal ones. Yields no others where they cannot be
   * listed.
   */
  containers(onPassedOver?: OnPassedOver): AsyncIterable<string>;
  /**
   * Everything of this service that is neither a backup, a record nor the marker, in any order: staged objects, and leftovers of puts
   * that did not complete. Uploads are searched for in `containers` and in the repository's own, where these credentials allow it.
   */
  leftovers(containers: readonly string[], onPassedOver?: OnPassedOver): AsyncIterable<Leftover>;
  /** Removes an item yielded by leftovers(); a missing one is success. The fence is called before every removal. */
  removeLeftover(leftover: Leftover, ctx: WriteContext): Promise<void>;
  /** Whether the place is missing, or every object in it, at any depth, has a name that `belongs` accepts. */
  holdsOnly(belongs: (name: string) => boolean): Promise<boolean>;
}

/**
 * Encryption at rest. Objects of a backup that was begun with a key are encrypted when put and decrypted when read, and their sizes are
 * plaintext sizes; all others pass through unchanged.
 */
export interface RepositoryEncryption {
  /** The same repository without encryption: objects in their stored form. */
  readonly stored: Repository;
  /** Versions of the master keys that are given now, the current one first. Throws as opening the repository does. */
  keyVersions(): Promise<string[]>;
  /** Creates a new backup's data key before its first object is put; an existing key is kept. One caller per backup at a time. */
  beginBackup(place: BackupPlace, ctx: WriteContext): Promise<void>;
  /**
   * Checks that the backup's data key can be unwrapped. InvalidBackupError when there is none, EncryptionKeyMissingError,
   * EncryptionKeyWrongError.
   */
  requireKey(place: BackupPlace): Promise<void>;
  /** Whether a backup was begun with a data key, whether or not that can be unwrapped here. */
  isEncrypted(place: BackupPlace): Promise<boolean>;
  /** Like putIfAbsent, for the backup's `_metadata`, whose description stays unencrypted. */
  putMetadata(
    place: BackupPlace,
    metadata: { label: EncryptedLabel; body: AsyncIterable<Uint8Array> },
    ctx: WriteContext,
  ): Promise<void>;
  /** Wraps the backup's data key with the current master key alone. Can be interrupted and repeated. Returns whether anything changed. */
  rewrapKey(place: BackupPlace, ctx: WriteContext): Promise<boolean>;
}

/** An object stored as a file, open until disposed. */
export interface ObjectFile extends AsyncDisposable {
  readonly descriptor: number;
  readonly sizeBytes: number;
}

/** The file of an object that has no name yet. Disposing of it removes what was not stored. */
export interface ObjectDraft extends AsyncDisposable {
  /** Open for writing; what is left out reads as zeros. Whoever writes keeps to the fence of openDraft's caller. */
  readonly descriptor: number;
  /** Gives the object, of that length, its name: once, when nobody writes any more. Durable, atomic and adopting as putIfAbsent. */
  store(lengthBytes: number): Promise<"stored" | "exists">;
}

/** Operation ids, which name the staging containers. */
export const operationIdPattern = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Records of imported backups, named by their ids. */
export const recordsContainer = `${reservedContainer}/records`;

/** The container for an operation's staged slices and maps. Throws InvalidObjectNameError for an invalid id. */
export function stagingContainer(operationId: string): string {
  if (!backupIdPattern.test(operationId)) {
    throw new InvalidObjectNameError(`Not the id of an operation: ${JSON.stringify(operationId.slice(0, 100))}.`);
  }
  return `${reservedContainer}/${operationId}`;
}

/** Parses a user-supplied container name by the naming rules. InvalidContainerError. */
export function parseContainer(text: string): string {
  const problem = containerProblem(text);
  if (problem === null) return text;
  throw new InvalidContainerError(`Invalid container ${JSON.stringify(text.slice(0, 300))}: ${problem}.`);
}
