import type { Extent } from "../../format/extents.ts";
import { NbdClient } from "./nbd-client.ts";
import { NbdSource } from "./nbd-volume.ts";

/** A part of a backup's disk. */
export interface ChangedPart extends Extent {
  /** Whether it may have changed since the checkpoint. */
  dirty: boolean;
  /** Whether it is known to read as zeros. */
  zero: boolean;
}

/** A disk of a backup by changed blocks, as its export shows it. */
export class BackupExport extends NbdSource {
  readonly #client: NbdClient;
  /** Whether only what has changed is to be read. */
  readonly tellsChanges: boolean;

  private constructor(client: NbdClient, tellsChanges: boolean) {
    super(client);
    this.#client = client;
    this.tellsChanges = tellsChanges;
  }

  /** `changes`: the context of an incremental backup. VolumeStorageError when there is no such export. */
  static async open(
    { socketPath, name, changes }: { socketPath: string; name: string; changes: string | null },
    shown: string,
  ): Promise<BackupExport> {
    const client = await NbdClient.open({ path: socketPath }, name, shown, { changes });
    return new BackupExport(client, changes !== null);
  }

  /** All of `range`, in order, without gaps. Neighbours differ. Only where `tellsChanges`. */
  async *changedParts(range: Extent): AsyncGenerator<ChangedPart> {
    const end = range.offset + range.length;
    let last: ChangedPart | null = null;
    for (let offset = range.offset; offset < end; ) {
      const { zeros, changes } = await this.#client.changes(offset, end - offset);
      for (const { length, dirty, zero } of together(zeros, changes)) {
        if (last !== null && last.dirty === dirty && last.zero === zero) last.length += length;
        else {
          if (last !== null) yield last;
          last = { offset, length, dirty, zero };
        }
        offset += length;
      }
    }
    if (last !== null) yield last;
  }
}

/** Two descriptions of the same bytes as one, as far as both reach. */
function* together(
  zeros: readonly { length: number; zero: boolean }[],
  changes: readonly { length: number; dirty: boolean }[],
): Generator<{ length: number; zero: boolean; dirty: boolean }> {
  let [atZero, atChange, ofZero, ofChange] = [0, 0, 0, 0];
  for (;;) {
    const [zero, change] = [zeros[atZero], changes[atChange]];
    if (zero === undefined || change === undefined) return;
    const length = Math.min(zero.length - ofZero, change.length - ofChange);
    yield { length, zero: zero.zero, dirty: change.dirty };
    ofZero += length;
    ofChange += length;
    if (ofZero === zero.length) [atZero, ofZero] = [atZero + 1, 0];
    if (ofChange === change.length) [atChange, ofChange] = [atChange + 1, 0];
  }
}
