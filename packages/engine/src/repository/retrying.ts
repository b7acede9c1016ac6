import { setTimeout as delay } from "node:timers/promises";
import { EngineError, RepositoryThrottledError } from "../errors.ts";
import type { WriteContext } from "../run/run-context.ts";
import type {
  LargeUpload,
  ListPage,
  ObjectStore,
  PendingUpload,
  PutBody,
  StoredObject,
  UploadedPart,
} from "./object-store.ts";
import type { ObjectKey } from "./repository.ts";

export interface RetryPolicy {
  /** Attempts per call, including the first. */
  attempts: number;
  /** Pause before the second attempt; doubles with each further one. */
  pauseMs: number;
  pauseMsMax: number;
  /** In [0, 1). */
  random: () => number;
}

export const retryPolicyDefault: RetryPolicy = { attempts: 6, pauseMs: 200, pauseMsMax: 20_000, random: Math.random };

/** How often one read may be interrupted, regardless of progress in between. */
const breaksMax = 30;

/** A service that asks for a longer pause than this counts as down. */
const throttlePauseMsMax = 60_000;

/**
 * Retries store calls that fail with a transient error, with growing randomized pauses. Permanent errors are thrown at once. When the
 * store asks for fewer requests, all callers pause, not only the one it told. After an abort, or when the fence throws, nothing more is
 * sent.
 */
export class RetryingStore implements ObjectStore {
  readonly driver: "s3" | "swift";
  readonly versionsRemovedBy: string | null;
  readonly service: string;
  readonly container: string;
  readonly label: string;
  readonly partBytes: number;
  readonly #inner: ObjectStore;
  readonly #policy: RetryPolicy;
  readonly #closed = new AbortController();
  /** On performance.now()'s clock: nobody sends anything before it. */
  #quietUntil = 0;

  constructor(inner: ObjectStore, policy: RetryPolicy) {
    this.driver = inner.driver;
    this.versionsRemovedBy = inner.versionsRemovedBy;
    this.service = inner.service;
    this.container = inner.container;
    this.label = inner.label;
    this.partBytes = inner.partBytes;
    this.#inner = inner;
    this.#policy = policy;
  }

  checkContainer(container: string): void {
    this.#inner.checkContainer(container);
  }

  ensureContainer(container: string): Promise<void> {
    return this.#retry(() => this.#inner.ensureContainer(container));
  }

  checkPut(key: ObjectKey, body: PutBody): Promise<void> {
    return this.#retry(() => this.#inner.checkPut(key, body));
  }

  containerExists(container: string): Promise<boolean> {
    return this.#retry(() => this.#inner.containerExists(container));
  }

  put(key: ObjectKey, body: PutBody, ctx: WriteContext): Promise<"stored" | "doubtful" | "taken"> {
    return this.#write(ctx, () => this.#inner.put(key, body, ctx));
  }

  copy(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<{ tag: unknown }> {
    return this.#write(ctx, () => this.#inner.copy(from, to, ctx));
  }

  beginLarge(key: ObjectKey, ctx: WriteContext): Promise<LargeUpload> {
    return this.#write(ctx, () => this.#inner.beginLarge(key, ctx));
  }

  putPart(upload: LargeUpload, number: number, body: PutBody, ctx: WriteContext): Promise<UploadedPart> {
    return this.#write(ctx, () => this.#inner.putPart(upload, number, body, ctx));
  }

  completeLarge(upload: LargeUpload, parts: readonly UploadedPart[], ctx: WriteContext): Promise<"stored" | "taken"> {
    return this.#write(ctx, () => this.#inner.completeLarge(upload, parts, ctx));
  }

  abandonLarge(upload: LargeUpload, parts: number): Promise<void> {
    return this.#retry(() => this.#inner.abandonLarge(upload, parts));
  }

  /** An interrupted read resumes at its current position. */
  async *get(
    key: ObjectKey,
    options: { offset: number; length: number | null; signal: AbortSignal | undefined },
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const { signal } = options;
    let done = 0;
    let breaks = 0;
    for (let attempt = 1; ; ) {
      const length = options.length === null ? null : options.length - done;
      await this.#quiet(signal);
      try {
        for await (const chunk of this.#inner.get(key, { offset: options.offset + done, length, signal })) {
          done += chunk.length;
          if (chunk.length > 0) attempt = 1;
          yield chunk;
        }
        return;
      } catch (error) {
        // Every byte received resets the attempts: without this limit, a read interrupted after each byte would never end.
        breaks += 1;
        await this.#pauseOrThrow(error, breaks < breaksMax ? attempt : Number.POSITIVE_INFINITY, signal);
        attempt += 1;
      }
    }
  }

  stat(key: ObjectKey): Promise<{ sizeBytes: number; md5: string | null }> {
    return this.#retry(() => this.#inner.stat(key));
  }

  listPage(container: string, prefix: string, after: string | null): Promise<ListPage<StoredObject> | null> {
    return this.#retry(() => this.#inner.listPage(container, prefix, after));
  }

  keepsVersions(): Promise<boolean | null> {
    return this.#retry(() => this.#inner.keepsVersions());
  }

  freeBytes(): Promise<number | null> {
    return this.#retry(() => this.#inner.freeBytes());
  }

  containersPage(after: string | null): Promise<ListPage<string>> {
    return this.#retry(() => this.#inner.containersPage(after));
  }

  remove(key: ObjectKey): Promise<void> {
    return this.#retry(() => this.#inner.remove(key));
  }

  uploadsPage(container: string, after: string | null): Promise<ListPage<PendingUpload> | null> {
    return this.#retry(() => this.#inner.uploadsPage(container, after));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort(new Error("the repository was closed"));
    await this.#inner[Symbol.asyncDispose]();
  }

  /** A write checks the fence before every attempt: the lease may have been lost during a pause. */
  #write<Result>(ctx: WriteContext, call: () => Promise<Result>): Promise<Result> {
    const allowed = (): Promise<Result> => {
      ctx.signal.throwIfAborted();
      ctx.fence();
      return call();
    };
    return this.#retry(allowed, ctx.signal);
  }

  async #retry<Result>(call: () => Promise<Result>, signal?: AbortSignal): Promise<Result> {
    for (let attempt = 1; ; attempt += 1) {
      await this.#quiet(signal);
      try {
        return await call();
      } catch (error) {
        await this.#pauseOrThrow(error, attempt, signal);
      }
    }
  }

  async #pauseOrThrow(error: unknown, attempt: number, signal: AbortSignal | undefined): Promise<void> {
    const { attempts, pauseMs, pauseMsMax, random } = this.#policy;
    signal?.throwIfAborted();
    if (!(error instanceof EngineError && error.retryable) || attempt >= attempts) throw error;
    const whole = Math.min(pauseMsMax, pauseMs * 2 ** (attempt - 1));
    let pause = whole * (0.5 + random() / 2);
    if (error instanceof RepositoryThrottledError) {
      pause = Math.max(pause, Math.min(error.retryAfterMs ?? 0, throttlePauseMsMax));
      this.#quietUntil = Math.max(this.#quietUntil, performance.now() + pause);
    }
    await this.#sleep(pause, signal);
  }

  /** Callers that waited for the same deadline resume one after another, not all at once. */
  async #quiet(signal: AbortSignal | undefined): Promise<void> {
    for (let left = this.#quietUntil - performance.now(); left > 0; left = this.#quietUntil - performance.now()) {
      await this.#sleep(left + this.#policy.random() * this.#policy.pauseMs, signal);
    }
  }

  async #sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
    const ends = signal === undefined ? this.#closed.signal : AbortSignal.any([this.#closed.signal, signal]);
    try {
      await delay(ms, undefined, { signal: ends });
    } catch {
      signal?.throwIfAborted();
      throw this.#closed.signal.reason;
    }
  }
}
