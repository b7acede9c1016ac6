import { type BackupWholeInput, backupWhole } from "./backup/backup-whole.ts";
import { type CopyInput, copyRange } from "./backup/copy-range.ts";
import { type RemoveInput, removeBackup, removeStaging } from "./backup/remove.ts";
import { type SealInput, type SealResult, seal } from "./backup/seal.ts";
import type { BackupReference } from "./chain/backup-reference.ts";
import { volumeBytesOf } from "./chain/chain.ts";
import { checkChain } from "./chain/check-chain.ts";
import { beginBackup } from "./encryption/begin-backup.ts";
import type { Extent } from "./format/extents.ts";
import type { BackupLayout } from "./format/layout.ts";
import type { RangeReport } from "./format/range-report.ts";
import type { Repository } from "./repository/repository.ts";
import { newRegionCache, openBackupSource } from "./restore/backup-source.ts";
import {
  type PlannedRestore,
  type PlanRestoreInput,
  planRestore,
  type RestoreRange,
  restoreRange,
  restoreWhole,
} from "./restore/restore.ts";
import { type RestoreStreamInput, restoreStream } from "./restore/stream.ts";
import {
  type PlannedVerify,
  type PlanVerifyInput,
  planVerify,
  type VerifyInput,
  type VerifyRangeInput,
  type VerifyResult,
  verifyBackup,
  verifyRange,
} from "./restore/verify.ts";
import type { RunContext } from "./run/run-context.ts";
import {
  planSquash,
  type SquashCounts,
  type SquashInput,
  type SquashShape,
  squashRange,
  squashWhole,
} from "./squash/squash.ts";
import { createEngineContext, type EngineOptions } from "./threads/engine-context.ts";
import type { VolumeSource, VolumeTarget } from "./volume/volume.ts";

/**
 * The data plane. Calls may run concurrently; they share the engine's threads and memory. Each verb is documented at the function of the
 * same name. Dispose it when no call is running.
 */
export interface Engine extends AsyncDisposable {
  beginBackup(input: { repository: Repository; layout: BackupLayout }, ctx: RunContext): Promise<void>;
  copyRange(
    input: CopyInput & { staging: { operationId: string; name: string } },
    ctx: RunContext,
  ): Promise<RangeReport>;
  seal(input: SealInput, ctx: RunContext): Promise<SealResult>;
  backupWhole(input: BackupWholeInput, ctx: RunContext): Promise<SealResult & { bytesAdopted: number }>;
  planRestore(input: PlanRestoreInput, ctx: RunContext): Promise<PlannedRestore>;
  restoreRange(
    input: {
      chain: readonly BackupReference[];
      range: RestoreRange;
      staging: { operationId: string };
      target: VolumeTarget;
    },
    ctx: RunContext,
  ): Promise<{ bytesWritten: number; objects: number }>;
  restoreWhole(
    input: {
      chain: readonly BackupReference[];
      target: VolumeTarget | null;
      openTarget?: (volumeBytes: number) => Promise<VolumeTarget>;
      extent?: { offset: number; length: number | null };
    },
    ctx: RunContext,
  ): Promise<{ bytes: number; warnings: string[] }>;
  restoreStream(input: RestoreStreamInput, ctx: RunContext): Promise<{ bytes: number; warnings: string[] }>;
  openBackupSource(input: { chain: readonly BackupReference[] }, signal: AbortSignal): Promise<VolumeSource>;
  verifyBackup(input: VerifyInput, ctx: RunContext): Promise<VerifyResult>;
  planVerify(input: PlanVerifyInput, ctx: RunContext): Promise<PlannedVerify>;
  verifyRange(input: VerifyRangeInput, ctx: RunContext): Promise<VerifyResult>;
  volumeBytesOf(reference: BackupReference, signal: AbortSignal): Promise<number>;
  checkChain(references: readonly BackupReference[], signal: AbortSignal): Promise<void>;
  planSquash(
    input: { chain: readonly BackupReference[]; objectBytes: number },
    signal: AbortSignal,
  ): Promise<SquashShape>;
  squashRange(
    input: SquashInput & { range: Extent; staging: { operationId: string; name: string } },
    ctx: RunContext,
  ): Promise<{ report: RangeReport } & SquashCounts>;
  squashWhole(input: SquashInput, ctx: RunContext): Promise<SealResult & SquashCounts>;
  removeBackup(input: RemoveInput, ctx: RunContext): Promise<{ removed: number }>;
  removeStaging(repository: Repository, operationId: string): Promise<void>;
  /** Starts threads for so many objects now rather than with the first of them: for a process that is there for one piece of work. */
  startThreads(objects: number): void;
  /** How long a thread has been inside one file call, in ms: a call that does not return for long is hanging. Poll it from time to time. */
  fileCallMs(): number;
}

/** Starts an engine. */
export function openEngine(options: EngineOptions = {}): Engine {
  const context = { ...createEngineContext(options), regions: newRegionCache() };
  return {
    beginBackup,
    copyRange: (input, ctx) => copyRange(context, input, ctx),
    seal,
    backupWhole: (input, ctx) => backupWhole(context, input, ctx),
    planRestore,
    restoreRange: (input, ctx) => restoreRange(context, input, ctx),
    restoreWhole: (input, ctx) => restoreWhole(context, input, ctx),
    restoreStream: (input, ctx) => restoreStream(context, input, ctx),
    openBackupSource: (input, signal) => openBackupSource(context, input, signal),
    verifyBackup: (input, ctx) => verifyBackup(context, input, ctx),
    planVerify,
    verifyRange: (input, ctx) => verifyRange(context, input, ctx),
    volumeBytesOf,
    checkChain: (references, signal) => checkChain(context, references, signal),
    planSquash,
    squashRange: (input, ctx) => squashRange(context, input, ctx),
    squashWhole: (input, ctx) => squashWhole(context, input, ctx),
    removeBackup,
    removeStaging,
    startThreads: (objects) => context.pool.startAhead(objects),
    fileCallMs: () => context.pool.fileCallMs(),
    [Symbol.asyncDispose]: () => context.pool[Symbol.asyncDispose](),
  };
}
