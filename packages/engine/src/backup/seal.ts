import { createHash } from "node:crypto";
import { asDamage, damaged } from "../chain/backup-reference.ts";
import { encryptionFor, requireKey } from "../encryption/begin-backup.ts";
import {
  InvalidLayoutError,
  ObjectMissingError,
  RangesIncompleteError,
  SourceChangedError,
  StrayObjectsError,
} from "../errors.ts";
import { hashListHead, hashListTail } from "../format/hash-list.ts";
import {
  type BackupLayout,
  checkLayout,
  dataNumber,
  hashListName,
  keyVersion,
  metadataName,
  numbersOfRange,
} from "../format/layout.ts";
import { ListingDigest, Md5Digest } from "../format/listing-digest.ts";
import { metadataHead, metadataTail } from "../format/metadata.ts";
import type { RangeReport } from "../format/range-report.ts";
import { entrySlice, hashing, hashSlice, joinSlices } from "../format/slices.ts";
import { type Repository, stagingContainer } from "../repository/repository.ts";
import type { RunContext } from "../run/run-context.ts";
import { streamed } from "../run/streamed.ts";
import { type CopiedRange, referenceOf } from "./copy-range.ts";

export interface SealInput {
  repository: Repository;
  layout: BackupLayout;
  operationId: string;
  /** In range order. */
  reports: readonly RangeReport[];
}

export interface SealResult {
  objects: number;
  /** Bytes of all data objects as stored. */
  bytesStored: number;
}

/** Reads one of the two slices of the range with this index. */
type ReadSlice = (index: number) => AsyncIterable<Uint8Array>;

/** Most stray names that an error lists. */
const namesShownMax = 5;

/**
 * Completes a backup from its copied ranges: compares the listing with the reports, writes `_sha256file`, reads it back, then writes
 * `_metadata`, which makes the backup exist. Idempotent. RangesIncompleteError names ranges to copy again; StrayObjectsError and
 * ObjectConflictError mean that another writer has used this prefix.
 */
export function seal(input: SealInput, ctx: RunContext): Promise<SealResult> {
  const container = stagingContainer(input.operationId);
  const staged = (index: number, which: "hashes" | "entries"): AsyncIterable<Uint8Array> => {
    const name = input.reports[index]?.staged?.[which];
    if (name === undefined) throw new RangesIncompleteError([index]);
    return readStaged(input.repository, { container, name }, index, ctx.signal);
  };
  return sealWith(
    input,
    { hashes: (index) => staged(index, "hashes"), entries: (index) => staged(index, "entries") },
    ctx,
  );
}

/** Completes a backup whose slices are in memory. */
export function sealCopied(
  input: { repository: Repository; layout: BackupLayout; ranges: readonly CopiedRange[] },
  ctx: RunContext,
): Promise<SealResult> {
  const { ranges, layout } = input;
  const range = (index: number): CopiedRange => ranges[index] as CopiedRange;
  const slices = {
    hashes: (index: number) => streamed(hashSlice(range(index).hashes)),
    entries: (index: number) => streamed(entrySlice(layout.prefix, range(index).entries)),
  };
  return sealWith({ repository: input.repository, layout, reports: ranges.map(({ report }) => report) }, slices, ctx);
}

async function sealWith(
  input: Omit<SealInput, "operationId">,
  slices: { hashes: ReadSlice; entries: ReadSlice },
  ctx: RunContext,
): Promise<SealResult> {
  const { repository, layout, reports } = input;
  checkLayout(layout);
  checkCoverage(layout, reports);
  await repository.ensureContainer(layout.container);
  await requireKey(repository, layout);
  await compareListing(repository, layout, reports, ctx.signal);
  const hashLists = reports.map((report, index) => verified(slices.hashes, index, report.hashesDigest));
  const hash = createHash("sha256");
  const hashList = hashing(joinSlices(hashListHead(layout), hashLists, hashListTail(layout)), hash);
  const hashListKey = { container: layout.container, name: hashListName(layout.prefix) };
  await repository.putIfAbsent(hashListKey, hashList, ctx);
  await readBack(repository, layout, hash.digest("hex"), ctx.signal);
  const entryLists = reports.map((report, index) => verified(slices.entries, index, report.entriesDigest));
  const metadata = joinSlices(metadataHead(layout), entryLists, metadataTail(layout));
  const objects = reports.reduce((sum, report) => sum + report.objects, 0);
  await putMetadata(input, { body: metadata, objects }, ctx);
  return {
    objects,
    bytesStored: reports.reduce((sum, report) => sum + report.bytesStored, 0),
  };
}

async function putMetadata(
  { repository, layout }: Pick<SealInput, "repository" | "layout">,
  { body, objects }: { body: AsyncIterable<Uint8Array>; objects: number },
  ctx: RunContext,
): Promise<void> {
  const encryption = encryptionFor(repository, layout);
  if (encryption !== null) return encryption.putMetadata(layout, { label: { ...layout, objects }, body }, ctx);
  await repository.putIfAbsent({ container: layout.container, name: metadataName(layout.prefix) }, body, ctx);
}

/** The reports must cover one source in consecutive ranges, from the start of the volume to its end. */
function checkCoverage(layout: BackupLayout, reports: readonly RangeReport[]): void {
  let at = 0;
  for (const { range, sourceFingerprint } of reports) {
    if (sourceFingerprint !== reports[0]?.sourceFingerprint) {
      throw new SourceChangedError("The source changed between the copies of its ranges.");
    }
    if (range.offset !== at) throw new InvalidLayoutError(`The reports leave out or repeat what starts at byte ${at}.`);
    at += range.length;
  }
  if (at !== layout.volumeBytes) {
    throw new InvalidLayoutError(`The reports cover ${at} of the volume's ${layout.volumeBytes} bytes.`);
  }
}

/**
 * Names and stored sizes under the prefix must match the reports exactly, and the MD5s in the listing must match those that the store
 * confirmed when the objects were put.
 */
async function compareListing(
  repository: Repository,
  layout: BackupLayout,
  reports: readonly RangeReport[],
  signal: AbortSignal,
): Promise<void> {
  const ends = reports.map((report) => numbersOfRange(layout, report.range).to);
  const found = reports.map(() => ({ listing: new ListingDigest(), md5s: new Md5Digest() }));
  const stray: string[] = [];
  for await (const { name, sizeBytes, md5 = null } of repository.list(layout.container, layout.prefix)) {
    signal.throwIfAborted();
    if (name === metadataName(layout.prefix) || name === hashListName(layout.prefix)) continue;
    if (layout.encrypted === true && keyVersion(layout.prefix, name) !== null) continue;
    const number = dataNumber(layout.prefix, name);
    const range = number === null || number < 1 ? undefined : found[indexOfNumber(ends, number)];
    if (range === undefined) stray.push(name);
    range?.listing.add(name, sizeBytes);
    range?.md5s.add(name, md5);
    if (stray.length >= namesShownMax) break;
  }
  if (stray.length > 0) throw new StrayObjectsError(stray);
  const incomplete: number[] = [];
  for (const [index, report] of reports.entries()) {
    const { listing, md5s } = found[index] as { listing: ListingDigest; md5s: Md5Digest };
    if (listing.count > report.objects) throw new StrayObjectsError(await strayNames(repository, layout, ends, index));
    const same = listing.hex === report.listingDigest && !isOther(md5s.hex, report.md5Digest ?? null);
    if (listing.count < report.objects || !same) incomplete.push(index);
  }
  if (incomplete.length > 0) throw new RangesIncompleteError(incomplete);
}

/** Where either side lacks some MD5s, they prove nothing. */
const isOther = (listed: string | null, vouched: string | null): boolean =>
  listed !== null && vouched !== null && listed !== vouched;

/** Index of the first range whose last object number is at least `number`. */
function indexOfNumber(ends: readonly number[], number: number): number {
  let low = 0;
  let high = ends.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((ends[middle] as number) < number) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The last names of a range that holds more objects than its report counted; uncounted objects sort last. */
async function strayNames(
  repository: Repository,
  layout: BackupLayout,
  ends: readonly number[],
  index: number,
): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of repository.list(layout.container, layout.prefix)) {
    const number = dataNumber(layout.prefix, name);
    if (number === null || indexOfNumber(ends, number) !== index) continue;
    names.push(name);
    if (names.length > namesShownMax) names.sort().shift();
  }
  return names;
}

/** A slice that fails at its end unless its bytes match the reported digest. */
async function* verified(read: ReadSlice, index: number, digest: string): AsyncGenerator<Uint8Array> {
  const hash = createHash("sha256");
  yield* hashing(read(index), hash);
  if (hash.digest("hex") !== digest) throw new RangesIncompleteError([index]);
}

async function* readStaged(
  repository: Repository,
  key: { container: string; name: string },
  index: number,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  try {
    yield* repository.get(key, { signal });
  } catch (error) {
    throw error instanceof ObjectMissingError ? new RangesIncompleteError([index]) : error;
  }
}

/** Later incremental backups trust this list, so it must read back as it was written. */
async function readBack(
  repository: Repository,
  layout: BackupLayout,
  digest: string,
  signal: AbortSignal,
): Promise<void> {
  const reference = referenceOf(layout, repository);
  const name = hashListName(layout.prefix);
  const hash = createHash("sha256");
  try {
    for await (const chunk of repository.get({ container: layout.container, name }, { signal })) hash.update(chunk);
  } catch (error) {
    throw asDamage(reference, name, error);
  }
  if (hash.digest("hex") !== digest) throw damaged(reference, name, "it does not read as it was written");
}
