import { createHash, randomUUID } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type BackupLayout,
  type BackupReference,
  type Engine,
  encodeVolumeMeta,
  openFileSource,
  type Repository,
  type RunContext,
  type VolumeTarget,
  writableForever,
} from "@tephra/engine";

/** A context that allows everything and never ends. */
export function freeContext(overrides: Partial<RunContext> = {}): RunContext {
  return {
    signal: new AbortController().signal,
    fence: () => {},
    writableUntil: writableForever,
    onProgress: () => {},
    ...overrides,
  };
}

/** A folder of its own, gone with the scope. */
export async function temporaryFolder(parent = tmpdir()): Promise<AsyncDisposable & { path: string }> {
  const path = await mkdtemp(join(parent, "tephra-test-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** A target in memory, filled with something that is not zero so that every byte left out shows. */
export class MemoryTarget implements VolumeTarget {
  readonly bytes: Buffer;
  readonly isNew: boolean;

  constructor(sizeBytes: number, options: { isNew?: boolean } = {}) {
    this.isNew = options.isNew ?? false;
    this.bytes = Buffer.alloc(sizeBytes, this.isNew ? 0 : 0xee);
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  async write(data: Uint8Array, offset: number): Promise<void> {
    if (offset + data.length > this.bytes.length) {
      throw new RangeError(`write behind the end: ${offset}+${data.length}`);
    }
    this.bytes.set(data, offset);
  }

  async flush(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** Writes a file of master keys, the last version being current; a version always has the same key. Returns its path. */
export async function writeKeyFile(folder: string, versions: readonly string[]): Promise<string> {
  const path = join(folder, `keys-${versions.join("-")}`);
  const lines = versions.map((version) => `${version}:${createHash("sha256").update(version).digest("base64")}\n`);
  await writeFile(path, lines.join(""), { mode: 0o600 });
  return path;
}

export const small = { objectBytes: 65536, blockBytes: 4096 };

/** A layout with fresh ids for a volume of this many bytes; everything can be overridden. */
export function layoutFor(
  repository: Repository,
  volumeBytes: number,
  overrides: Partial<BackupLayout> = {},
): BackupLayout {
  const backupId = overrides.backupId ?? randomUUID();
  const volumeId = overrides.volumeId ?? randomUUID();
  return {
    backupId,
    volumeId,
    container: repository.defaultContainer(backupId),
    prefix: repository.defaultPrefix({ volumeId, backupId, at: new Date() }),
    compression: "zlib",
    level: 6,
    ...small,
    volumeBytes,
    createdAt: "2026-11-20 17:21:41+00:00",
    name: "näme",
    description: null,
    volumeMeta: encodeVolumeMeta({ volumeId, volumeBytes, name: null, description: null }),
    parentId: null,
    ...overrides,
  };
}

export function referenceTo(repository: Repository, layout: BackupLayout): BackupReference {
  return { backupId: layout.backupId, repository, container: layout.container, prefix: layout.prefix };
}

/** Backs a file up in one call and returns where it lies. */
export async function backUp(
  engine: Engine,
  input: { repository: Repository; path: string; parent?: BackupReference; layout?: Partial<BackupLayout> },
): Promise<BackupReference> {
  await using source = await openFileSource(input.path);
  const layout = layoutFor(input.repository, source.sizeBytes, {
    parentId: input.parent?.backupId ?? null,
    ...input.layout,
  });
  const { repository, parent } = input;
  await engine.backupWhole({ source, repository, layout, parent: parent ?? null }, freeContext());
  return referenceTo(repository, layout);
}

/** Restores a chain (newest first) into memory, over bytes that are not zero. */
export async function restoreToMemory(engine: Engine, chain: readonly BackupReference[]): Promise<Buffer> {
  let target: MemoryTarget | null = null;
  const openTarget = async (volumeBytes: number): Promise<VolumeTarget> => {
    target = new MemoryTarget(volumeBytes);
    return target;
  };
  await engine.restoreWhole({ chain, target: null, openTarget }, freeContext());
  return (target as MemoryTarget | null)?.bytes ?? Buffer.alloc(0);
}
