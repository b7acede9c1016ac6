import { createHash } from "node:crypto";
import {
  type BackendLeftover,
  BackendUnavailableError,
  type Extent,
  PathNotAllowedError,
  type RunContext,
  SourceChangedError,
  SourceMissingError,
  type SourceReference,
  type VolumeBackend,
  VolumeConflictError,
  type VolumeSource,
  type VolumeTarget,
} from "@tephra/engine";

const blockBytes = 4096;

/**
 * Volumes as a server of block devices has them: nothing has a descriptor, a restore writes the volume itself, and it is known which blocks
 * have changed. What the contract asks of such a driver is asked of this one, which keeps its bytes in memory.
 */
export class MemoryVolumes implements VolumeBackend {
  readonly capabilities = { restores: "in-place", tellsChanges: true, fingerprints: "everywhere" } as const;
  readonly #bytes: Map<string, Buffer>;

  /** By `volume-ID` and `snapshot-ID`. Several may share one map, as processes share a server. */
  constructor(bytes: Map<string, Buffer>) {
    this.#bytes = bytes;
  }

  async write(volumeId: string, bytes: Uint8Array, offset: number): Promise<void> {
    this.#find({ volumeId }).set(bytes, offset);
  }

  async freeBytes(): Promise<number> {
    return 1024 ** 3;
  }

  async create(volumeId: string, sizeBytes: number): Promise<void> {
    const existing = this.#bytes.get(nameOf({ volumeId }));
    if (existing === undefined) this.#bytes.set(nameOf({ volumeId }), Buffer.alloc(sizeBytes));
    else if (existing.length !== sizeBytes) throw new VolumeConflictError(`Volume ${volumeId} has another length.`);
  }

  async clone(
    source: SourceReference,
    volumeId: string,
    sizeBytes: number,
    run: RunContext,
  ): Promise<{ sizeBytes: number }> {
    return this.#copy(source, { volumeId }, sizeBytes, run);
  }

  async extend(volumeId: string, sizeBytes: number): Promise<void> {
    const bytes = this.#find({ volumeId });
    if (bytes.length < sizeBytes) this.#bytes.set(nameOf({ volumeId }), padded(bytes, sizeBytes));
  }

  async remove(volumeId: string): Promise<void> {
    this.#bytes.delete(nameOf({ volumeId }));
  }

  async measure(volumeId: string): Promise<{ sizeBytes: number }> {
    return { sizeBytes: this.#find({ volumeId }).length };
  }

  async canFreezeCheaply(): Promise<boolean> {
    return true;
  }

  async freeze(volumeId: string, snapshotId: string, run: RunContext): Promise<{ sizeBytes: number }> {
    const existing = this.#bytes.get(nameOf({ snapshotId }));
    return existing ? { sizeBytes: existing.length } : this.#copy({ volumeId }, { snapshotId }, 0, run);
  }

  async thaw(snapshotId: string): Promise<void> {
    this.#bytes.delete(nameOf({ snapshotId }));
  }

  snapshotPaths(volumeId: string): never {
    throw new BackendUnavailableError(`Volume ${volumeId} is no file.`);
  }

  async openSource(source: SourceReference): Promise<VolumeSource> {
    this.#find(source);
    const now = (): Buffer => this.#find(source);
    return {
      sizeBytes: now().length,
      async read(into, offset) {
        if (offset + into.length > now().length) throw new SourceChangedError("The source has become shorter.");
        into.set(now().subarray(offset, offset + into.length));
      },
      dataExtents: (range) =>
        extentsWhere(range, (block) =>
          now()
            .subarray(...block)
            .some((byte) => byte !== 0),
        ),
      fingerprint: async () => createHash("sha256").update(now()).digest("hex"),
      async [Symbol.asyncDispose]() {},
    };
  }

  async *changedExtents(source: SourceReference, since: string, range: Extent): AsyncGenerator<Extent> {
    const before = this.#bytes.get(nameOf({ snapshotId: since }));
    const now = this.#find(source);
    yield* extentsWhere(range, (block) => !before?.subarray(...block).equals(now.subarray(...block)));
  }

  async beginRestore(volumeId: string, restoreId: string, lengths: { sizeBytes: number }): Promise<void> {
    nameOf({ volumeId: restoreId });
    this.#begun(volumeId);
    await this.extend(volumeId, lengths.sizeBytes);
  }

  async openRestoreTarget(volumeId: string): Promise<VolumeTarget> {
    return {
      sizeBytes: this.#begun(volumeId).length,
      isNew: false,
      write: (data, offset) => this.write(volumeId, data, offset),
      async flush() {},
      async [Symbol.asyncDispose]() {},
    };
  }

  openRestored(volumeId: string): Promise<VolumeSource> {
    return this.openSource({ volumeId });
  }

  async publishRestore(volumeId: string): Promise<void> {
    this.#begun(volumeId);
  }

  async copyRestore(volumeId: string): Promise<void> {
    throw new VolumeConflictError(`Volume ${volumeId} is written itself.`);
  }

  async abandonRestore(restoreId: string): Promise<void> {
    nameOf({ volumeId: restoreId });
  }

  async importFile(): Promise<never> {
    throw new PathNotAllowedError("Nothing is imported here.");
  }

  async importIfAbsent(): Promise<never> {
    throw new PathNotAllowedError("Nothing is imported here.");
  }

  async statImport(): Promise<never> {
    throw new PathNotAllowedError("Nothing is imported here.");
  }

  async exportFile(): Promise<never> {
    throw new PathNotAllowedError("Nothing is exported here.");
  }

  async *leftovers(): AsyncGenerator<BackendLeftover> {
    for (const path of this.#bytes.keys()) {
      const [kind, id] = path.split(/-(.*)/s) as ["volume" | "snapshot", string];
      yield { kind, path, ids: [id], modifiedAt: new Date() };
    }
  }

  async removeLeftover({ path }: BackendLeftover): Promise<void> {
    this.#bytes.delete(path);
  }

  #copy(
    from: SourceReference,
    to: SourceReference,
    sizeBytesMin: number,
    { signal, fence }: RunContext,
  ): { sizeBytes: number } {
    signal.throwIfAborted();
    fence();
    const bytes = this.#find(from);
    const copy = padded(bytes, Math.max(bytes.length, sizeBytesMin));
    this.#bytes.set(nameOf(to), copy);
    return { sizeBytes: copy.length };
  }

  #find(source: SourceReference): Buffer {
    const bytes = this.#bytes.get(nameOf(source));
    if (bytes === undefined) throw new SourceMissingError(`There is no ${nameOf(source)}.`);
    return bytes;
  }

  #begun(volumeId: string): Buffer {
    const bytes = this.#bytes.get(nameOf({ volumeId }));
    if (bytes === undefined) throw new VolumeConflictError(`There is no volume ${volumeId} to be restored.`);
    return bytes;
  }
}

function nameOf(source: SourceReference): string {
  const [kind, id] = "volumeId" in source ? ["volume", source.volumeId] : ["snapshot", source.snapshotId];
  if (!/^[A-Za-z0-9][A-Za-z0-9-]*$/.test(id)) throw new PathNotAllowedError(`Not an id: ${JSON.stringify(id)}.`);
  return `${kind}-${id}`;
}

function padded(bytes: Buffer, sizeBytes: number): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(sizeBytes - bytes.length)]);
}

/** The blocks of a range, cut at its ends, for which this holds. */
async function* extentsWhere(range: Extent, holds: (block: [start: number, end: number]) => boolean) {
  const end = range.offset + range.length;
  for (let start = range.offset; start < end; ) {
    const stop = Math.min(end, (Math.floor(start / blockBytes) + 1) * blockBytes);
    if (holds([start, stop])) yield { offset: start, length: stop - start };
    start = stop;
  }
}
