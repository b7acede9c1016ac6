import { type WriteContext, writeBytesMax } from "../run/run-context.ts";
import type { ObjectKey } from "./repository.ts";

/** What one request puts: pieces in memory, so that the request can be repeated. */
export interface PutBody {
  pieces: readonly Uint8Array[];
  sizeBytes: number;
  /** Lower-case hex; the store refuses bytes that arrive with another one. */
  md5: string;
}

/** A large object on its way, which exists only for its writer until it is completed. */
export interface LargeUpload {
  key: ObjectKey;
  id: string;
}

export interface UploadedPart {
  tag: string;
  sizeBytes: number;
}

/**
 * A service of objects reached by HTTP, one request per call (two where it has no conditional put). Containers and names are those
 * of the service. Dumb on purpose: no retry, no cache, no knowledge of backups. Every call may be repeated. Failures are the ones
 * of the Repository contract.
 */
export interface ObjectStore extends AsyncDisposable {
  readonly driver: "s3" | "swift";
  /** What in the URL makes it remove older versions too; null where it cannot. */
  readonly versionsRemovedBy: string | null;
  /** What Cinder calls the service of a backup. */
  readonly service: string;
  /** The container in which everything lies that has no other. */
  readonly container: string;
  /** The place in words, without secrets. */
  readonly label: string;
  /** The largest body of one request. Larger objects are uploaded in parts of this size. */
  readonly partBytes: number;

  /** Throws InvalidContainerError unless the service could have such a container. */
  checkContainer(container: string): void;
  ensureContainer(container: string): Promise<void>;
  /** Resolves when the service would take an object of these bytes under this name, which is there; changes nothing that stays. */
  checkPut(key: ObjectKey, body: PutBody): Promise<void>;
  containerExists(container: string): Promise<boolean>;
  /** Stores an object unless the name is taken. `doubtful`: the tag that the service answers with is an MD5 of other bytes. */
  put(key: ObjectKey, body: PutBody, ctx: WriteContext): Promise<"stored" | "doubtful" | "taken">;
  beginLarge(key: ObjectKey, ctx: WriteContext): Promise<LargeUpload>;
  /** Parts are numbered from 1. */
  putPart(upload: LargeUpload, number: number, body: PutBody, ctx: WriteContext): Promise<UploadedPart>;
  completeLarge(upload: LargeUpload, parts: readonly UploadedPart[], ctx: WriteContext): Promise<"stored" | "taken">;
  /** Removes what was uploaded and not completed, as far as the service allows. */
  abandonLarge(upload: LargeUpload, parts: number): Promise<void>;
  get(
    key: ObjectKey,
    options: { offset: number; length: number | null; signal: AbortSignal | undefined },
  ): AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** `md5` is null where the service cannot tell it. */
  stat(key: ObjectKey): Promise<{ sizeBytes: number; md5: string | null }>;
  /** One page of a listing in the order of names; `after` is what the page before gave as `next`. Null: a missing container. */
  listPage(container: string, prefix: string, after: string | null): Promise<ListPage<StoredObject> | null>;
  /** Whether a removed object stays as an older version, which takes room and costs money. Null where that cannot be told. */
  keepsVersions(): Promise<boolean | null>;
  containersPage(after: string | null): Promise<ListPage<string>>;
  remove(key: ObjectKey): Promise<void>;
  /** One page of the uploads that are under way or were given up by nobody. Null: a missing container. */
  uploadsPage(container: string, after: string | null): Promise<ListPage<PendingUpload> | null>;
}

export interface StoredObject {
  name: string;
  sizeBytes: number;
  modifiedAt: Date;
  /** Absent for what was uploaded in parts, and where the service cannot tell it. */
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

/** The MD5 that a service's tag may be; null for tags of other forms, such as those of objects in parts, which have a dash. */
export function md5OfTag(tag: unknown): string | null {
  return /^"?([0-9a-f]{32})"?$/.exec(String(tag))?.[1] ?? null;
}

/** Whether a service's tag has the form of an MD5 and is another one. */
export function isOtherMd5(tag: unknown, md5: string): boolean {
  const stated = md5OfTag(tag);
  return stated !== null && stated !== md5;
}

/** What a listing's entry says about the MD5. */
export function listedMd5(tag: unknown): Pick<StoredObject, "md5"> {
  const md5 = md5OfTag(tag);
  return md5 === null ? {} : { md5 };
}

/** A body in pieces of which each is allowed by a call of the fence of its own. */
export async function* fencedPieces(body: PutBody, ctx: WriteContext): AsyncGenerator<Uint8Array> {
  for (const piece of body.pieces) {
    for (let start = 0; start < piece.length; start += writeBytesMax) {
      ctx.signal.throwIfAborted();
      ctx.fence();
      yield piece.subarray(start, start + writeBytesMax);
    }
  }
}
