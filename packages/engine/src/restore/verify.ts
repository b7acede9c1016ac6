import { createHash } from "node:crypto";
import { asDamage, type BackupReference } from "../chain/backup-reference.ts";
import { type Chain, chainSteps, findHashList, openChain } from "../chain/chain.ts";
import { compareListing, type DamagedObject, Findings } from "../chain/compare-listing.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { InvalidBackupError, RestoredWrongError } from "../errors.ts";
import type { Extent } from "../format/extents.ts";
import { cachedHashList, type HashList } from "../format/hash-list.ts";
import { hashListName, metadataName } from "../format/layout.ts";
import { mapConcurrent } from "../run/map-concurrent.ts";
import type { RunContext } from "../run/run-context.ts";
import { DirectAccess } from "../threads/direct-access.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import type { VolumeSource, VolumeTarget } from "../volume/volume.ts";
import { blockBytesOf, type RestoreJob } from "./job.ts";
import { type DoneObject, laneGroups, restoreGroup } from "./lanes.ts";
import { restoreObject } from "./object.ts";
import { type RestoreRange, readRange, stageRanges } from "./restore.ts";

export interface VerifyInput {
  /** Newest first; ends with the full backup. */
  chain: readonly BackupReference[];
  /** quick: compares listings and sizes with the metadata. deep: also checks every byte that a restore would read, and every hash. */
  mode: "quick" | "deep";
}

export interface VerifyResult {
  mode: "quick" | "deep";
  /** Data objects examined: quick, all of the chain; deep, those that a restore would read. */
  objects: number;
  /** Blocks of the volume whose SHA-256 was compared; 0 for quick. */
  blocks: number;
  /** At most a thousand. Empty: a restore would succeed, as far as the mode can tell. */
  damaged: DamagedObject[];
}

/**
 * Verifies that a backup can be restored, including all its ancestors. Damage is collected, not thrown; an object counts as damaged when
 * two reads have shown it. Throws when the repository cannot be read, and InvalidBackupError for an invalid chain.
 */
export async function verifyBackup(engine: EngineContext, input: VerifyInput, ctx: RunContext): Promise<VerifyResult> {
  const findings = new Findings();
  const { listed, chain } = await lookThrough(input.chain, findings, ctx.signal);
  const quick = { mode: input.mode, objects: listed, blocks: 0 };
  if (input.mode === "quick" || chain === undefined) return { ...quick, damaged: findings.damaged };
  const { references, hashes, volumeBytes } = chain;
  const job = jobOf(engine, { references, hashes, bounds: { offset: 0, length: volumeBytes } }, ctx);
  return { ...quick, ...(await readObjects(job, objectsOf(chain, ctx.signal), findings)), damaged: findings.damaged };
}

export interface PlanVerifyInput extends VerifyInput {
  rangeBytes: number;
  rangesMax: number;
  staging: { operationId: string; name: string };
}

export interface PlannedVerify {
  /** Findings from listings and metadata: the whole result of a quick verification. */
  found: VerifyResult;
  /** What remains to be read; empty for a quick verification, and when the metadata is too damaged to describe it. */
  ranges: RestoreRange[];
}

/**
 * The part of a verification that cannot be distributed: checks listings and metadata and, for a deep one, stages what is to be read in
 * ranges, like a restore. The ranges' results are added to these findings, whose `objects` is 0 when there are ranges.
 */
export async function planVerify(input: PlanVerifyInput, ctx: RunContext): Promise<PlannedVerify> {
  const findings = new Findings();
  const { listed, chain } = await lookThrough(input.chain, findings, ctx.signal);
  const deep = input.mode === "deep" && chain !== undefined;
  const ranges = deep ? ((await findings.collect(() => stageRanges(chain, input, ctx))) ?? []) : [];
  const objects = ranges.length > 0 ? 0 : listed;
  return { found: { mode: input.mode, objects, blocks: 0, damaged: findings.damaged }, ranges };
}

/** The target of a restore test: a new scratch volume as long as the backup, discarded afterwards; written and read back. */
export interface Drill {
  target: VolumeTarget;
  restored: VolumeSource;
}

export interface VerifyRangeInput {
  chain: readonly BackupReference[];
  range: RestoreRange;
  staging: { operationId: string };
  drill?: Drill | null;
}

/**
 * Reads and checks everything that one range of a planned verification would restore. With a drill (restore test) it is also restored,
 * read back and compared with the hash list: RestoredWrongError when the volume does not contain what was written to it.
 */
export async function verifyRange(
  engine: EngineContext,
  input: VerifyRangeInput,
  ctx: RunContext,
): Promise<VerifyResult> {
  const { chain: references, range, staging, drill = null } = input;
  const [newest] = references;
  if (newest === undefined) throw new InvalidBackupError("There is nothing to verify.");
  const objects = await readRange(references, range, staging, ctx.signal);
  const findings = new Findings();
  const read = await findings.collect(async () => {
    const hashes = await findHashList(newest, ctx.signal);
    const bounds = { offset: range.offset, length: range.length };
    const job = jobOf(engine, { references, hashes, bounds }, ctx);
    const target = drill?.target ?? null;
    using access = target === null ? null : await DirectAccess.open(engine.pool, target, engine.pool.threads + 2);
    const counted = await readObjects({ ...job, target, access }, objects, findings);
    if (drill !== null && job.hashes !== null && findings.damaged.length === 0) {
      await drill.target.flush();
      await compareRestored(drill.restored, { hashes: job.hashes, bounds }, ctx.signal);
    }
    return counted;
  });
  return { mode: "deep", objects: 0, blocks: 0, ...read, damaged: findings.damaged };
}

const readBytes = 1024 * 1024;

/** Reads a part of a volume that starts on a block boundary, and compares the hash of every block in it. */
async function compareRestored(
  restored: VolumeSource,
  { hashes, bounds }: { hashes: HashList; bounds: Extent },
  signal: AbortSignal,
): Promise<void> {
  const { blockBytes } = hashes;
  const end = bounds.offset + bounds.length;
  const buffer = new Uint8Array(readBytes);
  let hash = createHash("sha256");
  for (let at = bounds.offset; at < end; ) {
    signal.throwIfAborted();
    const piece = buffer.subarray(0, Math.min(readBytes, end - at));
    await restored.read(piece, at);
    for (let from = 0; from < piece.length; ) {
      const index = Math.floor((at + from) / blockBytes);
      const blockEnd = Math.min(end, (index + 1) * blockBytes);
      const part = piece.subarray(from, blockEnd - at);
      hash.update(part);
      from += part.length;
      if (at + from < blockEnd) continue;
      const [expected, found] = [await hashes.read(index, 1), hash.digest()];
      if (!found.equals(expected)) throw new RestoredWrongError(index * blockBytes);
      hash = createHash("sha256");
    }
    at += piece.length;
  }
}

/** Findings from listings and metadata. `chain` is undefined when it is too damaged to be read. */
async function lookThrough(
  references: readonly BackupReference[],
  findings: Findings,
  signal: AbortSignal,
): Promise<{ listed: number; chain: Chain | undefined }> {
  let listed = 0;
  for (const reference of references) {
    listed += (await findings.collect(() => compareListing(reference, findings, signal))) ?? 0;
  }
  const chain = await findings.collect(() => openChain(references, signal));
  const [newest] = references;
  if (chain?.hashes === null && newest !== undefined) findings.note(hashListName(newest.prefix), "it is missing");
  return { listed, chain };
}

/** A restore that writes nothing, with the same checks. */
const jobOf = (
  engine: EngineContext,
  what: Pick<RestoreJob, "references" | "hashes" | "bounds">,
  ctx: RunContext,
): RestoreJob => ({
  ...what,
  hashes: what.hashes === null ? null : cachedHashList(what.hashes),
  engine,
  target: null,
  access: null,
  skipZeros: true,
  ctx,
});

async function readObjects(
  job: RestoreJob,
  mapped: Iterable<MappedObject> | AsyncIterable<MappedObject>,
  findings: Findings,
): Promise<{ objects: number; blocks: number }> {
  const { engine, ctx } = job;
  let objects = 0;
  let blocks = 0;
  let bytesDone = 0;
  const check = (group: readonly MappedObject[], signal: AbortSignal): Promise<DoneObject[]> =>
    restoreGroup(job, group, signal, async (object) => {
      return (await findings.collect(() => restoreObject(job, object, signal))) ?? 0;
    });
  const options = { concurrency: engine.pool.threads + 2, signal: ctx.signal, anyOrder: true };
  await findings.collect(async () => {
    for await (const group of mapConcurrent(laneGroups(job, mapped), check, options)) {
      for (const { object, bytes } of group) {
        objects++;
        bytesDone += bytes;
        if (job.hashes !== null && bytes > 0) blocks += blocksIn(object, blockBytesOf(job));
      }
      ctx.onProgress({ bytesDone, bytesStored: 0 });
      if (findings.full) return;
    }
  });
  return { objects, blocks };
}

async function* objectsOf(chain: Chain, signal: AbortSignal): AsyncGenerator<MappedObject> {
  try {
    for await (const step of chainSteps(chain, signal)) if (step.kind === "object") yield step.object;
  } catch (error) {
    const newest = chain.references[0] as BackupReference;
    throw asDamage(newest, metadataName(newest.prefix), error);
  }
}

function blocksIn(object: MappedObject, blockBytes: number): number {
  return object.segments.reduce((sum, [start, end]) => sum + Math.ceil((end - start) / blockBytes), 0);
}
