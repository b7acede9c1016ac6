import { randomUUID } from "node:crypto";
import type { BackupReference } from "../chain/backup-reference.ts";
import { beginBackup } from "../encryption/begin-backup.ts";
import { cutRanges, type Extent } from "../format/extents.ts";
import type { BackupLayout } from "../format/layout.ts";
import type { RangeReport } from "../format/range-report.ts";
import type { Repository } from "../repository/repository.ts";
import type { RunContext } from "../run/run-context.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import type { VolumeSource } from "../volume/volume.ts";
import { copyObjects, copyRange } from "./copy-range.ts";
import { removeStaging } from "./remove.ts";
import { type SealResult, seal, sealCopied } from "./seal.ts";

export interface BackupWholeInput {
  source: VolumeSource;
  repository: Repository;
  layout: BackupLayout;
  parent: BackupReference | null;
  /** As of CopyInput, of the whole volume. */
  changed?: readonly Extent[];
}

/**
 * Volumes up to this size keep their slices in memory: 32 bytes per block, 4 MiB with 32 KiB blocks. Larger volumes stage them per range.
 */
const inMemoryBytesMax = 4 * 1024 ** 3;
/** Long enough that each range of a thin volume has data windows for all lanes; its lists, 32 MiB of hashes at most, stay in memory. */
const rangeBytes = 32 * 1024 ** 3;

/**
 * Begins, copies and seals a whole volume in one call. Up to 4 GiB it is a single range and nothing is staged; larger volumes are copied
 * range by range to bound memory. Staged objects are removed at the end, also after a failure.
 */
export async function backupWhole(
  engine: EngineContext,
  input: BackupWholeInput,
  ctx: RunContext,
): Promise<SealResult & { bytesAdopted: number }> {
  const { layout, repository } = input;
  const { volumeBytes, objectBytes } = layout;
  await beginBackup(input, ctx);
  if (volumeBytes > inMemoryBytesMax) {
    return backupStaged(engine, input, cutRanges({ volumeBytes, objectBytes, rangeBytes, rangesMax: 16384 }), ctx);
  }
  const range = { offset: 0, length: volumeBytes };
  const ranges = volumeBytes === 0 ? [] : [await copyObjects(engine, { ...input, range }, ctx)];
  const sealed = await sealCopied({ repository, layout, ranges }, ctx);
  return { ...sealed, bytesAdopted: ranges[0]?.report.bytesAdopted ?? 0 };
}

async function backupStaged(
  engine: EngineContext,
  input: BackupWholeInput,
  ranges: readonly { offset: number; length: number }[],
  ctx: RunContext,
): Promise<SealResult & { bytesAdopted: number }> {
  const { layout, repository } = input;
  const operationId = randomUUID();
  const reports: RangeReport[] = [];
  let bytesStored = 0;
  try {
    for (const [index, range] of ranges.entries()) {
      const onProgress: RunContext["onProgress"] = (progress) => {
        const bytesDone = range.offset + progress.bytesDone;
        ctx.onProgress({ bytesDone, bytesStored: bytesStored + progress.bytesStored });
      };
      const staging = { operationId, name: `range-${index}` };
      const report = await copyRange(engine, { ...input, range, staging }, { ...ctx, onProgress });
      reports.push(report);
      bytesStored += report.bytesStored;
    }
    const sealed = await seal({ repository, layout, operationId, reports }, ctx);
    return { ...sealed, bytesAdopted: reports.reduce((sum, report) => sum + report.bytesAdopted, 0) };
  } finally {
    await removeStaging(repository, operationId);
  }
}
