import { rename } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { SourceChangedError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { guardStorage } from "../storage-error.ts";
import { copySparse, settle, shareBlocks, unlinkIfThere } from "./copy-file.ts";
import { newDraft } from "./drafts.ts";
import { type FileSource, openFileSource } from "./file-source.ts";
import { syncFolder } from "./sync-folder.ts";

export interface FileCopy {
  from: string;
  /** An existing file is replaced. */
  to: string;
}

export interface CopiedTogether {
  /** A point in time at which every copy equals its source. */
  takenAt: Date;
  /** Lengths of the copies, in request order. */
  sizesBytes: number[];
}

/** Total attempts when a source changes during the copy. */
const triesMax = 3;
/**
 * A kernel may stamp all writes of one clock tick with the same time, so a write right after a check may go unnoticed. Two equal checks
 * this far apart are past the tick of the last write (10 ms with the slowest clock).
 */
const tickMs = 20;

/**
 * Copies files so that all copies are of one point in time: they are valid only if none of the files changed (inode, size, mtime, ctime)
 * from before the first copy to after the last. Two more attempts, then SourceChangedError. The copies are durable and get their names
 * when all of them are complete; if interrupted between two renames, the next run replaces them all.
 */
export async function copyTogether(copies: readonly FileCopy[], run: RunContext): Promise<CopiedTogether> {
  await using opened = new AsyncDisposableStack();
  const sources: FileSource[] = [];
  for (const { from } of copies) sources.push(opened.use(await openFileSource(from)));
  const drafts: string[] = [];
  for (const { to } of copies) {
    drafts.push(opened.use(await newDraft(to)).path);
  }
  const takenAt = await tryToCopy(sources, drafts, run);
  const sizesBytes: number[] = [];
  for (const draft of drafts) sizesBytes.push(await settle(draft));
  run.signal.throwIfAborted();
  run.fence();
  for (const [index, { to }] of copies.entries()) {
    await guardStorage(`create ${to}`, () => rename(drafts[index] ?? "", to));
  }
  for (const folder of new Set(copies.map(({ to }) => dirname(to)))) await syncFolder(folder);
  return { takenAt, sizesBytes };
}

async function tryToCopy(sources: readonly FileSource[], drafts: readonly string[], run: RunContext): Promise<Date> {
  for (let tries = 1; tries <= triesMax; tries++) {
    const before = await fingerprints(sources);
    await delay(tickMs, undefined, { signal: run.signal });
    const takenAt = new Date();
    if ((await fingerprints(sources)) === before && (await copyAll(sources, drafts, before, run))) return takenAt;
  }
  throw new SourceChangedError(
    `The ${sources.length} volumes changed while their snapshots were taken, ${triesMax} times in a row, so these would not be of one moment. Shut the machine down first, or let its hypervisor take them (driver qmp).`,
  );
}

/** False as soon as a change of any source is detected. */
async function copyAll(
  sources: readonly FileSource[],
  drafts: readonly string[],
  before: string,
  run: RunContext,
): Promise<boolean> {
  let total = { bytesDone: 0, bytesStored: 0 };
  for (const [index, source] of sources.entries()) {
    const draft = drafts[index] ?? "";
    const earlier = total;
    const onProgress: RunContext["onProgress"] = ({ bytesDone, bytesStored }) => {
      total = { bytesDone: earlier.bytesDone + bytesDone, bytesStored: earlier.bytesStored + bytesStored };
      run.onProgress(total);
    };
    run.signal.throwIfAborted();
    run.fence();
    await unlinkIfThere(draft);
    try {
      if (!(await shareBlocks(source.descriptorPath, draft))) {
        await copySparse(
          source,
          draft,
          { offset: 0, sizeBytes: source.sizeBytes, isNew: true },
          { ...run, onProgress },
        );
      }
    } catch (error) {
      if (error instanceof SourceChangedError) return false;
      throw error;
    }
    if ((await fingerprints(sources)) !== before) return false;
  }
  return true;
}

async function fingerprints(sources: readonly FileSource[]): Promise<string> {
  return (await Promise.all(sources.map((source) => source.fingerprint()))).join(" ");
}
