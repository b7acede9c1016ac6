import { backupIdPattern, containerProblem, reservedContainer } from "@tephra/format";
import { InvalidContainerError, InvalidObjectNameError } from "../errors.ts";
import type { EncryptedLabel } from "../format/encrypted-label.ts";
import type { WriteContext } from "../run/run-context.ts";
import type { OnPassedOver } from "./passed-over.ts";

export interface ObjectKey {
  container: string;
  name: string;
}

/** Where the objects of one backup lie. */
export interface BackupPlace {
  container: string;
  prefix: string;
}

export interface ListedObject {
  name: string;
  sizeBytes: number;
  modifiedAt: Date;
  /** Hex MD5 of the bytes as stored, where the store lists one. */
  md5?: string;
}

/** What is of this service and no backup. `modifiedAt` is of the youngest part. */
export type Leftover = { modifiedAt: Date } & (
  | { kind: "staged"; operationId: string }
  /** What was to become an object, under a name of its own. */
  | { kind: "temporary"; name: string }
  /** A large object that was never completed. */
  | { kind: "upload"; container: string; name: string; id: string }
);

/**
 * Where backups are stored. Dumb on purpose: no retry, no cache, no knowledge of the format beyond the names it hands out.
 * Every method throws RepositoryUnavailableError when the storage fails, with `retryable` saying whether waiting may help;
 * RepositoryDeniedError when it refuses these credentials, RepositoryThrottledError when it wants fewer requests.
 */
export interface Repository extends AsyncDisposable {
  readonly driver: "posix" | "nfs" | "s3" | "swift";
  /**
   * `files`: what is put is written piece by piece, the fence is asked before each, and asking whether it can be costs next to nothing.
   * `objects`: it is sent whole, once for every try.
   */
  readonly storage: "files" | "objects";
  /** What Cinder calls the service of a backup: the driver's class path there. */
  readonly service: string;
  /**
   * True when a put writes as it reads and is done with a chunk as soon as it asks for the next one, so that the chunk's memory
   * may be used again. Otherwise chunks must keep their bytes until the put has ended.
   */
  readonly streamsPuts?: boolean;
  /**
   * The container of the URL, which has to answer; others may be somebody else's. Null where a folder is the repository, and whatever in it
   * cannot be listed may be of the file system or of others.
   */
  readonly ownContainer: string | null;
  /** Present when backups can be encrypted here: master keys are at hand. */
  readonly encryption?: RepositoryEncryption;

  /**
   * Reads the marker that makes a place a repository; needs no right to write. RepositoryUnavailableError when the place is missing or
   * cannot be read; RepositoryUnmarkedError when it is there without a marker, as an unmounted share is.
   */
  identity(): Promise<{ id: string }>;
  /**
   * Resolves where objects can be stored, as far as can be told without leaving one: reading and writing are rights of their own. Asks the
   * service each time. Throws what a put would: RepositoryDeniedError, RepositoryUnavailableError that is not retryable.
   */
  checkWritable(): Promise<void>;
  /** What an operator should know about this place, in sentences; it can be written. Empty for what is as it should be. */
  remarks(): Promise<string[]>;
  /** Creates the place and its marker where absent. Idempotent; two at once agree on one identity. */
  initialize(): Promise<{ id: string }>;

  /** The container of a backup for which the request names none. */
  defaultContainer(backupId: string): string;
  /** The start of a backup's object names, in the form of the Cinder driver of the same kind. */
  defaultPrefix(input: { volumeId: string; backupId: string; at: Date }): string;
  /** Creates the container where absent. */
  ensureContainer(container: string): Promise<void>;

  /**
   * Stores an object unless the name is taken; durable when it resolves, including an object that was there before. A name
   * that is taken by equal bytes gives "exists", by other bytes ObjectConflictError. The object appears whole or not at all;
   * after a failure or abort nothing stays behind under the name. The fence is called before every write and before publishing.
   * RepositoryFullError when space runs out. The body is consumed at most once, and its
   * chunks must keep their bytes until the put has ended.
   */
  putIfAbsent(
    key: ObjectKey,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    ctx: WriteContext,
  ): Promise<"stored" | "exists">;
  /** Streams an object, or part of it; a part beyond the end is cut. Chunks belong to the reader. ObjectMissingError. */
  get(
    key: ObjectKey,
    options?: { offset?: number; length?: number; signal?: AbortSignal },
  ): AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** Opens an object that is a file, so that threads can read it by themselves; only where objects are files. */
  openFile?(key: ObjectKey): Promise<ObjectFile>;
  /**
   * The path of an object that is a file, free of links, for threads that open many small ones by themselves: they compare it with where
   * the file that they opened lies. It need not exist.
   */
  filePath?(key: ObjectKey): Promise<string>;
  /** ObjectMissingError. */
  stat(key: ObjectKey): Promise<{ sizeBytes: number }>;
  /**
   * Objects whose names start with the prefix, in any order, in bounded memory; a missing container is empty. Times are the storage's. What
   * cannot be looked at is an error, or passed over where somebody wants to be told.
   */
  list(container: string, prefix: string, onPassedOver?: OnPassedOver): AsyncIterable<ListedObject>;
  /** Removes an object; a missing one is success. */
  remove(key: ObjectKey): Promise<void>;
  /**
   * Every container that may hold backups, the repository's own first; not the ones of this service. Where others cannot be listed there are
   * none.
   */
  containers(onPassedOver?: OnPassedOver): AsyncIterable<string>;
  /**
   * Everything of this service that is neither a backup, a record nor the marker, in any order: what was staged, and what puts that did
   * not end have left. Uploads are looked for in `containers` and in the repository's own, where these rights allow it.
   */
  leftovers(containers: readonly string[], onPassedOver?: OnPassedOver): AsyncIterable<Leftover>;
  /** Removes what leftovers() has shown; what is gone is success. The fence is called before every removal. */
  removeLeftover(leftover: Leftover, ctx: WriteContext): Promise<void>;
  /** Whether the place is missing, or every object in it, at whatever depth, has a name that `belongs` accepts. */
  holdsOnly(belongs: (name: string) => boolean): Promise<boolean>;
}

/**
 * Encryption at rest. Objects of a backup that has been begun with a key are encrypted when they are put and decrypted when they are
 * read, and their sizes are those of the text; all others pass as they are.
 */
export interface RepositoryEncryption {
  /** The same repository without encryption: objects as they are stored. */
  readonly stored: Repository;
  /** Makes the data key of a new backup before its first object is put; one that is there stays. One caller per backup at a time. */
  beginBackup(place: BackupPlace, ctx: WriteContext): Promise<void>;
  /** Makes sure that the backup's data key can be opened. InvalidBackupError when there is none, EncryptionKeyMissingError, EncryptionKeyWrongError. */
  requireKey(place: BackupPlace): Promise<void>;
  /** Like putIfAbsent for the backup's `_metadata`, which says in the clear what it is. */
  putMetadata(
    place: BackupPlace,
    metadata: { label: EncryptedLabel; body: AsyncIterable<Uint8Array> },
    ctx: WriteContext,
  ): Promise<void>;
  /** Wraps the backup's data key by the current master key alone. Can be broken off and repeated. Returns whether anything changed. */
  rewrapKey(place: BackupPlace, ctx: WriteContext): Promise<boolean>;
}

/** An object that is a file, open until it is disposed. */
export interface ObjectFile extends AsyncDisposable {
  readonly descriptor: number;
  readonly sizeBytes: number;
}

/** Ids of operations, as containers of what they stage are named. */
export const operationIdPattern = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Records of backups that were imported from elsewhere, named by their ids. */
export const recordsContainer = `${reservedContainer}/records`;

/** The container for what an operation stages: slices and maps. Throws InvalidObjectNameError for an id that is no id. */
export function stagingContainer(operationId: string): string {
  if (!backupIdPattern.test(operationId)) {
    throw new InvalidObjectNameError(`Not the id of an operation: ${JSON.stringify(operationId.slice(0, 100))}.`);
  }
  return `${reservedContainer}/${operationId}`;
}

/** Parses a container that a user named, by the rules of names. InvalidContainerError. */
export function parseContainer(text: string): string {
  const problem = containerProblem(text);
  if (problem === null) return text;
  throw new InvalidContainerError(`Invalid container ${JSON.stringify(text.slice(0, 300))}: ${problem}.`);
}
