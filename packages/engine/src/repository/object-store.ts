import { type WriteContext, writeBytesMax } from "../run/run-context.ts";
import type { ObjectKey } from "./repository.ts";

/** The body of one put request: pieces in memory, so that the request can be repeated. */
export interface PutBody {
  pieces: readonly Uint8Array[];
  sizeBytes: number;
  /** Lower-case hex; the store rejects bytes that arrive with a different MD5. */
  md5: string;
}

/** A multi-part upload in progress, invisible to others until it is completed. */
export interface LargeUpload {
  key: ObjectKey;
  id: string;
}

export interface UploadedPart {
  tag: string;
  sizeBytes: number;
}

/**
 * An object store accessed over HTTP, one request per call (two where it has no conditional put). Containers and names are those of the
 * service. Dumb on purpose: no retry, no cache, no knowledge of backups. Every call is repeatable. Failures are those of the Repository
 * contract.
 */
export interface ObjectStore extends AsyncDisposable {
  readonly driver: "s3" | "swift";
  /** The URL parameter that makes it remove older versions too; null where it cannot. */
  readonly versionsRemovedBy: string | null;
  /** Cinder's name for the backup service. */
  readonly service: string;
  /** The default container. */
  readonly container: string;
  /** The place for messages, without secrets. */
  readonly label: string;
  /** The largest body of one request. Larger objects are uploaded in parts of this size. */
  readonly partBytes: number;

  /** Throws InvalidContainerError unless the service could have such a container. */
  checkContainer(container: string): void;
  ensureContainer(container: string): Promise<void>;
  /** Resolves when the service would accept these bytes under this name, which already exists; changes nothing permanently. */
  checkPut(key: ObjectKey, body: PutBody): Promise<void>;
  containerExists(container: string): Promise<boolean>;
  /** Stores an object unless the name is taken. `doubtful`: the tag in the response is an MD5 of different bytes. */
  put(key: ObjectKey, body: PutBody, ctx: WriteContext): Promise<"stored" | "doubtful" | "taken">;
  /**
   * Has the service copy an object under a name that is free. ObjectMissingError for `from`. The tag is that of the copy, if the service
   * says it.
   */
  copy(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<{ tag: unknown }>;
  beginLarge(key: ObjectKey, ctx: WriteContext): Promise<LargeUpload>;
  /** Parts are numbered from 1. */
  putPart(upload: LargeUpload, number: number, body: PutBody, ctx: WriteContext): Promise<UploadedPart>;
  completeLarge(upload: LargeUpload, parts: readonly UploadedPart[], ctx: WriteContext): Promise<"stored" | "taken">;
  /** Removes the parts of an upload that was not completed, as far as the service allows. */
  abandonLarge(upload: LargeUpload, parts: number): Promise<void>;
  get(
    key: ObjectKey,
    options: { offset: number; length: number | null; signal: AbortSignal | undefined },
  ): AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** `md5` is null where the service cannot report it. */
  stat(key: ObjectKey): Promise<{ sizeBytes: number; md5: string | null }>;
  /** One page of a listing in name order; `after` is the previous page's `next`. Null: the container does not exist. */
  listPage(container: string, prefix: string, after: string | null): Promise<ListPage<StoredObject> | null>;
  /** Whether a removed object remains as an older version, which takes space and costs money. Null where that cannot be determined. */
  keepsVersions(): Promise<boolean | null>;
  /** How many bytes its quotas leave; null: it has none, or does not say. */
  freeBytes(): Promise<number | null>;
  containersPage(after: string | null): Promise<ListPage<string>>;
  remove(key: ObjectKey): Promise<void>;
  /** One page of uploads in progress or orphaned. Null: the container does not exist. */
  uploadsPage(container: string, after: string | null): Promise<ListPage<PendingUpload> | null>;
}

export interface StoredObject {
  name: string;
  sizeBytes: number;
  modifiedAt: Date;
  /** Absent for multi-part objects and where the service cannot report it. */
  md5?: string;
}

/** A large upload that was neither completed nor abandoned. */
export interface PendingUpload {
  upload: LargeUpload;
  modifiedAt: Date;
}

export interface ListPage<Item> {
  items: Item[];
  next: string | null;
}

/** The MD5 in a service's tag; null for tags of other forms, such as those of multi-part objects, which contain a dash. */
export function md5OfTag(tag: unknown): string | null {
  return /^"?([0-9a-f]{32})"?$/.exec(String(tag))?.[1] ?? null;
}

/** Whether a service's tag has the form of an MD5 but is a different one. */
export function isOtherMd5(tag: unknown, md5: string): boolean {
  const stated = md5OfTag(tag);
  return stated !== null && stated !== md5;
}

/** The MD5 in a listing entry, if any. */
export function listedMd5(tag: unknown): Pick<StoredObject, "md5"> {
  const md5 = md5OfTag(tag);
  return md5 === null ? {} : { md5 };
}

/** Streams a body, calling the fence before each piece. */
export async function* fencedPieces(body: PutBody, ctx: WriteContext): AsyncGenerator<Uint8Array> {
  for (const piece of body.pieces) {
    for (let start = 0; start < piece.length; start += writeBytesMax) {
      ctx.signal.throwIfAborted();
      ctx.fence();
      yield piece.subarray(start, start + writeBytesMax);
    }
  }
}
