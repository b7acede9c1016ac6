import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { access, link, lstat, open, readdir, rename, statfs } from "node:fs/promises";
import { basename, dirname, join, relative, resolve, sep } from "node:path";
import { BackendUnavailableError, errnoOf, PathNotAllowedError, VolumeConflictError } from "../../errors.ts";
import { Folder } from "../../folder.ts";
import type { Extent } from "../../format/extents.ts";
import { idsIn } from "../../format/ids-in.ts";
import type { RunContext } from "../../run/run-context.ts";
import type {
  BackendLeftover,
  ExportOptions,
  RestoreLengths,
  SourceReference,
  UserPlaces,
  VolumeBackend,
} from "../backend.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { copyIfAbsent, measureVolume } from "./adopt-file.ts";
import { copySparse, copyToNewFile, shareBlocks, unlinkIfThere } from "./copy-file.ts";
import { draftFolder, newDraft, removeDrafts } from "./drafts.ts";
import { exportToFile } from "./export-file.ts";
import { type FileSource, openFileSource } from "./file-source.ts";
import { FileTarget } from "./file-target.ts";
import { openImport } from "./open-import.ts";
import { syncFolder } from "./sync-folder.ts";

const mode = 0o660;
/** How long it is known whether the file system shares blocks. A wrong answer costs time only. */
const sharesMs = 60_000;

/**
 * The `file` driver: `volume-<id>` and `snapshot-<id>` are raw images in one folder. Whatever takes time is written durably under a
 * private name, and gets its final name by one rename.
 */
export class FileBackend implements VolumeBackend {
  readonly capabilities = { restores: "aside", tellsChanges: false, fingerprints: "everywhere" } as const;
  readonly #folder: string;
  #shares: { askedAt: number; answer: Promise<boolean> } | null = null;

  /** `folder` is absolute; see openFileBackend. */
  constructor(folder: string) {
    this.#folder = folder;
  }

  /** The volume is sparse. */
  async create(volumeId: string, sizeBytes: number): Promise<void> {
    const path = this.#volume(volumeId);
    await using draft = await newDraft(path);
    await this.#createEmpty(draft.path, sizeBytes);
    await guardStorage(`create ${path}`, () => link(draft.path, path)).catch(async (error: unknown) => {
      const existing = await lstat(path).catch(() => undefined);
      if (existing?.isFile() && existing.size === sizeBytes) return;
      if (existing === undefined) throw error;
      throw new VolumeConflictError(`Volume ${volumeId} already exists with another length.`, { cause: error });
    });
    await this.#syncFolder();
  }

  async clone(
    source: SourceReference,
    volumeId: string,
    sizeBytes: number,
    ctx: RunContext,
  ): Promise<{ sizeBytes: number }> {
    await using opened = await openFileSource(this.#pathOf(source));
    return await this.#copyAndPublish(opened, this.#volume(volumeId), ctx, sizeBytes);
  }

  async extend(volumeId: string, sizeBytes: number): Promise<void> {
    const path = this.#volume(volumeId);
    await using existing = await openFileSource(path);
    if (existing.sizeBytes < sizeBytes) await lengthen(path, sizeBytes);
  }

  async remove(volumeId: string): Promise<void> {
    await guardStorage(`remove volume ${volumeId}`, () => unlinkIfThere(this.#volume(volumeId)));
    await this.#syncFolder();
  }

  async openSource(source: SourceReference): Promise<VolumeSource> {
    return await openFileSource(this.#pathOf(source));
  }

  /** File systems do not report what changed in a file. */
  async *changedExtents(_source: SourceReference, _since: string, range: Extent): AsyncGenerator<Extent> {
    if (range.length > 0) yield range;
  }

  /** Whether a snapshot shares blocks with its volume (reflink) instead of copying them: tried now and then, since a file system may change. */
  canFreezeCheaply(): Promise<boolean> {
    if (this.#shares === null || performance.now() - this.#shares.askedAt > sharesMs) {
      const asked = { askedAt: performance.now(), answer: this.#trySharing() };
      asked.answer.catch(() => {
        if (this.#shares === asked) this.#shares = null;
      });
      this.#shares = asked;
    }
    return this.#shares.answer;
  }

  async #trySharing(): Promise<boolean> {
    const from = join(this.#folder, `.probe-${randomUUID()}`);
    const to = `${from}-copy`;
    try {
      await this.#createEmpty(from, 4096);
      return await shareBlocks(from, to);
    } finally {
      await unlinkIfThere(from);
      await unlinkIfThere(to);
    }
  }

  /** By reflink or copy: SourceChangedError when the volume kept changing while it had to be copied. */
  async freeze(volumeId: string, snapshotId: string, ctx: RunContext): Promise<{ sizeBytes: number }> {
    const path = this.#snapshot(snapshotId);
    const existing = await lstat(path).catch(() => undefined);
    if (existing?.isFile()) return { sizeBytes: existing.size };
    await using source = await openFileSource(this.#volume(volumeId));
    return await this.#copyAndPublish(source, path, ctx);
  }

  snapshotPaths(volumeId: string, snapshotId: string): { volumePath: string; snapshotPath: string } {
    return { volumePath: this.#volume(volumeId), snapshotPath: this.#snapshot(snapshotId) };
  }

  async imageFile(volumeId: string): Promise<{ path: string; format: "raw" }> {
    return { path: this.#volume(volumeId), format: "raw" };
  }

  async snapshotFile(snapshotId: string): Promise<{ path: string; format: "raw" }> {
    return { path: this.#snapshot(snapshotId), format: "raw" };
  }

  async goBack(volumeId: string, snapshotId: string, ctx: RunContext): Promise<void> {
    const volume = this.#volume(volumeId);
    const { size } = await guardStorage(`read ${volume}`, () => lstat(volume));
    await using source = await openFileSource(this.#snapshot(snapshotId));
    await this.#copyAndPublish(source, volume, ctx, size);
  }

  async thaw(snapshotId: string): Promise<void> {
    await guardStorage(`remove snapshot ${snapshotId}`, () => unlinkIfThere(this.#snapshot(snapshotId)));
    await this.#syncFolder();
  }

  /** Creates a volume from a file, with the file's exact length. See openUserPath for the allowed paths. */
  async importFile(
    path: string,
    volumeId: string,
    places: UserPlaces,
    ctx: RunContext,
  ): Promise<{ sizeBytes: number }> {
    await using source = await openImport(path, places);
    return await this.#copyAndPublish(source, this.#volume(volumeId), ctx);
  }

  async importIfAbsent(path: string, volumeId: string, places: UserPlaces, ctx: RunContext): Promise<void> {
    await using source = await openImport(path, places);
    await copyIfAbsent(source, this.#volume(volumeId), ctx);
    await this.#syncFolder();
  }

  measure(volumeId: string): Promise<{ sizeBytes: number }> {
    return measureVolume(this.#volume(volumeId));
  }

  async statImport(path: string, places: UserPlaces): Promise<{ sizeBytes: number }> {
    await using source = await openImport(path, places);
    return { sizeBytes: source.sizeBytes };
  }

  /** Writes a volume to a file named by a user. See exportToFile. */
  async exportFile(
    volumeId: string,
    path: string,
    options: ExportOptions,
    ctx: RunContext,
  ): Promise<{ sizeBytes: number }> {
    await using source = await openFileSource(this.#volume(volumeId));
    return await exportToFile(source, path, options, ctx);
  }

  /**
   * The target is a private new file of `sizeBytes`; with `keepTail`, if the existing volume is longer, it has that volume's length and
   * its bytes from `sizeBytes` on.
   */
  async beginRestore(
    volumeId: string,
    operationId: string,
    options: RestoreLengths,
    ctx: RunContext = unlimited,
  ): Promise<void> {
    const path = this.#restore(operationId);
    await using draft = await newDraft(path);
    await this.#createEmpty(draft.path, options.sizeBytes);
    if (options.keepTail) await this.#copyTail(volumeId, draft.path, options.sizeBytes, ctx);
    await guardStorage(`create ${path}`, () => rename(draft.path, path));
    await this.#syncFolder();
  }

  async openRestoreTarget(volumeId: string, operationId: string): Promise<VolumeTarget> {
    const path = this.#restore(operationId);
    const file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW).catch((error: unknown) => {
      throw new VolumeConflictError(`Volume ${volumeId} is not being restored (${errnoOf(error)}).`, { cause: error });
    });
    return new FileTarget(file, { path, sizeBytes: (await file.stat()).size, isNew: true });
  }

  openRestored(_volumeId: string, operationId: string): Promise<VolumeSource> {
    return openFileSource(this.#restore(operationId));
  }

  /**
   * Replaces the volume with the restored file. With `fresh`, with a copy of it, so that a writer that still has the private file open
   * can no longer modify the volume.
   */
  async publishRestore(
    volumeId: string,
    operationId: string,
    options: { fresh: boolean },
    ctx: RunContext = unlimited,
  ): Promise<void> {
    const path = this.#restore(operationId);
    const volume = this.#volume(volumeId);
    const restored = await lstat(path).catch(() => undefined);
    if (restored === undefined) {
      if ((await lstat(volume).catch(() => undefined)) !== undefined) return;
      throw new VolumeConflictError(`Volume ${volumeId} is not being restored.`);
    }
    await using source = await openFileSource(path);
    if (options.fresh) {
      await this.#copyAndPublish(source, volume, ctx);
      await unlinkIfThere(path);
    } else {
      await syncFile(path);
      ctx.signal.throwIfAborted();
      ctx.fence();
      await guardStorage(`create ${volume}`, () => rename(path, volume));
    }
    await this.#syncFolder();
  }

  async copyRestore(volumeId: string, operationId: string, freshId: string, ctx: RunContext): Promise<void> {
    const path = this.#restore(operationId);
    if ((await lstat(path).catch(() => undefined)) === undefined) {
      throw new VolumeConflictError(`Volume ${volumeId} is not being restored.`);
    }
    await using source = await openFileSource(path);
    await this.#copyAndPublish(source, this.#restore(freshId), ctx);
  }

  async freeBytes(): Promise<number> {
    const { bavail, bsize } = await guardStorage(`look at ${this.#folder}`, () => statfs(this.#folder));
    return bavail * bsize;
  }

  async abandonRestore(operationId: string): Promise<void> {
    const path = this.#restore(operationId);
    await removeDrafts(path);
    await guardStorage(`remove ${path}`, () => unlinkIfThere(path));
    await this.#syncFolder();
  }

  /** Overlays of machines are excluded: they may hold the only copy of what a machine has written. */
  async *leftovers(): AsyncGenerator<BackendLeftover> {
    await using folder = await guardStorage(`list ${this.#folder}`, () => Folder.open(this.#folder));
    yield* this.#look(folder, "", (name) => {
      if (/^volume-[0-9a-f-]{36}$/.test(name)) return "volume";
      if (/^snapshot-[0-9a-f-]{36}$/.test(name)) return "snapshot";
      return /^\.(?:restore-[0-9a-f-]{36}-\d+(?:-(?:copy|guest))?|probe-[0-9a-f-]{36}(?:-copy)?)$/.test(name)
        ? "private"
        : null;
    });
    if (!(await lstat(folder.at(draftFolder)).catch(() => undefined))?.isDirectory()) return;
    await using drafts = await guardStorage(`list ${join(this.#folder, draftFolder)}`, () => folder.enter(draftFolder));
    yield* this.#look(drafts, draftFolder, () => "private");
  }

  async *#look(
    folder: Folder,
    below: string,
    kindOf: (name: string) => BackendLeftover["kind"] | null,
  ): AsyncGenerator<BackendLeftover> {
    for (const name of await guardStorage(`list ${join(this.#folder, below)}`, () => readdir(folder.self))) {
      const kind = kindOf(name);
      const status = kind && (await lstat(folder.at(name)).catch(() => undefined));
      if (kind && status?.isFile())
        yield { kind, path: join(this.#folder, below, name), ids: idsIn(name), modifiedAt: status.mtime };
    }
  }

  async removeLeftover({ path }: BackendLeftover): Promise<void> {
    const below = relative(this.#folder, dirname(path))
      .split(sep)
      .filter((part) => part !== "");
    await guardStorage(`remove ${path}`, async () => {
      await using folder = await Folder.beneath(this.#folder, below);
      await unlinkIfThere(folder.at(basename(path)));
    });
    await this.#syncFolder();
  }

  async #copyAndPublish(
    source: FileSource,
    path: string,
    ctx: RunContext,
    sizeBytesMin = 0,
  ): Promise<{ sizeBytes: number }> {
    await using draft = await newDraft(path);
    const copied = await copyToNewFile(source, draft.path, ctx);
    if (copied.sizeBytes < sizeBytesMin) await lengthen(draft.path, sizeBytesMin);
    ctx.signal.throwIfAborted();
    ctx.fence();
    await guardStorage(`create ${path}`, () => rename(draft.path, path));
    await this.#syncFolder();
    return { sizeBytes: Math.max(copied.sizeBytes, sizeBytesMin) };
  }

  async #copyTail(volumeId: string, draft: string, sizeBytes: number, ctx: RunContext): Promise<void> {
    await using existing = await openFileSource(this.#volume(volumeId));
    if (existing.sizeBytes <= sizeBytes) return;
    await copySparse(existing, draft, { offset: sizeBytes, sizeBytes: existing.sizeBytes, isNew: false }, ctx);
  }

  async #createEmpty(path: string, sizeBytes: number): Promise<void> {
    await guardStorage(`create ${path}`, async () => {
      const file = await open(
        path,
        constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
        mode,
      );
      try {
        await file.chmod(mode);
        await file.truncate(sizeBytes);
        await file.sync();
      } finally {
        await file.close();
      }
    });
  }

  #syncFolder(): Promise<void> {
    return syncFolder(this.#folder);
  }

  #pathOf(source: SourceReference): string {
    return "volumeId" in source ? this.#volume(source.volumeId) : this.#snapshot(source.snapshotId);
  }

  #volume(id: string): string {
    return join(this.#folder, `volume-${checkId(id)}`);
  }

  #snapshot(id: string): string {
    return join(this.#folder, `snapshot-${checkId(id)}`);
  }

  #restore(id: string): string {
    return join(this.#folder, `.restore-${checkId(id)}`);
  }
}

/** Opens the folder of a `file` backend. BackendUnavailableError unless it is a writable folder. */
export async function openFileBackend(folder: string): Promise<FileBackend> {
  const path = resolve(folder);
  try {
    if (!(await lstat(join(path, "."))).isDirectory()) throw new Error("not a folder");
    await access(path, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new BackendUnavailableError(`The folder of volumes ${path} is missing or cannot be written: ${reason}.`, {
      cause: error,
    });
  }
  return new FileBackend(path);
}

const unlimited: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };

/** @throws PathNotAllowedError unless it can be part of a file's name */
export function checkId(id: string): string {
  if (!/^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/.test(id)) {
    throw new PathNotAllowedError(`Not an id: ${JSON.stringify(id.slice(0, 100))}.`);
  }
  return id;
}

const syncFile = (path: string): Promise<void> => lengthen(path, null);

/** Sets a file's length, durably; null leaves it unchanged. */
async function lengthen(path: string, sizeBytes: number | null): Promise<void> {
  await guardStorage(`write ${path}`, async () => {
    const file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW);
    try {
      if (sizeBytes !== null) await file.truncate(sizeBytes);
      await file.sync();
    } finally {
      await file.close();
    }
  });
}
