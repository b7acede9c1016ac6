import { createHash, type Hash } from "node:crypto";
import { setImmediate as breathe } from "node:timers/promises";
import { prefixOf, reservedContainer, zonePattern } from "@tephra/format";
import {
  InvalidObjectNameError,
  ObjectConflictError,
  ObjectMissingError,
  RepositoryConfigError,
  RepositoryUnavailableError,
  RepositoryUnmarkedError,
} from "../errors.ts";
import type { WriteContext } from "../run/run-context.ts";
import { streamed } from "../run/streamed.ts";
import { markerBytesMax, markerKey, newMarker, parseMarker } from "./marker.ts";
import { md5OfTag, type ObjectStore, type PutBody, type UploadedPart } from "./object-store.ts";
import { contradiction, pagesOf } from "./pages.ts";
import { type OnPassedOver, passOver } from "./passed-over.ts";
import {
  type Leftover,
  type ListedObject,
  type ObjectKey,
  operationIdPattern,
  parseContainer,
  type Repository,
  stagingContainer,
} from "./repository.ts";

/** MD5 and SHA-256 are computed in steps of this size, with other work of the thread running in between. */
const hashStepBytes = 1024 * 1024;
/** Smaller chunks are joined: a request of thousands of tiny writes is slow. */
const chunkBytesMin = 64 * 1024;
/** Maximum length of object names that both S3 and Swift allow. */
const nameBytesMax = 1024;

/**
 * Objects of an HTTP service as a repository, in the layout of Cinder's S3 and Swift drivers. Internal objects are under `.tephra/` in
 * the URL's container; containers named in requests are containers of the service.
 */
export class ObjectRepository implements Repository {
  readonly driver: "s3" | "swift";
  readonly storage = "objects";
  readonly service: string;
  readonly ownContainer: string;
  readonly #store: ObjectStore;
  readonly #zone: string;
  /**
   * Puts in progress by name: writers of this process take turns. Without this, two writers could both succeed on a store without
   * conditional puts, and on Swift, which checks the name when a put begins rather than when it ends.
   */
  readonly #turns = new Map<string, Promise<unknown>>();

  constructor(store: ObjectStore, zone: string) {
    if (!zonePattern.test(zone)) {
      throw new RepositoryConfigError(`A zone that cannot be part of object names: ${JSON.stringify(zone)}.`);
    }
    this.driver = store.driver;
    this.service = store.service;
    this.ownContainer = store.container;
    this.#store = store;
    this.#zone = zone;
  }

  async identity(): Promise<{ id: string }> {
    const { label, container } = this.#store;
    let marker: Buffer;
    try {
      marker = await this.#marker();
    } catch (error) {
      if (!(error instanceof ObjectMissingError)) throw error;
      if (!(await this.#store.containerExists(container))) throw this.#absent(error);
      const cure = "Is it the right place? If it is new, initialize it.";
      throw new RepositoryUnmarkedError(`${label} is not marked as a repository. ${cure}`, { cause: error });
    }
    const identity = parseMarker(marker.toString("utf8"));
    if (identity === null) throw new RepositoryUnmarkedError(`The marker of the repository ${label} is not readable.`);
    return identity;
  }

  /** Puts the marker's own existing bytes: nothing is stored. */
  async checkWritable(): Promise<void> {
    await this.#store.checkPut(this.#key(markerKey), await bodyOf([await this.#marker()]));
  }

  freeBytes(): Promise<number | null> {
    return this.#store.freeBytes();
  }

  async remarks(): Promise<string[]> {
    if ((await this.#store.keepsVersions()) !== true) return [];
    const { versionsRemovedBy, label, container } = this.#store;
    const cure = versionsRemovedBy === null ? "" : `, or set ${versionsRemovedBy} in its URL`;
    return [
      `${label} keeps versions: what is removed frees no room until a rule of the container ${container} ends them${cure}.`,
    ];
  }

  async initialize(): Promise<{ id: string }> {
    await this.#store.ensureContainer(this.#store.container);
    try {
      await this.putIfAbsent(markerKey, newMarker(), { signal: new AbortController().signal, fence: () => {} });
    } catch (error) {
      if (!(error instanceof ObjectConflictError)) throw error;
    }
    return this.identity();
  }

  defaultContainer(): string {
    return this.#store.container;
  }

  defaultPrefix(input: { volumeId: string; backupId: string; at: Date }): string {
    const time = input.at.toISOString().replace(/\D/g, "").slice(0, 14);
    return `volume_${input.volumeId}/${time}/az_${this.#zone}_backup_${input.backupId}`;
  }

  async ensureContainer(container: string): Promise<void> {
    const { container: real } = this.#place(container);
    // Staging is in the URL's container, which exists if the repository does.
    if (!isReserved(container)) await this.#store.ensureContainer(real);
  }

  async putIfAbsent(
    key: ObjectKey,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    ctx: WriteContext,
  ): Promise<"stored" | "exists"> {
    const place = this.#key(key);
    const parts = partsOf(body, this.#store.partBytes);
    const first = await parts.next();
    const pieces = first.done ? [] : first.value;
    const second = await parts.next();
    if (second.done) return this.#inTurn(place, () => this.#putWhole(key, place, pieces, ctx));
    async function* all(): AsyncGenerator<Uint8Array[]> {
      yield pieces;
      yield second.value as Uint8Array[];
      yield* parts;
    }
    try {
      return await this.#inTurn(place, () => this.#putLarge(key, place, all(), ctx));
    } finally {
      await parts.return(undefined);
    }
  }

  async copyIfAbsent(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<"stored" | "exists"> {
    const [source, place] = [this.#key(from), this.#key(to)];
    return this.#inTurn(place, async () => {
      const [{ md5 }, isThere] = await Promise.all([
        this.#store.stat(source).catch((error: unknown) => {
          throw named(error, from);
        }),
        this.#exists(place),
      ]);
      if (isThere) {
        const same = (await this.#store.stat(place)).md5 ?? "none";
        const body = (): AsyncIterable<Uint8Array> => this.get(from, { signal: ctx.signal });
        if (same !== md5 && !(await this.#holds(place, body(), ctx.signal))) throw new ObjectConflictError(to);
        return "exists";
      }
      ctx.signal.throwIfAborted();
      ctx.fence();
      const { tag } = await this.#store.copy(source, place, ctx).catch((error: unknown) => {
        throw named(error, from);
      });
      if (md5 !== null && md5OfTag(tag) === md5) ctx.onVouched?.(md5);
      return "stored";
    });
  }

  async *get(
    key: ObjectKey,
    options: { offset?: number; length?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const { offset = 0, length = null, signal } = options;
    try {
      for await (const chunk of this.#store.get(this.#key(key), { offset, length, signal })) {
        signal?.throwIfAborted();
        yield chunk;
      }
    } catch (error) {
      throw named(error, key);
    }
  }

  async stat(key: ObjectKey): Promise<{ sizeBytes: number }> {
    try {
      const { sizeBytes } = await this.#store.stat(this.#key(key));
      return { sizeBytes };
    } catch (error) {
      throw named(error, key);
    }
  }

  async *list(container: string, prefix: string): AsyncGenerator<ListedObject> {
    const place = this.#place(container);
    const wanted = place.folder + prefix;
    const asked = { label: this.#store.label, what: container };
    for await (const items of pagesOf((after) => this.#store.listPage(place.container, wanted, after), asked)) {
      for (const { name, ...rest } of items) {
        if (!name.startsWith(wanted))
          throw contradiction(asked.label, container, "it has names that were not asked for");
        if (place.folder === "" && name.startsWith(`${reservedContainer}/`)) continue;
        yield { name: name.slice(place.folder.length), ...rest };
      }
    }
  }

  remove(key: ObjectKey): Promise<void> {
    return Promise.resolve().then(() => this.#store.remove(this.#key(key)));
  }

  async *containers(onPassedOver: OnPassedOver = () => {}): AsyncGenerator<string> {
    const own = this.#store.container;
    if (await this.#store.containerExists(own)) yield own;
    const asked = { label: this.#store.label, what: "containers" };
    const ofPage = (after: string | null) =>
      this.#ifOpen("the other containers of the account", onPassedOver, () => this.#store.containersPage(after));
    for await (const names of pagesOf(ofPage, asked)) {
      for (const name of names) {
        if (name === own || name.startsWith(reservedContainer)) continue;
        if (await this.#ifOpen(name, onPassedOver, async () => this.#place(name))) yield name;
      }
    }
  }

  async *leftovers(containers: readonly string[], onPassedOver: OnPassedOver = () => {}): AsyncGenerator<Leftover> {
    yield* this.#staged();
    for (const container of new Set([this.#store.container, ...containers])) {
      const asked = { label: this.#store.label, what: `uploads to ${container}` };
      const ofPage = (after: string | null) =>
        this.#ifOpen(asked.what, onPassedOver, () => this.#store.uploadsPage(container, after));
      for await (const items of pagesOf(ofPage, asked)) {
        for (const { upload, modifiedAt } of items) {
          const { name } = upload.key;
          // Others may have uploads in progress, too.
          if (prefixOf(name) === null && !name.startsWith(`${reservedContainer}/`)) continue;
          yield { kind: "upload", container, name, id: upload.id, modifiedAt };
        }
      }
    }
  }

  async removeLeftover(leftover: Leftover, ctx: WriteContext): Promise<void> {
    if (leftover.kind === "staged") {
      const container = stagingContainer(leftover.operationId);
      const names = (await Array.fromAsync(this.list(container, ""))).map(({ name }) => name);
      for (const name of names) {
        ctx.signal.throwIfAborted();
        ctx.fence();
        await this.remove({ container, name });
      }
    }
    if (leftover.kind !== "upload") return;
    ctx.fence();
    const { container, name, id } = leftover;
    await this.#store.abandonLarge({ key: { container, name }, id }, 0);
  }

  async holdsOnly(belongs: (name: string) => boolean): Promise<boolean> {
    for await (const { name } of this.list(this.#store.container, "")) if (!belongs(name)) return false;
    return true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }

  async *#staged(): AsyncGenerator<Leftover> {
    const youngest = new Map<string, Date>();
    const { container, label } = this.#store;
    const ofPage = (after: string | null) => this.#store.listPage(container, `${reservedContainer}/`, after);
    for await (const items of pagesOf(ofPage, { label, what: container })) {
      for (const { name, modifiedAt } of items) {
        const [, operationId = "", rest] = name.split("/");
        if (rest === undefined || !operationIdPattern.test(operationId)) continue;
        const before = youngest.get(operationId);
        if (before === undefined || before < modifiedAt) youngest.set(operationId, modifiedAt);
      }
    }
    for (const [operationId, modifiedAt] of youngest) yield { kind: "staged", operationId, modifiedAt };
  }

  /** The result of a call, or null when these credentials are denied it. */
  async #ifOpen<Result>(
    place: string,
    onPassedOver: OnPassedOver,
    call: () => Promise<Result>,
  ): Promise<Result | null> {
    try {
      return await call();
    } catch (error) {
      passOver(place, error, onPassedOver);
      return null;
    }
  }

  async #marker(): Promise<Buffer> {
    return Buffer.concat(await Array.fromAsync(this.get(markerKey, { length: markerBytesMax })));
  }

  #absent(cause: unknown): RepositoryUnavailableError {
    const what = `The repository ${this.#store.label} is missing: there is no container ${this.#store.container}.`;
    return new RepositoryUnavailableError(what, { cause, retryable: false });
  }

  /** Maps one of our containers to its location in the service. */
  #place(container: string): { container: string; folder: string } {
    if (isReserved(container)) return { container: this.#store.container, folder: `${container}/` };
    this.#store.checkContainer(parseContainer(container));
    return { container, folder: "" };
  }

  #key(key: ObjectKey): ObjectKey {
    const { container, folder } = this.#place(key.container);
    const name = folder + key.name;
    // biome-ignore lint/suspicious/noControlCharactersInRegex: matching control characters is the purpose
    const wrong = /[\u0000-\u001f\u007f\\]/.test(name) || Buffer.byteLength(name) > nameBytesMax;
    const parts = key.name.split("/");
    const reserved = folder === "" && parts[0] === reservedContainer;
    if (wrong || reserved || parts.some((part) => ["", ".", ".."].includes(part))) {
      throw new InvalidObjectNameError(`Not a name for an object: ${JSON.stringify(key.name.slice(0, 300))}.`);
    }
    return { container, name };
  }

  async #putWhole(
    key: ObjectKey,
    place: ObjectKey,
    pieces: readonly Uint8Array[],
    ctx: WriteContext,
  ): Promise<"stored" | "exists"> {
    const body = await bodyOf(pieces, ctx.bodyMd5);
    ctx.signal.throwIfAborted();
    ctx.fence();
    const outcome = await this.#store.put(place, body, ctx);
    if (outcome === "doubtful" && !(await this.#holds(place, streamed(pieces), ctx.signal))) {
      await this.#store.remove(place);
      const what = `The repository ${this.#store.label} does not keep what it is sent: ${key.name}.`;
      throw new RepositoryUnavailableError(what, { retryable: true });
    }
    if (outcome === "stored") ctx.onVouched?.(body.md5);
    if (outcome !== "taken") return "stored";
    const found = await this.#store.stat(place);
    if (found.sizeBytes !== body.sizeBytes) throw new ObjectConflictError(key);
    // A different MD5 proves nothing: a store that encrypts uses other kinds of tags.
    if (found.md5 === body.md5) {
      ctx.onVouched?.(body.md5);
      return "exists";
    }
    if (!(await this.#holds(place, streamed(pieces), ctx.signal))) throw new ObjectConflictError(key);
    return "exists";
  }

  /** Parts are read one by one and not kept, so if the name is taken meanwhile, contents are compared by SHA-256. */
  async #putLarge(
    key: ObjectKey,
    place: ObjectKey,
    parts: AsyncIterable<Uint8Array[]>,
    ctx: WriteContext,
  ): Promise<"stored" | "exists"> {
    if (await this.#exists(place)) {
      if (!(await this.#holds(place, flattened(parts), ctx.signal))) throw new ObjectConflictError(key);
      return "exists";
    }
    ctx.signal.throwIfAborted();
    ctx.fence();
    const upload = await this.#store.beginLarge(place, ctx);
    const uploaded: UploadedPart[] = [];
    let begun = 0;
    let outcome: "stored" | "taken" | "failed" = "failed";
    const whole = createHash("sha256");
    try {
      for await (const pieces of parts) {
        await feed(whole, pieces);
        begun += 1;
        uploaded.push(await this.#store.putPart(upload, begun, await bodyOf(pieces), ctx));
      }
      ctx.signal.throwIfAborted();
      ctx.fence();
      outcome = await this.#store.completeLarge(upload, uploaded, ctx);
    } finally {
      // The put's own failure matters more than a failure to clean up after it.
      if (outcome !== "stored") await this.#store.abandonLarge(upload, begun).catch(() => {});
    }
    if (outcome === "stored") return "stored";
    const stored = createHash("sha256");
    const wanted = { offset: 0, length: null, signal: ctx.signal };
    for await (const chunk of this.#store.get(place, wanted)) stored.update(chunk);
    if (stored.digest("hex") !== whole.digest("hex")) throw new ObjectConflictError(key);
    return "exists";
  }

  async #inTurn<Result>(place: ObjectKey, call: () => Promise<Result>): Promise<Result> {
    const name = `${place.container}/${place.name}`;
    const before = this.#turns.get(name);
    const mine = before === undefined ? call() : before.catch(() => {}).then(call);
    this.#turns.set(name, mine);
    try {
      return await mine;
    } finally {
      if (this.#turns.get(name) === mine) this.#turns.delete(name);
    }
  }

  async #exists(place: ObjectKey): Promise<boolean> {
    try {
      await this.#store.stat(place);
      return true;
    } catch (error) {
      if (error instanceof ObjectMissingError) return false;
      throw error;
    }
  }

  /** Whether an object contains exactly these bytes. */
  async #holds(place: ObjectKey, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<boolean> {
    const stored = this.#store.get(place, { offset: 0, length: null, signal })[Symbol.asyncIterator]();
    let rest: Uint8Array = new Uint8Array(0);
    try {
      for await (const chunk of body) {
        for (let at = 0; at < chunk.length; ) {
          if (rest.length === 0) {
            const next = await stored.next();
            if (next.done) return false;
            rest = next.value;
          }
          const size = Math.min(rest.length, chunk.length - at);
          if (Buffer.compare(rest.subarray(0, size), chunk.subarray(at, at + size)) !== 0) return false;
          rest = rest.subarray(size);
          at += size;
        }
      }
      return rest.length === 0 && (await stored.next()).done === true;
    } finally {
      await stored.return?.();
    }
  }
}

/** Internal containers: the marker, and what operations stage. */
function isReserved(container: string): boolean {
  return container === reservedContainer || /^\.tephra\/[A-Za-z0-9-]+$/.test(container);
}

/** Splits the body into lists of pieces; each list but the last has `partBytes`. */
async function* partsOf(
  body: Uint8Array | AsyncIterable<Uint8Array>,
  partBytes: number,
): AsyncGenerator<Uint8Array[], undefined> {
  let pieces: Uint8Array[] = [];
  let small: Uint8Array[] = [];
  let smallBytes = 0;
  let bytes = 0;
  const join = (): void => {
    if (small.length > 0) pieces.push(small.length === 1 ? (small[0] as Uint8Array) : Buffer.concat(small));
    small = [];
    smallBytes = 0;
  };
  for await (let chunk of body instanceof Uint8Array ? [body] : body) {
    while (chunk.length > 0) {
      const piece = chunk.subarray(0, partBytes - bytes);
      chunk = chunk.subarray(piece.length);
      bytes += piece.length;
      small.push(piece);
      smallBytes += piece.length;
      if (piece.length >= chunkBytesMin || smallBytes >= hashStepBytes) join();
      if (bytes < partBytes) continue;
      join();
      yield pieces;
      pieces = [];
      bytes = 0;
    }
  }
  join();
  if (bytes > 0) yield pieces;
}

async function bodyOf(pieces: readonly Uint8Array[], known?: string): Promise<PutBody> {
  const sizeBytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
  if (known !== undefined) return { pieces, sizeBytes, md5: known };
  const md5 = createHash("md5");
  await feed(md5, pieces);
  return { pieces, sizeBytes, md5: md5.digest("hex") };
}

async function feed(hash: Hash, pieces: readonly Uint8Array[]): Promise<void> {
  for (const piece of pieces) {
    for (let start = 0; start < piece.length; start += hashStepBytes) {
      if (start > 0) await breathe();
      hash.update(piece.subarray(start, start + hashStepBytes));
    }
  }
}

async function* flattened(parts: AsyncIterable<Uint8Array[]>): AsyncGenerator<Uint8Array> {
  for await (const pieces of parts) yield* pieces;
}

/** Names a missing object by the key that the caller used. */
function named(error: unknown, key: ObjectKey): unknown {
  return error instanceof ObjectMissingError ? new ObjectMissingError(key, { cause: error }) : error;
}
