import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CopyObjectCommand,
  CreateBucketCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetBucketVersioningCommand,
  GetObjectCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListBucketsCommand,
  ListMultipartUploadsCommand,
  type ListMultipartUploadsCommandInput,
  ListObjectsV2Command,
  type ListObjectsV2CommandInput,
  type ListObjectsV2CommandOutput,
  ListObjectVersionsCommand,
  type ListObjectVersionsCommandOutput,
  PutObjectCommand,
  S3Client,
  S3ServiceException,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import {
  EngineError,
  InvalidContainerError,
  ObjectMissingError,
  RepositoryDeniedError,
  RepositoryUnavailableError,
} from "../errors.ts";
import type { WriteContext } from "../run/run-context.ts";
import { httpError } from "./http-failure.ts";
import {
  fencedPieces,
  isOtherMd5,
  type LargeUpload,
  type ListPage,
  listedMd5,
  md5OfTag,
  type ObjectStore,
  type PendingUpload,
  type PutBody,
  type StoredObject,
  type UploadedPart,
} from "./object-store.ts";
import { contradiction } from "./pages.ts";
import { RenewingAgent } from "./renewing-agent.ts";
import type { ObjectKey } from "./repository.ts";

export interface S3Keys {
  accessKey: string;
  secretKey: string;
  sessionToken: string | null;
}

export interface S3Settings {
  bucket: string;
  /** Null: Amazon's endpoint for the region. */
  endpoint: string | null;
  region: string;
  /** Whether the bucket is part of the path rather than of the host name. */
  pathStyle: boolean;
  /** Current keys, reread after a denial; null: Amazon's client finds its own. */
  keys: { current(): Promise<S3Keys>; reread(): Promise<S3Keys> } | null;
  /** A profile in the files of Amazon's client, when it finds its own keys. */
  profile: string | null;
  /** CA certificates in PEM that replace the system's, requested before each connection; null: the system's. */
  ca: (() => Promise<string>) | null;
  /** Whether any certificate is accepted. */
  insecure: boolean;
  /** A connection is closed after this long without a byte. */
  timeoutMs: number;
  partBytes: number;
  /** Names per listing page. */
  pageItems: number;
  /** Whether a removal deletes all versions of an object. */
  removeVersions: boolean;
  /** Whether the store honours If-None-Match; null: probed before the first put. */
  conditionalPut: boolean | null;
}

export const bucketRule = {
  text: "a bucket's name has 3 to 63 lower-case letters, digits, dots and dashes",
  fits: (name: string): boolean =>
    /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(name) && !/\.\.|^\d+(?:\.\d+){3}$/.test(name),
};
type UploadMarkers = Pick<ListMultipartUploadsCommandInput, "KeyMarker" | "UploadIdMarker">;

const connectTimeoutMs = 10_000;
const socketsMax = 64;
/** Otherwise the client would write to the console. */
const silent = { debug() {}, info() {}, warn() {}, error() {} };

/** S3 by Amazon's client, compatible with Cinder's S3 driver. Single puts carry their MD5, which the store checks before storing. */
export class S3Store implements ObjectStore {
  readonly driver = "s3";
  readonly versionsRemovedBy = "remove_versions=true";
  readonly service = "cinder.backup.drivers.s3.S3BackupDriver";
  readonly container: string;
  readonly label: string;
  readonly partBytes: number;
  readonly #client: S3Client;
  readonly #settings: S3Settings;
  #conditional: Promise<boolean> | null = null;

  constructor(settings: S3Settings) {
    this.container = settings.bucket;
    this.label = `s3://${settings.bucket}${settings.endpoint === null ? "" : ` at ${settings.endpoint}`}`;
    this.partBytes = settings.partBytes;
    this.#settings = settings;
    if (settings.conditionalPut !== null) this.#conditional = Promise.resolve(settings.conditionalPut);
    const { keys, profile } = settings;
    this.#client = new S3Client({
      region: settings.region,
      forcePathStyle: settings.pathStyle,
      ...(settings.endpoint === null ? {} : { endpoint: settings.endpoint }),
      ...(keys === null ? {} : { credentials: () => identityOf(keys) }),
      ...(profile === null ? {} : { profile }),
      logger: silent,
      maxAttempts: 1, // Retrying is the decorator's job; two retry layers multiply.
      expectContinueHeader: false, // Servers that ignore it cost seconds per object.
      requestChecksumCalculation: "WHEN_REQUIRED", // Stores other than Amazon's reject the newer checksums.
      responseChecksumValidation: "WHEN_REQUIRED",
      requestHandler: {
        connectionTimeout: connectTimeoutMs,
        socketTimeout: settings.timeoutMs,
        httpAgent: { keepAlive: true, maxSockets: socketsMax },
        httpsAgent: new RenewingAgent({ ...settings, socketsMax }),
      },
    });
  }

  checkContainer(container: string): void {
    if (bucketRule.fits(container)) return;
    throw new InvalidContainerError(
      `Invalid container ${JSON.stringify(container.slice(0, 300))}: ${bucketRule.text}.`,
    );
  }

  async ensureContainer(container: string): Promise<void> {
    if (await this.containerExists(container)) return;
    const { endpoint, region } = this.#settings;
    // Only Amazon needs the location; others take the constraint for the name of one of their placements.
    const placed = endpoint === null && region !== "us-east-1";
    const constraint = placed ? { CreateBucketConfiguration: { LocationConstraint: region as "eu-west-1" } } : {};
    const create = new CreateBucketCommand({ Bucket: container, ...constraint });
    await this.#guard(`create the bucket ${container}`, () => this.#client.send(create)).catch((error: unknown) => {
      const name = error instanceof Error && error.cause instanceof Error ? error.cause.name : "";
      if (!/^BucketAlready(?:OwnedByYou|Exists)$/.test(name)) throw error;
    });
  }

  /** Callers without write permission are refused before the condition is evaluated. */
  async checkPut(key: ObjectKey, body: PutBody): Promise<void> {
    const ctx = { signal: new AbortController().signal, fence: () => {} };
    if (await this.#conditionalPut(ctx)) await this.#putOnce(key, body, ctx, true);
    else await this.#putAndRemove(ctx);
  }

  async containerExists(container: string): Promise<boolean> {
    const missing = { container, name: "" };
    try {
      const head = new HeadBucketCommand({ Bucket: container });
      await this.#guard(`look at the bucket ${container}`, () => this.#client.send(head), missing);
      return true;
    } catch (error) {
      if (error instanceof ObjectMissingError) return false;
      throw error;
    }
  }

  async put(key: ObjectKey, body: PutBody, ctx: WriteContext): Promise<"stored" | "doubtful" | "taken"> {
    if (await this.#conditionalPut(ctx)) return this.#putOnce(key, body, ctx, true);
    if (await this.#exists(key)) return "taken";
    ctx.signal.throwIfAborted();
    return this.#putOnce(key, body, ctx, false);
  }

  async copy(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<{ tag: unknown }> {
    const source = [from.container, ...from.name.split("/")].map(encodeURIComponent).join("/");
    const copy = new CopyObjectCommand({ ...keyOf(to), CopySource: source });
    const send = () => this.#client.send(copy, { abortSignal: ctx.signal });
    const { CopyObjectResult: made } = await this.#guard(`copy ${from.name}`, send, from, ctx.signal);
    return { tag: made?.ETag };
  }

  async beginLarge(key: ObjectKey, ctx: WriteContext): Promise<LargeUpload> {
    const create = new CreateMultipartUploadCommand(keyOf(key));
    const send = () => this.#client.send(create, { abortSignal: ctx.signal });
    const { UploadId: id } = await this.#guard(`store ${key.name}`, send, undefined, ctx.signal);
    return { key, id: id ?? "" };
  }

  async putPart(upload: LargeUpload, number: number, body: PutBody, ctx: WriteContext): Promise<UploadedPart> {
    const sent = await this.#sendBody(upload.key, body, ctx, (signal, stream) => {
      const where = { ...keyOf(upload.key), UploadId: upload.id, PartNumber: number };
      return this.#client.send(new UploadPartCommand({ ...where, ...stream }), { abortSignal: signal });
    });
    return { tag: sent.ETag ?? "", sizeBytes: body.sizeBytes };
  }

  async completeLarge(
    upload: LargeUpload,
    parts: readonly UploadedPart[],
    ctx: WriteContext,
  ): Promise<"stored" | "taken"> {
    const conditional = (await this.#conditional) === true;
    if (!conditional && (await this.#exists(upload.key))) return "taken";
    const complete = new CompleteMultipartUploadCommand({
      ...keyOf(upload.key),
      UploadId: upload.id,
      MultipartUpload: { Parts: parts.map(({ tag }, index) => ({ ETag: tag, PartNumber: index + 1 })) },
      ...(conditional ? { IfNoneMatch: "*" } : {}),
    });
    const send = () => this.#client.send(complete, { abortSignal: ctx.signal });
    try {
      await this.#guard(`store ${upload.key.name}`, send, undefined, ctx.signal);
      return "stored";
    } catch (error) {
      if (statusOf(error) === 412) return "taken";
      // An upload that no longer exists may have been completed by an attempt whose response was lost.
      if (statusOf(error) === 404 && (await this.#exists(upload.key))) return "taken";
      throw error;
    }
  }

  async abandonLarge(upload: LargeUpload): Promise<void> {
    const abort = new AbortMultipartUploadCommand({ ...keyOf(upload.key), UploadId: upload.id });
    await this.#guard(`give up ${upload.key.name}`, () => this.#client.send(abort), upload.key).catch(ignoreMissing);
  }

  async *get(
    key: ObjectKey,
    { offset, length, signal }: { offset: number; length: number | null; signal: AbortSignal | undefined },
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    if (length === 0) return;
    const whole = offset === 0 && length === null;
    const range = `bytes=${offset}-${length === null ? "" : offset + length - 1}`;
    const get = new GetObjectCommand({ ...keyOf(key), ...(whole ? {} : { Range: range }) });
    const verb = `read ${key.name}`;
    let body: Readable;
    try {
      const send = () => this.#client.send(get, signal === undefined ? {} : { abortSignal: signal });
      body = (await this.#guard(verb, send, key, signal)).Body as Readable;
    } catch (error) {
      if (statusOf(error) === 416) return; // Past the end, or any part of an empty object.
      throw error;
    }
    try {
      for await (const chunk of body) {
        signal?.throwIfAborted();
        yield chunk as Uint8Array<ArrayBuffer>;
      }
    } catch (error) {
      signal?.throwIfAborted();
      throw this.#translate(verb, error, undefined);
    } finally {
      body.destroy();
    }
  }

  async stat(key: ObjectKey): Promise<{ sizeBytes: number; md5: string | null }> {
    const head = new HeadObjectCommand(keyOf(key));
    const found = await this.#guard(`look at ${key.name}`, () => this.#client.send(head), key);
    return { sizeBytes: found.ContentLength ?? 0, md5: md5OfTag(found.ETag) };
  }

  async listPage(container: string, prefix: string, after: string | null): Promise<ListPage<StoredObject> | null> {
    const list = new ListObjectsV2Command({
      Bucket: container,
      Prefix: prefix,
      MaxKeys: this.#settings.pageItems,
      ...(after === null
        ? {}
        : (JSON.parse(after) as Pick<ListObjectsV2CommandInput, "ContinuationToken" | "StartAfter">)),
    });
    try {
      const missing = { container, name: prefix };
      const page = await this.#guard(`list ${container}`, () => this.#client.send(list), missing);
      const items = (page.Contents ?? []).map(({ Key, Size, LastModified, ETag }) => {
        if (!Key || Size === undefined) throw contradiction(this.label, container, "an entry has no name or no size");
        return { name: Key, sizeBytes: Size, modifiedAt: LastModified ?? new Date(), ...listedMd5(ETag) };
      });
      if ((page.KeyCount ?? 0) > items.length) throw contradiction(this.label, container, "it counts more than it has");
      return { items, next: this.#nextOf(page, items.at(-1)?.name, container) };
    } catch (error) {
      if (error instanceof ObjectMissingError) return null;
      throw error;
    }
  }

  async keepsVersions(): Promise<boolean | null> {
    if (this.#settings.removeVersions) return false;
    const get = new GetBucketVersioningCommand({ Bucket: this.container });
    try {
      const { Status } = await this.#guard("look for versions", () => this.#client.send(get));
      return Status === "Enabled" || Status === "Suspended";
    } catch (error) {
      if (error instanceof EngineError && error.retryable) throw error;
      return null; // A missing permission or an unsupported operation.
    }
  }

  /**
   * Where the listing continues. The store's statement about its end is trusted when consistent; otherwise continue after the last key
   * until nothing follows.
   */
  #nextOf(page: ListObjectsV2CommandOutput, last: string | undefined, container: string): string | null {
    const { IsTruncated: more, NextContinuationToken: token, Contents: contents = [] } = page;
    if (more !== false && token) return JSON.stringify({ ContinuationToken: token });
    const behindLast = last === undefined ? null : JSON.stringify({ StartAfter: last });
    if (more === true && behindLast === null)
      throw contradiction(this.label, container, "there is more, but not where");
    const mayHaveMore = more === undefined ? contents.length >= this.#settings.pageItems : more || Boolean(token);
    return mayHaveMore ? behindLast : null;
  }

  /** The protocol has no quotas. */
  async freeBytes(): Promise<null> {
    return null;
  }

  async containersPage(after: string | null): Promise<ListPage<string>> {
    const list = new ListBucketsCommand(after === null ? {} : { ContinuationToken: after });
    const page = await this.#guard("list the buckets", () => this.#client.send(list));
    const items = (page.Buckets ?? []).flatMap(({ Name }) => (Name === undefined ? [] : [Name]));
    return { items, next: page.ContinuationToken ?? null };
  }

  async remove(key: ObjectKey): Promise<void> {
    if (this.#settings.removeVersions && (await this.#removeVersions(key))) return;
    const remove = new DeleteObjectCommand(keyOf(key));
    await this.#guard(`remove ${key.name}`, () => this.#client.send(remove), key).catch(ignoreMissing);
  }

  async uploadsPage(container: string, after: string | null): Promise<ListPage<PendingUpload> | null> {
    const list = new ListMultipartUploadsCommand({
      Bucket: container,
      MaxUploads: this.#settings.pageItems,
      ...(after === null ? {} : (JSON.parse(after) as UploadMarkers)),
    });
    try {
      const missing = { container, name: "" };
      const page = await this.#guard(`list uploads to ${container}`, () => this.#client.send(list), missing);
      const what = `uploads to ${container}`;
      const items = (page.Uploads ?? []).map(({ Key, UploadId, Initiated }) => {
        if (!Key || !UploadId) throw contradiction(this.label, what, "an entry has no name or no id");
        return { upload: { key: { container, name: Key }, id: UploadId }, modifiedAt: Initiated ?? new Date() };
      });
      if (page.IsTruncated !== true) return { items, next: null };
      const last = items.at(-1)?.upload;
      const markers = { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker };
      // Without both markers, uploads of the last name on the page would be skipped.
      const next =
        markers.KeyMarker && markers.UploadIdMarker
          ? markers
          : last && { KeyMarker: last.key.name, UploadIdMarker: last.id };
      if (!next) throw contradiction(this.label, what, "there is more, but not where");
      return { items, next: JSON.stringify(next) };
    } catch (error) {
      if (error instanceof ObjectMissingError) return null;
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client.destroy();
  }

  /** Whether nothing is left under the name. Versions that are locked, or that these credentials may not remove, remain. */
  async #removeVersions(key: ObjectKey): Promise<boolean> {
    const { container: Bucket, name } = key;
    let [KeyMarker, VersionIdMarker]: (string | undefined)[] = [];
    try {
      for (;;) {
        const markers = KeyMarker === undefined ? {} : { KeyMarker, VersionIdMarker };
        const list = new ListObjectVersionsCommand({ Bucket, Prefix: name, ...markers });
        const page: ListObjectVersionsCommandOutput = await this.#guard(
          `list versions of ${name}`,
          () => this.#client.send(list),
          key,
        );
        // Names that merely start with this one sort after it.
        const found = [...(page.Versions ?? []), ...(page.DeleteMarkers ?? [])];
        for (const { Key, VersionId } of found) {
          if (Key !== name || VersionId === undefined) continue;
          const remove = new DeleteObjectCommand({ ...keyOf(key), VersionId });
          await this.#guard(`remove ${name}`, () => this.#client.send(remove), key).catch(ignoreMissing);
        }
        if (page.IsTruncated !== true || found.some(({ Key }) => Key !== name)) return true;
        if (page.NextKeyMarker === undefined)
          throw this.#translate(`list versions of ${name}`, new Error("no marker"), key);
        [KeyMarker, VersionIdMarker] = [page.NextKeyMarker, page.NextVersionIdMarker];
      }
    } catch (error) {
      if (error instanceof ObjectMissingError) return true;
      if (!(error instanceof RepositoryDeniedError)) throw error;
      return false;
    }
  }

  #conditionalPut(ctx: WriteContext): Promise<boolean> {
    this.#conditional ??= this.#probe(ctx).catch((error: unknown) => {
      this.#conditional = null;
      throw error;
    });
    return this.#conditional;
  }

  /**
   * Whether the store honours If-None-Match: a conditional put of the marker's own bytes must be refused. A store that does not know the
   * condition says so, or rewrites the same bytes.
   */
  async #probe(ctx: WriteContext): Promise<boolean> {
    const key = { container: this.container, name: ".tephra/repository.json" };
    const parts: Uint8Array[] = [];
    try {
      for await (const part of this.get(key, { offset: 0, length: null, signal: ctx.signal })) parts.push(part);
    } catch (error) {
      if (!(error instanceof ObjectMissingError)) throw error;
    }
    if (parts.length === 0) return this.#probeByName(ctx);
    return this.#obeys(key, Buffer.concat(parts), ctx);
  }

  /** The same probe with a temporary object of its own. */
  #probeByName(ctx: WriteContext): Promise<boolean> {
    return this.#putAndRemove(ctx, (key, bytes) => this.#obeys(key, bytes, ctx));
  }

  /** Stores a temporary object, probes with it, and removes it if these credentials may: some may store but never remove. */
  async #putAndRemove(
    ctx: WriteContext,
    ask: (key: ObjectKey, bytes: Uint8Array) => Promise<boolean> = async () => true,
  ): Promise<boolean> {
    const key = { container: this.container, name: ".tephra/probe" };
    const bytes = Buffer.from("If-None-Match?");
    await this.#putOnce(key, probeBody(bytes), ctx, false);
    try {
      return await ask(key, bytes);
    } finally {
      await this.remove(key).catch((error: unknown) => {
        if (!(error instanceof RepositoryDeniedError)) throw error;
      });
    }
  }

  async #obeys(key: ObjectKey, bytes: Uint8Array, ctx: WriteContext): Promise<boolean> {
    try {
      return (await this.#putOnce(key, probeBody(bytes), ctx, true)) === "taken";
    } catch (error) {
      const status = statusOf(error);
      if (status === 501 || status === 400 || status === 405) return false;
      throw error;
    }
  }

  async #putOnce(
    key: ObjectKey,
    body: PutBody,
    ctx: WriteContext,
    ifAbsent: boolean,
  ): Promise<"stored" | "doubtful" | "taken"> {
    try {
      const { ETag: tag } = await this.#sendBody(key, body, ctx, (signal, stream) => {
        const put = { ...keyOf(key), ...stream, ...(ifAbsent ? { IfNoneMatch: "*" } : {}) };
        return this.#client.send(new PutObjectCommand(put), { abortSignal: signal });
      });
      return isOtherMd5(tag, body.md5) ? "doubtful" : "stored";
    } catch (error) {
      if (statusOf(error) === 412) return "taken";
      throw error;
    }
  }

  /** Sends a body piece by piece with a fence check for each. When the fence throws, the request is cut off: nothing is stored. */
  async #sendBody<Sent>(
    key: ObjectKey,
    body: PutBody,
    ctx: WriteContext,
    send: (signal: AbortSignal, stream: { Body: Readable; ContentLength: number; ContentMD5: string }) => Promise<Sent>,
  ): Promise<Sent> {
    const refused = new AbortController();
    const stream = Readable.from(fencedPieces(body, ctx), { objectMode: false, highWaterMark: 0 });
    stream.on("error", (error) => refused.abort(error));
    const fields = {
      Body: stream,
      ContentLength: body.sizeBytes,
      ContentMD5: Buffer.from(body.md5, "hex").toString("base64"),
    };
    try {
      const call = () => send(AbortSignal.any([ctx.signal, refused.signal]), fields);
      return await this.#guard(`store ${key.name}`, call, undefined, ctx.signal);
    } catch (error) {
      if (refused.signal.aborted) throw refused.signal.reason;
      throw error;
    } finally {
      stream.destroy();
    }
  }

  async #exists(key: ObjectKey): Promise<boolean> {
    try {
      await this.stat(key);
      return true;
    } catch (error) {
      if (error instanceof ObjectMissingError) return false;
      throw error;
    }
  }

  async #guard<Result>(
    verb: string,
    call: () => Promise<Result>,
    missing?: ObjectKey,
    signal?: AbortSignal,
  ): Promise<Result> {
    const { keys } = this.#settings;
    const used = await keys?.current();
    try {
      return await call();
    } catch (error) {
      signal?.throwIfAborted();
      const failure = this.#translate(verb, error, missing);
      if (!(failure instanceof RepositoryDeniedError) || keys === null) throw failure;
      const now = await keys.reread();
      if (now.accessKey === used?.accessKey && now.secretKey === used.secretKey) throw failure;
      const what = `${failure.message} The credentials have been renewed since.`;
      throw new RepositoryUnavailableError(what, { cause: failure, retryable: true });
    }
  }

  #translate(verb: string, cause: unknown, missing: ObjectKey | undefined): Error {
    if (cause instanceof EngineError) return cause;
    const answered = cause instanceof S3ServiceException ? cause : null;
    const { $metadata: answer } = cause as { $metadata?: { httpStatusCode?: number; clockSkewCorrected?: boolean } };
    const status = answer?.httpStatusCode;
    const { name, message } = cause as Error;
    // A response that is not S3's (a proxy's, say) has a status but no error name.
    const reason = answered === null ? message : `${name}${message && message !== name ? ` (${message})` : ""}`;
    if (name === "CredentialsProviderError") {
      const where = "in the URL, in a file of credentials, or where Amazon's client looks by itself";
      return new RepositoryDeniedError(`The repository ${this.label} has no credentials, ${where}: ${message}`, {
        cause,
      });
    }
    // The client has set its clock by this answer, or by another one meanwhile: the next request is signed with the store's time.
    if (status === 403 && (answer?.clockSkewCorrected === true || name === "RequestTimeTooSkewed")) {
      const what = `The clock of the repository ${this.label} differs from this machine's; it cannot ${verb}: ${status}.`;
      return new RepositoryUnavailableError(what, { cause, retryable: true });
    }
    const retryAfter = answered?.$response?.headers["retry-after"];
    return httpError({ label: this.label, verb, status, reason: reason.slice(0, 300), retryAfter, cause, missing });
  }
}

/** With an expiry time, so that the client asks again for each request. */
async function identityOf(keys: NonNullable<S3Settings["keys"]>) {
  const { accessKey, secretKey, sessionToken } = await keys.current();
  const token = sessionToken === null ? {} : { sessionToken };
  return { accessKeyId: accessKey, secretAccessKey: secretKey, ...token, expiration: new Date() };
}

function keyOf(key: ObjectKey): { Bucket: string; Key: string } {
  return { Bucket: key.container, Key: key.name };
}

function statusOf(error: unknown): number | undefined {
  const cause = error instanceof EngineError ? error.cause : error;
  return (cause as { $metadata?: { httpStatusCode?: number } } | undefined)?.$metadata?.httpStatusCode;
}

function ignoreMissing(error: unknown): void {
  if (!(error instanceof ObjectMissingError)) throw error;
}

function probeBody(bytes: Uint8Array): PutBody {
  return { pieces: [bytes], sizeBytes: bytes.length, md5: createHash("md5").update(bytes).digest("hex") };
}
