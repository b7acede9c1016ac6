import type { BackupReference } from "../chain/backup-reference.ts";
import { readHashList } from "../chain/chain.ts";
import { codecOf, labelToTry, memoryFactor, requireEncoder } from "../codec/compression.ts";
import { requireKey } from "../encryption/begin-backup.ts";
import {
  InvalidBackupError,
  InvalidLayoutError,
  SourceChangedError,
  ThreadFailedError,
  WrongChangesError,
} from "../errors.ts";
import { cutWindows, type Extent } from "../format/extents.ts";
import { cachedHashList } from "../format/hash-list.ts";
import { type BackupLayout, blocksOf, checkLayout, dataName, encodingOf, numbersOfRange } from "../format/layout.ts";
import { ListingDigest, Md5Digest } from "../format/listing-digest.ts";
import type { ObjectEntry } from "../format/object-entry.ts";
import type { RangeReport } from "../format/range-report.ts";
import { entrySlice, hashSlice, sliceDigest } from "../format/slices.ts";
import { zeroBlockHashes } from "../format/zero-blocks.ts";
import { type ObjectDraft, type ObjectKey, type Repository, stagingContainer } from "../repository/repository.ts";
import { mapConcurrent } from "../run/map-concurrent.ts";
import { claimMemory } from "../run/memory-budget.ts";
import type { RunContext, WriteContext } from "../run/run-context.ts";
import { streamed } from "../run/streamed.ts";
import {
  type CopyWindowRequest,
  type CopyWindowResult,
  changedSpans,
  type WindowExtent,
} from "../threads/cpu-tasks.ts";
import { DirectAccess } from "../threads/direct-access.ts";
import { type EngineContext, zeroForm } from "../threads/engine-context.ts";
import { fitsLanes, laneMemoryBytes, lanesMax } from "../threads/lane-sizes.ts";
import { pairedBytes } from "../threads/read-fully.ts";
import type { ThreadPlace } from "../threads/thread-place.ts";
import type { VolumeSource } from "../volume/volume.ts";
import { type CopiedLane, copyLanes, readFailure } from "./copy-lanes.ts";
import { partsToRead } from "./parts-to-read.ts";
import { storeLanes } from "./store-lanes.ts";

export interface CopyInput {
  source: VolumeSource;
  repository: Repository;
  layout: BackupLayout;
  range: Extent;
  parent: BackupReference | null;
  /**
   * The parts of the range that may differ from the parent, ascending; the storage says that all others are the same. Of these, samples
   * are read and compared, and the rest takes the parent's hashes. Absent: everything is read.
   */
  changed?: readonly Extent[];
  /** Stores a window of a full backup without reading the source. Null: it is to be read. */
  take?: (window: Extent, key: ObjectKey, ctx: WriteContext) => Promise<TakenWindow | null>;
}

/** A window that was stored as it is somewhere else: one object. */
export interface TakenWindow {
  hashes: Uint8Array;
  entry: Omit<ObjectEntry, "number">;
  storedBytes: number;
  outcome: "stored" | "exists";
}

/** A range that has been copied, with its slices not yet staged. */
export interface CopiedRange {
  report: RangeReport;
  hashes: Uint8Array[];
  entries: ObjectEntry[];
}

/** Concurrent puts per window, or per group of all-zero windows. */
const putsPerWindow = 4;
/** Windows that are read, or stored, while all threads compute. */
const windowsAhead = 2;
/** Windows that are taken at a time: the store copies them, and each is some requests that wait for each other. */
const takenAtOnce = 16;
/** Windows per group when most are holes: enough that the few with data fill the lanes. */
const windowsPerGroupMax = 512;

/**
 * Copies one range: reads it window by window, hashes it, skips blocks that the parent has, compresses and stores the rest. All objects
 * are durable when it resolves. A second run over the same source stores nothing new. Throws InvalidBackupError, with Cinder's message,
 * when the parent does not fit, and CodecUnavailableError, before anything is read, when this machine cannot encode as planned;
 * WrongChangesError when a sample differs from the parent outside `changed`. An encrypted backup must have been begun: see beginBackup.
 */
export async function copyObjects(engine: EngineContext, input: CopyInput, ctx: RunContext): Promise<CopiedRange> {
  const { layout, range, repository } = input;
  checkLayout(layout);
  checkRange(layout, range);
  requireEncoder(encodingOf(layout));
  const parent = await openParent(input, ctx.signal);
  const sourceFingerprint = await checkSource(input, null);
  await repository.ensureContainer(layout.container);
  await requireKey(repository, layout);
  const windows = cutWindows(range, layout.objectBytes);
  const readAtOnce = engine.pool.threads + windowsAhead;
  const windowsAtOnce = input.take === undefined ? readAtOnce : takenAtOnce;
  using access = await DirectAccess.open(engine.pool, input.source, Math.min(readAtOnce, windows.length));
  const copier = new RangeCopier(engine, input, ctx, { parent, access });
  const results = copier.canUseLanes(windows.length)
    ? mapConcurrent(copier.laneGroups(windows), (group, signal) => copier.copyGroup(group, signal), {
        concurrency: engine.pool.threads,
        signal: ctx.signal,
      })
    : mapConcurrent(withPlaces(windows), async (place, signal) => [await copier.copyWindow(place, signal)], {
        concurrency: windowsAtOnce,
        signal: ctx.signal,
      });
  const hashes: Uint8Array[] = [];
  const entries: ObjectEntry[] = [];
  for await (const some of results) {
    for (const window of some) {
      hashes.push(window.hashes);
      entries.push(...window.entries);
    }
  }
  await checkSource(input, sourceFingerprint);
  const report: RangeReport = {
    range: { offset: range.offset, length: range.length },
    objects: entries.length,
    blocks: blocksOf(range.length, layout.blockBytes),
    bytesRead: copier.bytesRead,
    bytesStored: copier.bytesStored,
    bytesAdopted: copier.bytesAdopted,
    sourceFingerprint,
    listingDigest: copier.listing.hex,
    md5Digest: copier.vouched.hex,
    hashesDigest: sliceDigest(hashSlice(hashes)),
    entriesDigest: sliceDigest(entrySlice(layout.prefix, entries)),
    staged: null,
  };
  return { report, hashes, entries };
}

/**
 * Copies a range and stages its slices. `staging.name` must differ between attempts that may run concurrently, so that a late one cannot
 * overwrite another's slices.
 */
export async function copyRange(
  engine: EngineContext,
  input: CopyInput & { staging: { operationId: string; name: string } },
  ctx: RunContext,
): Promise<RangeReport> {
  return stageCopied(input, await copyObjects(engine, input, ctx), ctx);
}

/** Stages the slices of a copied range. */
export async function stageCopied(
  input: Pick<CopyInput, "repository" | "layout"> & { staging: { operationId: string; name: string } },
  { report, hashes, entries }: CopiedRange,
  ctx: WriteContext,
): Promise<RangeReport> {
  const container = stagingContainer(input.staging.operationId);
  const staged = { hashes: `${input.staging.name}.hashes`, entries: `${input.staging.name}.entries` };
  await input.repository.ensureContainer(container);
  await input.repository.putIfAbsent({ container, name: staged.hashes }, streamed(hashSlice(hashes)), ctx);
  const entryChunks = streamed(entrySlice(input.layout.prefix, entries));
  await input.repository.putIfAbsent({ container, name: staged.entries }, entryChunks, ctx);
  return { ...report, staged };
}

/** A window whose objects are stored. */
interface CopiedWindow {
  hashes: Uint8Array;
  entries: ObjectEntry[];
}

/** A window of a group and its data, as pairs of start and end within it. A window without data is zero and is not read. */
interface GroupWindow {
  window: Extent;
  data: Float64Array<ArrayBuffer>;
}

async function dataPairs(source: VolumeSource, window: Extent): Promise<Float64Array<ArrayBuffer>> {
  const pairs: number[] = [];
  for await (const { offset, length } of source.dataExtents(window)) {
    pairs.push(offset - window.offset, offset - window.offset + length);
  }
  return Float64Array.from(pairs);
}

/** A window and a promise of the last object number before it, which the preceding window settles. */
interface WindowPlace {
  window: Extent;
  numberBefore: Promise<number> | null;
  settle: (objects: number) => void;
}

/** Chains the windows so that objects are numbered in order although windows are processed concurrently. */
function* withPlaces(windows: readonly Extent[]): Generator<WindowPlace> {
  let before: Promise<number> | null = null;
  for (const window of windows) {
    const next = Promise.withResolvers<number>();
    next.promise.catch(() => {});
    yield { window, numberBefore: before, settle: next.resolve };
    before = next.promise;
  }
}

interface ParentHashes {
  read(first: number, count: number): Promise<Uint8Array<ArrayBuffer>>;
}

class RangeCopier {
  bytesDone = 0;
  bytesRead = 0;
  bytesStored = 0;
  bytesAdopted = 0;
  readonly listing = new ListingDigest();
  readonly vouched = new Md5Digest();
  readonly #engine: EngineContext;
  readonly #input: CopyInput;
  readonly #ctx: RunContext;
  readonly #parent: ParentHashes | null;
  readonly #access: DirectAccess;
  /** Settled when the window before has its memory. */
  #claimed: Promise<unknown> = Promise.resolve();

  constructor(
    engine: EngineContext,
    input: CopyInput,
    ctx: RunContext,
    { parent, access }: { parent: ParentHashes | null; access: DirectAccess },
  ) {
    this.#engine = engine;
    this.#input = input;
    this.#ctx = ctx;
    this.#parent = parent;
    this.#access = access;
  }

  /**
   * Whether windows can be copied in lockstep: uncompressed full backup of what every thread can read, to a repository that streams puts,
   * with multi-lane MD5. Everything else holds whole windows in memory.
   */
  canUseLanes(windows: number): boolean {
    const { layout, repository } = this.#input;
    return (
      windows > 1 &&
      this.#input.take === undefined &&
      this.#parent === null &&
      layout.parentId === null &&
      codecOf(layout.compression) === "none" &&
      this.#access.places >= Math.min(windows, this.#engine.pool.threads) &&
      repository.streamsPuts === true &&
      fitsLanes(layout.blockBytes) &&
      this.#engine.pool.hashing.md5 !== "openssl"
    );
  }

  /** Consecutive windows; each group holds at most as many with data as there are lanes, and few enough that every thread gets a group. */
  async *laneGroups(windows: readonly Extent[]): AsyncGenerator<GroupWindow[]> {
    const { source } = this.#input;
    const marked: GroupWindow[] = [];
    for (const window of windows) marked.push({ window, data: await dataPairs(source, window) });
    const full = marked.filter(({ data }) => data.length > 0).length;
    const lanes = Math.min(lanesMax, Math.max(1, Math.ceil(full / this.#engine.pool.threads)));
    let group: GroupWindow[] = [];
    let used = 0;
    for (const each of marked) {
      if (used === lanes || group.length === windowsPerGroupMax) {
        yield group;
        group = [];
        used = 0;
      }
      group.push(each);
      if (each.data.length > 0) used++;
    }
    if (group.length > 0) yield group;
  }

  /** Copies windows of a full backup, whose object numbers depend only on their position. */
  async copyGroup(group: readonly GroupWindow[], signal: AbortSignal): Promise<CopiedWindow[]> {
    const full = group.filter(({ data }) => data.length > 0);
    const bytes = laneMemoryBytes(full.length, this.#input.layout.blockBytes);
    const of = full.reduce((sum, { window }) => sum + window.length, 0);
    const release = await claimMemory(this.#engine.memory, { bytes, of }, { ...this.#ctx, signal });
    try {
      const stored = full.length === 0 ? [] : await this.#storeLanes(full, signal);
      const lanes = stored ?? (await this.#copyLanes(full, signal));
      const laneOf = new Map(full.map(({ window }, index) => [window, lanes[index]]));
      const finish = async ({ window }: GroupWindow, inner: AbortSignal): Promise<CopiedWindow> => {
        const number = window.offset / this.#input.layout.objectBytes + 1;
        const lane = laneOf.get(window);
        const copied: CopiedWindow =
          lane?.put === true
            ? { hashes: lane.hashes, entries: [{ number, ...window, md5: lane.md5, compression: "none" }] }
            : await this.#copyZeros(window, number, inner);
        // What threads have stored was counted piece by piece.
        this.#passed(stored !== null && lane !== undefined ? 0 : window.length);
        return copied;
      };
      return await Array.fromAsync(mapConcurrent(group, finish, { concurrency: putsPerWindow, signal }));
    } finally {
      release();
    }
  }

  /** Where threads may write the objects' files themselves. Null, with nothing stored, where that cannot be: see storeLanes and openDraft. */
  async #storeLanes(group: readonly GroupWindow[], signal: AbortSignal): Promise<CopiedLane[] | null> {
    const { layout, repository, source } = this.#input;
    const { fence, pace, writableUntil } = this.#ctx;
    if (writableUntil === undefined) return null;
    await using opened = new AsyncDisposableStack();
    const drafts: ObjectDraft[] = [];
    for (const { window } of group) {
      const draft = (await repository.openDraft?.(this.#keyOf(window), { signal, fence })) ?? null;
      if (draft === null) return null;
      drafts.push(opened.use(draft));
    }
    const windows = group.map(({ window, data }, index) => {
      return { ...window, data, descriptor: (drafts[index] as ObjectDraft).descriptor };
    });
    let passed = 0;
    const onBytes = (bytes: number): void => {
      passed += bytes;
      this.#passed(bytes);
    };
    const { blockBytes, compressZeros: leaveZeros = true } = layout;
    const input = { source, windows, blockBytes, leaveZeros, fence, writableUntil, onBytes, ...(pace && { pace }) };
    // Without a place to read from, copying says why.
    const { lanes } = await this.#access.use(async (from) => {
      return { lanes: from === null ? null : await storeLanes(this.#engine, { ...input, from }, signal) };
    });
    if (lanes === null) {
      this.bytesDone -= passed;
      return null;
    }
    for (const { data } of windows) this.bytesRead += pairedBytes(data);
    const store = async ({ window }: GroupWindow, index: number): Promise<void> => {
      if (lanes[index]?.put !== true) return;
      const outcome = await (drafts[index] as ObjectDraft).store(window.length);
      this.#stored(this.#keyOf(window).name, { storedBytes: window.length, vouched: null, outcome });
    };
    const settled = await Promise.allSettled(group.map(store));
    for (const result of settled) if (result.status === "rejected") throw result.reason;
    return lanes;
  }

  /** The object of a whole window. */
  #keyOf(window: Extent): ObjectKey {
    const { container, prefix, objectBytes } = this.#input.layout;
    return { container, name: dataName(prefix, window.offset / objectBytes + 1) };
  }

  #copyLanes(group: readonly GroupWindow[], signal: AbortSignal): Promise<CopiedLane[]> {
    const { layout, source } = this.#input;
    const put = async (index: number, body: AsyncIterable<Uint8Array>, inner: AbortSignal): Promise<void> => {
      const { offset, length } = windows[index] as Extent;
      await this.#putObject(offset / layout.objectBytes + 1, body, { storedBytes: length, md5: null }, inner);
    };
    const windows = group.map(({ window, data }) => ({ ...window, data }));
    for (const { data } of windows) this.bytesRead += pairedBytes(data);
    const leaveZeros = layout.compressZeros ?? true;
    const { pace } = this.#ctx;
    const input = { source, windows, blockBytes: layout.blockBytes, leaveZeros, put, ...(pace && { pace }) };
    return this.#access.use((from) => {
      // There are as many places as groups at a time, unless one has failed already.
      if (from === null) throw new ThreadFailedError("A connection to the source has failed.");
      return copyLanes(this.#engine, { ...input, from }, signal);
    });
  }

  async #copyZeros(window: Extent, number: number, signal: AbortSignal): Promise<CopiedWindow> {
    const copied = await this.#hashZeros(window, null);
    return { hashes: copied.hashes, entries: await this.#store(window, copied, number - 1, signal) };
  }

  #passed(bytes: number): void {
    this.bytesDone += bytes;
    this.#ctx.onProgress({ bytesDone: this.bytesDone, bytesStored: this.bytesStored });
  }

  async copyWindow(place: WindowPlace, signal: AbortSignal): Promise<CopiedWindow> {
    const { window } = place;
    const taken = await this.#take(window, signal);
    if (taken !== null) {
      place.settle(window.offset / this.#input.layout.objectBytes + 1);
      this.#passed(window.length);
      return taken;
    }
    const claim = { bytes: this.#memoryOf(window), of: window.length };
    const release = await this.#claimInTurn(claim, signal);
    try {
      const { hashes, parts } = await this.#readChanges(window, signal);
      let number = await this.#numberBefore(place, signal);
      place.settle(parts.reduce((sum, { copied }) => sum + copied.extents.length, number));
      const entries: ObjectEntry[] = [];
      for (const { part, copied } of parts) {
        entries.push(...(await this.#store(part, copied, number, signal)));
        number += copied.extents.length;
      }
      this.#passed(window.length);
      return { hashes, entries };
    } finally {
      release();
    }
  }

  /**
   * Claims memory for the windows of a range in their order: one that holds memory waits for the number of the window before, which so never
   * waits for memory that is held for its sake.
   */
  #claimInTurn(claim: { bytes: number; of: number }, signal: AbortSignal): Promise<() => void> {
    const claimed = this.#claimed.then(() => claimMemory(this.#engine.memory, claim, { ...this.#ctx, signal }));
    this.#claimed = claimed.catch(() => {});
    return claimed;
  }

  /**
   * The last object number before a window. Where windows are taken it follows from the position, as in every full backup: who waited for the window before while holding memory
   * could wait for one that waits for memory.
   */
  async #numberBefore({ window, numberBefore }: WindowPlace, signal: AbortSignal): Promise<number> {
    const { layout, range, take } = this.#input;
    if (take !== undefined) return window.offset / layout.objectBytes;
    return (await orAbort(numberBefore, signal)) ?? numbersOfRange(layout, range).from;
  }

  async #take(window: Extent, signal: AbortSignal): Promise<CopiedWindow | null> {
    const { layout, take } = this.#input;
    if (take === undefined) return null;
    const number = window.offset / layout.objectBytes + 1;
    const key = this.#keyOf(window);
    let vouched: string | null = null;
    const onVouched = (md5: string): void => {
      vouched = md5;
    };
    const taken = await take(window, key, { signal, fence: this.#ctx.fence, onVouched });
    if (taken === null) return null;
    this.#stored(key.name, { ...taken, vouched });
    return { hashes: taken.hashes, entries: [{ number, ...taken.entry }] };
  }

  /** The window itself, the most that its compressed form usually takes, and its encrypted form unless that is streamed. */
  #memoryOf(window: Extent): number {
    const { layout, repository } = this.#input;
    const encrypted = layout.encrypted === true && repository.streamsPuts !== true ? 1 : 0;
    return window.length * (memoryFactor(layout.compression) + encrypted);
  }

  /** Reads the parts of a window that may have changed, and samples of the others, which must be as in the parent. */
  async #readChanges(
    window: Extent,
    signal: AbortSignal,
  ): Promise<{ hashes: Uint8Array; parts: { part: Extent; copied: CopyWindowResult }[] }> {
    const { blockBytes } = this.#input.layout;
    if (this.#parent === null || this.#input.changed === undefined) {
      const copied = await this.#readAndHash(window, signal);
      return { hashes: copied.hashes, parts: [{ part: window, copied }] };
    }
    const firstBlock = window.offset / blockBytes;
    const hashes = new Uint8Array(await this.#parent.read(firstBlock, blocksOf(window.length, blockBytes)));
    const parts: { part: Extent; copied: CopyWindowResult }[] = [];
    for (const { part, isSample } of partsToRead(window, this.#input.changed, blockBytes)) {
      const copied = await this.#readAndHash(part, signal);
      if (isSample && copied.extents.length > 0) throw new WrongChangesError(part);
      hashes.set(copied.hashes, ((part.offset - window.offset) / blockBytes) * 32);
      parts.push({ part, copied });
    }
    return { hashes, parts };
  }

  async #readAndHash(window: Extent, signal: AbortSignal): Promise<CopyWindowResult> {
    const { layout, repository, source } = this.#input;
    const count = blocksOf(window.length, layout.blockBytes);
    const parentHashes = (await this.#parent?.read(window.offset / layout.blockBytes, count)) ?? null;
    const data = await dataPairs(source, window);
    if (data.length === 0) return this.#hashZeros(window, parentHashes);
    this.bytesRead += pairedBytes(data);
    await this.#ctx.pace?.(pairedBytes(data));
    const request = {
      kind: "copyWindow" as const,
      blockBytes: layout.blockBytes,
      parentHashes,
      ...encodingOf(layout),
      compressZeros: layout.compressZeros ?? true,
      digestStored: repository.storage === "objects" && layout.encrypted !== true,
    };
    const result = await this.#access.use(async (place) => {
      const filled = await this.#fill(window, data, place, signal);
      const moved = [filled.window, parentHashes?.buffer].filter((buffer) => buffer instanceof ArrayBuffer);
      return this.#engine.pool.run<CopyWindowRequest>({ ...request, ...filled }, moved, signal);
    });
    if ("unread" in result) throw await readFailure(source, result.unread);
    return result;
  }

  /** Reads a window, or leaves it to the thread where there is a place to read from. `data`: pairs of start and end within the window. */
  async #fill(
    window: Extent,
    data: Float64Array<ArrayBuffer>,
    place: ThreadPlace | null,
    signal: AbortSignal,
  ): Promise<Pick<CopyWindowRequest, "window" | "source">> {
    const { source } = this.#input;
    if (place !== null) return { window: null, source: { place, ...window, data } };
    const buffer = new ArrayBuffer(window.length);
    for (let pair = 0; pair < data.length; pair += 2) {
      signal.throwIfAborted();
      const start = data[pair] as number;
      const part = new Uint8Array(buffer, start, (data[pair + 1] as number) - start);
      await source.read(part, window.offset + start);
    }
    return { window: buffer, source: null };
  }

  /** A window known to be zero: nothing is read, and its hashes and compressed form are computed only once. */
  async #hashZeros(window: Extent, parentHashes: Uint8Array | null): Promise<CopyWindowResult> {
    const { layout } = this.#input;
    const hashes = zeroBlockHashes(window.length, layout.blockBytes);
    const whole = [{ first: 0, end: hashes.length / 32 }];
    const spans = parentHashes === null ? whole : changedSpans(hashes, parentHashes);
    const compressZeros = layout.compressZeros ?? true;
    const label = labelToTry(layout.compression, { known: true, compressZeros });
    const extents: WindowExtent[] = [];
    for (const span of spans) {
      const offset = span.first * layout.blockBytes;
      const length = Math.min(span.end * layout.blockBytes, window.length) - offset;
      const { md5, pieces } = await zeroForm(this.#engine, { ...encodingOf(layout), compression: label, length });
      const compression = pieces === null ? "none" : label;
      const storedMd5 = pieces === null ? md5 : null;
      extents.push({ offset, at: offset, length, md5, compression, pieces, storedMd5, ownership: "shared" });
    }
    const needsRaw = extents.some((extent) => extent.pieces === null);
    return { hashes, extents, raw: needsRaw ? new ArrayBuffer(window.length) : null };
  }

  async #store(
    window: Extent,
    copied: CopyWindowResult,
    numberBefore: number,
    signal: AbortSignal,
  ): Promise<ObjectEntry[]> {
    const numbered = copied.extents.map((extent, index) => ({ extent, number: numberBefore + index + 1 }));
    const stored = mapConcurrent(
      numbered,
      ({ extent, number }, inner) => this.#put(window, copied.raw, extent, number, inner),
      { concurrency: putsPerWindow, signal },
    );
    const entries: ObjectEntry[] = [];
    for await (const entry of stored) entries.push(entry);
    if (copied.raw !== null) copied.raw.transfer(0);
    return entries;
  }

  async #put(
    window: Extent,
    raw: ArrayBuffer | null,
    extent: WindowExtent,
    number: number,
    signal: AbortSignal,
  ): Promise<ObjectEntry> {
    const pieces = extent.pieces ?? [new Uint8Array(raw as ArrayBuffer, extent.at, extent.length)];
    const storedBytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
    await this.#putObject(number, streamed(pieces), { storedBytes, md5: extent.storedMd5 }, signal);
    // Free the memory now rather than at some later garbage collection.
    if (extent.ownership === "own") for (const piece of extent.pieces ?? []) piece.buffer.transfer(0);
    const { length, md5, compression } = extent;
    return { number, offset: window.offset + extent.offset, length, md5, compression };
  }

  async #putObject(
    number: number,
    body: AsyncIterable<Uint8Array>,
    { storedBytes, md5 }: { storedBytes: number; md5: string | null },
    signal: AbortSignal,
  ): Promise<void> {
    const { layout, repository } = this.#input;
    const name = dataName(layout.prefix, number);
    const key = { container: layout.container, name };
    let vouched: string | null = null;
    const onVouched = (md5: string): void => {
      vouched = md5;
    };
    const known = md5 === null ? {} : { bodyMd5: md5 };
    const outcome = await repository.putIfAbsent(key, body, { signal, fence: this.#ctx.fence, onVouched, ...known });
    this.#stored(name, { storedBytes, vouched, outcome });
  }

  #stored(
    name: string,
    { storedBytes, vouched, outcome }: { storedBytes: number; vouched: string | null; outcome: "stored" | "exists" },
  ): void {
    this.listing.add(name, storedBytes);
    this.vouched.add(name, vouched);
    this.bytesStored += storedBytes;
    if (outcome === "exists") this.bytesAdopted += storedBytes;
  }
}

/** Waits for a promise that another window settles; stops waiting when this window is aborted. */
async function orAbort<Value>(promise: Promise<Value> | null, signal: AbortSignal): Promise<Value | null> {
  if (promise === null) return null;
  const aborted = Promise.withResolvers<never>();
  const onAbort = (): void => aborted.reject(signal.reason);
  signal.throwIfAborted();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

function checkRange(layout: BackupLayout, range: Extent): void {
  const end = range.offset + range.length;
  const wholeWindows = range.offset % layout.objectBytes === 0;
  const wholeEnd = end % layout.objectBytes === 0 || end === layout.volumeBytes;
  if (range.offset < 0 || range.length < 1 || end > layout.volumeBytes || !wholeWindows || !wholeEnd) {
    throw new InvalidLayoutError(
      `The range ${range.offset}+${range.length} is not made of whole windows of the volume.`,
    );
  }
}

/** Checks that the source has not changed and still has the planned length: past its end, missing data looks like a hole. */
async function checkSource(input: CopyInput, before: string | null): Promise<string> {
  const { source, layout } = input;
  if (source.sizeBytes < layout.volumeBytes) {
    throw new SourceChangedError(`The source has ${source.sizeBytes} bytes, ${layout.volumeBytes} were planned.`);
  }
  const fingerprint = await source.fingerprint();
  if (before !== null && fingerprint !== before) {
    throw new SourceChangedError("The source changed while it was being read.");
  }
  return fingerprint;
}

/** The parent's hashes for this range; both refusals and their messages are Cinder's. */
async function openParent(input: CopyInput, signal: AbortSignal): Promise<ParentHashes | null> {
  const { layout, parent } = input;
  if ((layout.parentId === null) !== (parent === null)) {
    throw new InvalidLayoutError("A parent was planned and none given, or the other way round.");
  }
  if (parent === null) return null;
  const list = await readHashList(parent, signal);
  if (list.blockBytes !== layout.blockBytes) {
    throw new InvalidBackupError(
      "Hash block size has changed since the last backup. " +
        `New hash block size: ${layout.blockBytes}. Old hash block size: ${list.blockBytes}. Do a full backup.`,
    );
  }
  if (list.count < blocksOf(layout.volumeBytes, layout.blockBytes)) {
    throw new InvalidBackupError("Volume size increased since the last backup. Do a full backup.");
  }
  return cachedHashList(list);
}

/** A reference to where a layout's objects are stored. */
export function referenceOf(layout: BackupLayout, repository: Repository): BackupReference {
  return { backupId: layout.backupId, repository, container: layout.container, prefix: layout.prefix };
}
