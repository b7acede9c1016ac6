import { createHash, randomUUID } from "node:crypto";
import { constants } from "node:fs";
import {
  access,
  type FileHandle,
  lstat,
  open,
  opendir,
  readdir,
  realpath,
  rmdir,
  statfs,
  unlink,
} from "node:fs/promises";
import { join, relative } from "node:path";
import { containerProblem, isContainer, prefixOf, reservedContainer, rootContainer } from "@tephra/format";
import {
  EngineError,
  errnoOf,
  InvalidContainerError,
  InvalidObjectNameError,
  ObjectConflictError,
  ObjectMissingError,
  RepositoryFullError,
  RepositoryUnavailableError,
  RepositoryUnmarkedError,
} from "../errors.ts";
import { Folder, LinkInPathError } from "../folder.ts";
import { dataRuns } from "../run/data-runs.ts";
import type { WriteContext } from "../run/run-context.ts";
import { lookThroughFolder } from "./list-folder.ts";
import { markerBytesMax, markerKey, newMarker, parseMarker } from "./marker.ts";
import type { OnPassedOver } from "./passed-over.ts";
import {
  FolderSync,
  fileChunks,
  fileHolds,
  fileMode,
  folderExists,
  ignoreMissing,
  ignoreModeless,
  makeFolders,
  makeFoldersBeneath,
  notRegular,
  openRegular,
  pieces,
  readBytes,
  SharedFolders,
  storedDigest,
  writeAll,
} from "./posix-files.ts";
import { isSameFile, linkFile, type Publishing, probePublishing, publishFile } from "./publish-file.ts";
import {
  type Leftover,
  type ListedObject,
  type ObjectDraft,
  type ObjectFile,
  type ObjectKey,
  operationIdPattern,
  parseContainer,
  type Repository,
  stagingContainer,
} from "./repository.ts";

/** Objects are written here before they get their name. Same file system as everything else. */
const temporaryContainer = `${reservedContainer}/tmp`;
const temporaryFlags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
const publishingRemarks: Readonly<Record<Publishing, string[]>> = {
  link: [],
  rename: ["The file system has no hard links; objects get their names by renaming, which is as safe."],
  claim: [
    "The file system has neither hard links nor a renaming that replaces nothing: a name is claimed by an empty file before its object " +
      "appears. A writer that dies in between leaves that file, which the next one takes over after five seconds.",
  ],
};

/** False for a stream, whose length is not known yet. */
const isEmpty = (body: Uint8Array | AsyncIterable<Uint8Array>): boolean =>
  body instanceof Uint8Array && body.length === 0;

/** How long the resolved path of the root is cached for comparisons. */
const realRootMs = 1000;
/** Folder entries read per batch: Node's default takes eight times as long in a large folder. */
const entriesPerRead = 1024;

/** A folder as a repository, in the layout of Cinder's posix and NFS drivers. */
export class PosixRepository implements Repository {
  readonly driver: "posix" | "nfs" = "posix";
  readonly storage = "files";
  readonly service: string = "cinder.backup.drivers.posix.PosixBackupDriver";
  readonly streamsPuts = true;
  readonly ownContainer = null;
  readonly #root: string;
  readonly #names = new FolderSync();
  readonly #shared = new SharedFolders();
  #probed: Promise<Publishing> | null = null;
  /** The resolved path of the root, and when it was resolved (`performance.now`). */
  #real: { path: string; at: number } | null = null;

  readonly #readBack: boolean;

  /** `root` is absolute. With `readBack` every file is read back before it gets its name. Nothing is accessed before the first call. */
  constructor(root: string, { readBack }: { readBack: boolean }) {
    this.#root = root;
    this.#readBack = readBack;
  }

  async identity(): Promise<{ id: string }> {
    await this.#checkRoot();
    let text = "";
    try {
      for await (const chunk of this.get(markerKey, { length: markerBytesMax }))
        text += Buffer.from(chunk).toString("utf8");
    } catch (error) {
      if (!(error instanceof ObjectMissingError)) throw error;
      throw new RepositoryUnmarkedError(
        `The folder ${this.#root} is not marked as a repository: is the right file system mounted there? If it is new, initialize it.`,
        { cause: error },
      );
    }
    const identity = parseMarker(text);
    if (identity === null) {
      throw new RepositoryUnmarkedError(`The marker of the repository ${this.#root} is not readable.`);
    }
    return identity;
  }

  async checkWritable(): Promise<void> {
    for (const container of ["", reservedContainer, temporaryContainer]) {
      const path = join(this.#root, container);
      const writable = access(path, constants.W_OK | constants.X_OK);
      // A missing folder is created by the first put.
      await this.#guard("write", path, () => (container === "" ? writable : writable.catch(ignoreMissing)));
    }
  }

  async freeBytes(): Promise<number> {
    const { bavail, bsize } = await this.#guard("look at", this.#root, () => statfs(this.#root));
    return bavail * bsize;
  }

  async remarks(): Promise<string[]> {
    return publishingRemarks[await this.#guard("write", this.#root, () => this.#publishing())];
  }

  async initialize(): Promise<{ id: string }> {
    await this.#guard("create", this.#root, () => makeFolders(this.#root));
    await this.#checkRoot();
    await this.ensureContainer(reservedContainer);
    try {
      await this.putIfAbsent(markerKey, newMarker(), { signal: new AbortController().signal, fence: () => {} });
    } catch (error) {
      if (!(error instanceof ObjectConflictError)) throw error;
    }
    return this.identity();
  }

  defaultContainer(backupId: string): string {
    return parseContainer(`${backupId.slice(0, 2)}/${backupId.slice(2, 4)}/${backupId}`);
  }

  defaultPrefix(input: { volumeId: string; backupId: string; at: Date }): string {
    const time = input.at.toISOString().replace(/\D/g, "").slice(0, 14);
    return `volume_${input.volumeId}_${time}_backup_${input.backupId}`;
  }

  async ensureContainer(container: string): Promise<void> {
    const names = namesOf(container);
    await this.#guard("create", this.#folder(container), () =>
      inPlace(container, makeFoldersBeneath(this.#root, names)),
    );
  }

  async putIfAbsent(
    key: ObjectKey,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    ctx: WriteContext,
  ): Promise<"stored" | "exists"> {
    const shown = this.#path(key);
    await using shared = await this.#shared.open(key.container, () => this.#open(key.container));
    const { folder } = shared;
    const path = folder.at(key.name);
    return await this.#guard("store", shown, async () => {
      if (await this.#holds(key, path, body, ctx.signal, { mayBeClaimed: !isEmpty(body) })) {
        await this.#names.sync(key.container, folder);
        return "exists";
      }
      await using drafts = await this.#shared.open(temporaryContainer, () => this.#openDrafts());
      const temporary = drafts.folder.at(randomUUID());
      try {
        await this.#writeTemporary(temporary, body, ctx);
        ctx.signal.throwIfAborted();
        ctx.fence();
        const outcome = await this.#publish(key, temporary, path, ctx.signal);
        await this.#names.sync(key.container, folder);
        return outcome;
      } finally {
        await unlink(temporary).catch(ignoreMissing);
      }
    });
  }

  async openDraft(key: ObjectKey, ctx: WriteContext): Promise<ObjectDraft | null> {
    const shown = this.#path(key);
    if (this.#readBack) return null;
    await using opened = new AsyncDisposableStack();
    const { folder } = opened.use(await this.#shared.open(key.container, () => this.#open(key.container)));
    const path = folder.at(key.name);
    return await this.#guard("store", shown, async () => {
      if ((await lstat(path).catch(ignoreMissing)) !== undefined) return null;
      const drafts = opened.use(await this.#shared.open(temporaryContainer, () => this.#openDrafts()));
      const temporary = drafts.folder.at(randomUUID());
      ctx.signal.throwIfAborted();
      ctx.fence();
      const file = await open(temporary, temporaryFlags, fileMode);
      opened.defer(() => unlink(temporary).catch(ignoreMissing));
      opened.defer(() => file.close());
      const store = (lengthBytes: number): Promise<"stored" | "exists"> =>
        this.#guard("store", shown, async () => {
          await file.truncate(lengthBytes);
          await complete(file);
          ctx.signal.throwIfAborted();
          ctx.fence();
          const outcome = await this.#publish(key, temporary, path, ctx.signal);
          await this.#names.sync(key.container, folder);
          return outcome;
        });
      const kept = opened.move();
      return { descriptor: file.fd, store, [Symbol.asyncDispose]: () => kept.disposeAsync() };
    });
  }

  /**
   * By a hard link where the file system has them: objects are never written to, and whoever removes one, a Cinder too, removes a name. The
   * file then counts as new, so that nobody takes a backup in the making for an old one.
   */
  async copyIfAbsent(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<"stored" | "exists"> {
    const shown = this.#path(to);
    await using source = await this.#open(from.container, from);
    await using folder = await this.#open(to.container);
    const [path, target] = [source.at(from.name), folder.at(to.name)];
    const { sizeBytes } = await this.stat(from);
    const linked = await this.#guard("store", shown, async () => {
      if ((await this.#publishing()) !== "link") return null;
      ctx.signal.throwIfAborted();
      ctx.fence();
      return linkFile(path, target);
    });
    if (linked === null) return this.putIfAbsent(to, this.get(from, { signal: ctx.signal }), ctx);
    if (linked === "taken" && !(await this.#guard("read", shown, () => isSameFile(path, target)))) {
      const body = sizeBytes === 0 ? new Uint8Array() : this.get(from, { signal: ctx.signal });
      if (!(await this.#guard("read", shown, () => this.#holds(to, target, body, ctx.signal)))) {
        throw new ObjectMissingError(to);
      }
    }
    await this.#guard("store", shown, () => this.#names.sync(to.container, folder));
    return linked === "taken" ? "exists" : "stored";
  }

  async *get(
    key: ObjectKey,
    options: { offset?: number; length?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const path = this.#path(key);
    const { file } = await this.#openObject(key);
    try {
      let offset = options.offset ?? 0;
      const end = options.length === undefined ? Number.POSITIVE_INFINITY : offset + options.length;
      while (offset < end) {
        options.signal?.throwIfAborted();
        const chunk = new Uint8Array(Math.min(readBytes, end - offset));
        const { bytesRead } = await this.#guard("read", path, () => file.read(chunk, 0, chunk.length, offset));
        if (bytesRead === 0) return;
        offset += bytesRead;
        yield chunk.subarray(0, bytesRead);
      }
    } finally {
      await file.close();
    }
  }

  async openFile(key: ObjectKey): Promise<ObjectFile> {
    const { file, sizeBytes } = await this.#openObject(key);
    return { descriptor: file.fd, sizeBytes, [Symbol.asyncDispose]: () => file.close() };
  }

  async filePath(key: ObjectKey): Promise<string> {
    this.#path(key);
    return join(await this.#realRoot(), key.container, key.name);
  }

  async stat(key: ObjectKey): Promise<{ sizeBytes: number }> {
    const path = this.#path(key);
    await using shared = await this.#shared.open(key.container, () => this.#open(key.container, key));
    const status = await this.#guard("read", path, () => lstat(shared.folder.at(key.name)), key);
    if (!status.isFile()) throw notRegular(path);
    return { sizeBytes: status.size };
  }

  async *list(
    container: string,
    prefix: string,
    onPassedOver: OnPassedOver | null = null,
  ): AsyncGenerator<ListedObject> {
    await using folder = await this.#open(container, markerKey).catch((error: unknown): undefined => {
      if (!(error instanceof ObjectMissingError)) throw error;
    });
    if (folder === undefined) return;
    const entries = await this.#guard("list", this.#folder(container), () =>
      opendir(folder.self, { bufferSize: entriesPerRead }),
    );
    const found = lookThroughFolder(entries, {
      wanted: (name) => name.startsWith(prefix),
      pathOf: (name) => folder.at(name),
      isObjectName: (name) => prefixOf(name) !== null,
    });
    try {
      for await (const { object, odd } of found) {
        if (object !== null) yield object;
        else if (onPassedOver !== null) onPassedOver(`${container}/${odd.name}`, reasonOf(odd.cause));
        // A folder has never been an object, and a name that is not valid text is not one of ours.
        else if (errnoOf(odd.cause) !== "")
          throw this.#translate("list", this.#folder(container), odd.cause, undefined);
      }
    } catch (error) {
      throw this.#translate("list", this.#folder(container), error, undefined);
    }
  }

  async remove(key: ObjectKey): Promise<void> {
    const path = this.#path(key);
    try {
      await using folder = await this.#open(key.container, key);
      await this.#guard("remove", path, () => unlink(folder.at(key.name)), key);
    } catch (error) {
      if (!(error instanceof ObjectMissingError)) throw error;
    }
    // A folder that belongs to a single backup or operation is removed with its last object.
    if (/^(?:\.tephra\/[^/]+|[^/]{2}\/[^/]{2}\/[^/]+)$/.test(key.container)) await this.#removeIfEmpty(key.container);
  }

  async *containers(onPassedOver: OnPassedOver = () => {}): AsyncGenerator<string> {
    await this.#checkRoot();
    yield* this.#foldersBelow("", onPassedOver);
  }

  async *leftovers(): AsyncGenerator<Leftover> {
    await this.#checkRoot();
    for await (const { name, modifiedAt } of this.list(temporaryContainer, "")) {
      if (operationIdPattern.test(name)) yield { kind: "temporary", name, modifiedAt };
    }
    await using folder = await this.#open(reservedContainer);
    const entries = await this.#guard("list", this.#folder(reservedContainer), () =>
      readdir(folder.self, { withFileTypes: true }),
    );
    for (const entry of entries) {
      if (!entry.isDirectory() || !operationIdPattern.test(entry.name)) continue;
      const status = await lstat(folder.at(entry.name)).catch(ignoreMissing);
      if (status === undefined) continue;
      // A folder's mtime is that of its newest name; a staged object is never rewritten.
      yield { kind: "staged", operationId: entry.name, modifiedAt: status.mtime };
    }
  }

  async removeLeftover(leftover: Leftover, ctx: WriteContext): Promise<void> {
    if (leftover.kind === "upload") return;
    const container = leftover.kind === "staged" ? stagingContainer(leftover.operationId) : temporaryContainer;
    const names = leftover.kind === "temporary" ? [leftover.name] : [];
    if (leftover.kind === "staged") for await (const { name } of this.list(container, "")) names.push(name);
    for (const name of names) {
      ctx.signal.throwIfAborted();
      ctx.fence();
      await this.remove({ container, name });
    }
    // An operation lost before it staged anything leaves an empty folder.
    if (leftover.kind === "staged") await this.#removeIfEmpty(container);
  }

  async holdsOnly(belongs: (name: string) => boolean): Promise<boolean> {
    if (!(await folderExists(await realpath(this.#root).catch(() => this.#root)))) return true;
    const search = async (names: readonly string[]): Promise<boolean> => {
      const entries = await this.#guard("list", join(this.#root, ...names), async () => {
        await using folder = await inPlace(names.join("/"), Folder.beneath(this.#root, names));
        return await readdir(folder.self, { withFileTypes: true });
      });
      for (const entry of entries) {
        const own = names.length === 0 && [reservedContainer, "lost+found"].includes(entry.name);
        if (own) continue;
        const path = [...names, entry.name].join("/");
        const inner = entry.isDirectory() && isContainer(path) && (await search([...names, entry.name]));
        if (!inner && !(entry.isFile() && belongs(entry.name))) return false;
      }
      return true;
    };
    return search([]);
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** Every subfolder, at any depth, that a request could name: whatever can be stored can also be found. */
  async *#foldersBelow(container: string, onPassedOver: OnPassedOver): AsyncGenerator<string> {
    const inner: string[] = [];
    try {
      const entries = await this.#guard("list", join(this.#root, container), async () => {
        await using folder = await inPlace(container, Folder.beneath(this.#root, namesOf(container)));
        return await opendir(folder.self);
      });
      for await (const entry of entries) if (entry.isDirectory()) inner.push(entry.name);
    } catch (error) {
      if (container === "") throw this.#translate("list", this.#root, error, undefined);
      const gone = errnoOf(error instanceof EngineError ? error.cause : error) === "ENOENT";
      // Invalid UTF-8 was decoded to replacement characters, so the name does not lead back to the folder.
      if (!gone || container.includes("\ufffd"))
        onPassedOver(container, gone ? "its name is not UTF-8" : reasonOf(error));
      return;
    }
    if (container !== "") yield container;
    for (const name of inner) {
      if (name.startsWith(reservedContainer)) continue;
      const path = container === "" ? name : `${container}/${name}`;
      const problem = containerProblem(path);
      if (problem === null) yield* this.#foldersBelow(path, onPassedOver);
      else onPassedOver(path, problem);
    }
  }

  async #checkRoot(): Promise<void> {
    try {
      const status = await lstat(await realpath(this.#root));
      if (!status.isDirectory()) throw new Error("not a folder");
      await access(this.#root, constants.R_OK | constants.X_OK);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new RepositoryUnavailableError(`The repository ${this.#root} is missing or cannot be read: ${reason}.`, {
        cause: error,
        retryable: true,
      });
    }
  }

  #folder(container: string): string {
    if (container === rootContainer) return this.#root;
    if (container !== reservedContainer && !/^\.tephra\/[A-Za-z0-9-]+$/.test(container)) parseContainer(container);
    return join(this.#root, container);
  }

  #path(key: ObjectKey): string {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: matching control characters is the purpose
    if (/[/\u0000]/.test(key.name) || ["", ".", ".."].includes(key.name) || Buffer.byteLength(key.name) > 255) {
      throw new InvalidObjectNameError(`Not a name for an object: ${JSON.stringify(key.name.slice(0, 300))}.`);
    }
    return join(this.#folder(key.container), key.name);
  }

  /**
   * Opens the folder of a container. InvalidContainerError when its path contains a symbolic link. With `missing`, a missing folder
   * becomes ObjectMissingError.
   */
  #open(container: string, missing?: ObjectKey): Promise<Folder> {
    const open = () => inPlace(container, Folder.beneath(this.#root, namesOf(container)));
    return this.#guard("open", this.#folder(container), open, missing);
  }

  /** The folder in which objects are written before they get their name; created when missing. */
  async #openDrafts(): Promise<Folder> {
    const open = () => Folder.beneath(this.#root, namesOf(temporaryContainer));
    const known = await inPlace(temporaryContainer, open()).catch(ignoreMissing);
    if (known !== undefined) return known;
    await this.ensureContainer(temporaryContainer);
    return this.#open(temporaryContainer);
  }

  async #openObject(key: ObjectKey): Promise<{ file: FileHandle; sizeBytes: number }> {
    const path = this.#path(key);
    await using shared = await this.#shared.open(key.container, () => this.#open(key.container, key));
    return await this.#guard("read", path, () => openRegular(shared.folder.at(key.name)), key);
  }

  async #removeIfEmpty(container: string): Promise<void> {
    const names = namesOf(container);
    try {
      await using parent = await Folder.beneath(this.#root, names.slice(0, -1));
      await rmdir(parent.at(names.at(-1) ?? ""));
    } catch {
      // In use by others, or already removed.
    }
  }

  /** How this file system can name a file without replacing an existing one. */
  #publishing(): Promise<Publishing> {
    this.#probed ??= this.#probePublishing().catch((error: unknown) => {
      this.#probed = null;
      throw error;
    });
    return this.#probed;
  }

  async #probePublishing(): Promise<Publishing> {
    await using drafts = await this.#openDrafts();
    return await probePublishing(drafts.self);
  }

  /** The operator's path, resolved at most once a second. */
  async #realRoot(): Promise<string> {
    const now = performance.now();
    if (this.#real === null || now - this.#real.at >= realRootMs) {
      const path = await this.#guard("open", this.#root, () => realpath(this.#root));
      this.#real = { path, at: now };
    }
    return this.#real.path;
  }

  /**
   * Whether the name holds the body's bytes; ObjectConflictError when it holds others. Does not consume the body when the name is free, or
   * only claimed: another writer is about to store it, or died while doing so, and publishFile waits for that.
   */
  async #holds(
    key: ObjectKey,
    path: string,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    signal: AbortSignal,
    { mayBeClaimed = false } = {},
  ): Promise<boolean> {
    const existing = await openRegular(path).catch(ignoreMissing);
    if (existing === undefined) return false;
    try {
      if (mayBeClaimed && existing.sizeBytes === 0 && (await this.#publishing()) === "claim") return false;
      if (!(await fileHolds(existing.file, body, signal))) throw new ObjectConflictError(key);
      return true;
    } finally {
      await existing.file.close();
    }
  }

  async #writeTemporary(path: string, body: Uint8Array | AsyncIterable<Uint8Array>, ctx: WriteContext): Promise<void> {
    const file = await open(path, temporaryFlags, fileMode);
    const hash = this.#readBack ? createHash("sha256") : null;
    try {
      let offset = 0;
      let writtenTo = 0;
      for await (const piece of pieces(body)) {
        ctx.signal.throwIfAborted();
        ctx.fence();
        hash?.update(piece);
        for (const { start, end } of dataRuns(piece)) {
          await writeAll(file, piece.subarray(start, end), offset + start);
          writtenTo = offset + end;
        }
        offset += piece.length;
      }
      // Zeros that were skipped become holes, which read as zeros, also at the end.
      if (writtenTo < offset) await file.truncate(offset);
      await complete(file);
    } finally {
      await file.close();
    }
    if (hash === null || (await storedDigest(path)) === hash.digest("hex")) return;
    const what = "what was written is not what is read";
    throw new RepositoryUnavailableError(`The repository ${this.#root} does not keep its files: ${what}.`, {
      retryable: true,
    });
  }

  /** Gives the temporary file its name, unless another writer was first. */
  async #publish(key: ObjectKey, temporary: string, path: string, signal: AbortSignal): Promise<"stored" | "exists"> {
    if ((await publishFile(await this.#publishing(), temporary, path)) === "stored") return "stored";
    const { file: mine } = await openRegular(temporary);
    try {
      if (!(await this.#holds(key, path, fileChunks(mine), signal))) throw new ObjectMissingError(key);
      return "exists";
    } finally {
      await mine.close();
    }
  }

  /** Runs a file-system call and turns its failure into an engine error. `missing`: the object that ENOENT refers to. */
  async #guard<Result>(verb: string, path: string, call: () => Promise<Result>, missing?: ObjectKey): Promise<Result> {
    try {
      return await call();
    } catch (error) {
      throw this.#translate(verb, path, error, missing);
    }
  }

  #translate(verb: string, path: string, error: unknown, missing: ObjectKey | undefined): unknown {
    const errno = errnoOf(error);
    if (error instanceof EngineError || errno === "" || !/^E[A-Z0-9]+$/.test(errno)) return error;
    if (missing !== undefined && (errno === "ENOENT" || errno === "ENOTDIR")) {
      return new ObjectMissingError(missing, { cause: error });
    }
    if (errno === "ENOSPC" || errno === "EDQUOT") {
      const cure = "Free space there or remove backups, then try again";
      return new RepositoryFullError(`No space left in the repository ${this.#root}. ${cure}.`, { cause: error });
    }
    const permanent = ["EACCES", "EPERM", "EROFS", "ELOOP", "ENAMETOOLONG", "ENOTDIR", "EISDIR"].includes(errno);
    // Most important first: reasons are truncated to the column length.
    const detail = `cannot ${verb} ${relative(this.#root, path) || "its folder"}`;
    return new RepositoryUnavailableError(`The repository ${this.#root} is unavailable (${errno}): ${detail}.`, {
      cause: error,
      retryable: !permanent,
    });
  }
}

/** Makes a written file durable, with the right mode regardless of the umask. */
async function complete(file: FileHandle): Promise<void> {
  await file.chmod(fileMode).catch(ignoreModeless);
  await file.sync();
}

function namesOf(container: string): string[] {
  return container === "" || container === rootContainer ? [] : container.split("/");
}

/** What a symbolic link in a container's path means. */
async function inPlace<Result>(container: string, opening: Promise<Result>): Promise<Result> {
  try {
    return await opening;
  } catch (error) {
    if (!(error instanceof LinkInPathError)) throw error;
    const reason = "leads out of its place through a symbolic link";
    throw new InvalidContainerError(`The container ${container} ${reason}.`, { cause: error });
  }
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
