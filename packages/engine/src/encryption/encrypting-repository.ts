import { prefixOf, reservedContainer } from "@tephra/format";
import { InvalidObjectNameError } from "../errors.ts";
import { FormatError } from "../format/json-stream.ts";
import { metadataName } from "../format/layout.ts";
import type { OnPassedOver } from "../repository/passed-over.ts";
import {
  type BackupPlace,
  type Leftover,
  type ListedObject,
  type ObjectKey,
  type Repository,
  type RepositoryEncryption,
  recordsContainer,
} from "../repository/repository.ts";
import type { WriteContext } from "../run/run-context.ts";
import { BackupKeys } from "./backup-keys.ts";
import { ByteReader } from "./byte-reader.ts";
import { encodeEncryptedMetadata, readMetadataFrames } from "./encrypted-metadata.ts";
import { decryptFrames, decryptPart, encryptFrames, encryptObject, frameKeysFor, textBytesOf } from "./frames.ts";
import { type MasterKeySource, readMasterKeys } from "./master-keys.ts";
import { decryptStaged, encryptStaged } from "./staged.ts";

interface Part {
  offset?: number;
  length?: number;
  signal?: AbortSignal;
}

/** Adds encryption to a repository. The master keys are read once now, and again when an unknown version is needed. */
export async function encryptRepository(stored: Repository, source: MasterKeySource): Promise<Repository> {
  const readMasters = () => readMasterKeys(source);
  return new EncryptingRepository(stored, new BackupKeys(stored, await readMasters(), readMasters));
}

/**
 * A repository in which some backups are encrypted: those with a data key beside them. Staged objects are always encrypted, by the
 * current master key. There is no openFile: threads would read ciphertext.
 */
class EncryptingRepository implements Repository {
  readonly driver: Repository["driver"];
  readonly storage: Repository["storage"];
  readonly service: string;
  readonly streamsPuts: boolean;
  readonly ownContainer: string | null;
  readonly encryption: RepositoryEncryption;
  readonly #stored: Repository;
  readonly #keys: BackupKeys;

  constructor(stored: Repository, keys: BackupKeys) {
    this.driver = stored.driver;
    this.storage = stored.storage;
    this.service = stored.service;
    this.ownContainer = stored.ownContainer;
    this.streamsPuts = stored.streamsPuts === true;
    this.#stored = stored;
    this.#keys = keys;
    this.encryption = {
      stored,
      keyVersions: () => keys.versions(),
      beginBackup: (place, ctx) => keys.create(place, ctx),
      requireKey: async (place) => void (await keys.require(place)),
      isEncrypted: async (place) => (await keys.find(place)).state !== "plain",
      putMetadata: (place, metadata, ctx) => this.#putMetadata(place, metadata, ctx),
      rewrapKey: (place, ctx) => keys.rewrap(place, ctx),
    };
  }

  async putIfAbsent(
    key: ObjectKey,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    ctx: WriteContext,
  ): Promise<"stored" | "exists"> {
    // The MD5 is of what is encrypted, not of what is stored.
    const { bodyMd5, ...without } = ctx;
    if (isStaging(key.container)) {
      return this.#stored.putIfAbsent(key, encryptStaged(this.#keys.current, key, body), without);
    }
    const secret = await this.#secretOf(key);
    if (secret === null) return this.#stored.putIfAbsent(key, body, ctx);
    return this.#stored.putIfAbsent(key, encryptObject(frameKeysFor(secret, key.name), body), without);
  }

  async copyIfAbsent(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<"stored" | "exists"> {
    for (const key of [from, to]) {
      const place = placeOf(key);
      if (isStaging(key.container) || (place !== null && (await this.#keys.find(place)).state !== "plain")) {
        throw new InvalidObjectNameError(`An encrypted object is bound to its name: ${key.name}.`);
      }
    }
    return this.#stored.copyIfAbsent(from, to, ctx);
  }

  async *get(key: ObjectKey, options: Part = {}): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const { offset = 0, length = null, signal } = options;
    const whole = () => this.#stored.get(key, signal === undefined ? {} : { signal });
    if (isStaging(key.container)) {
      const masterOf = (version: string) => this.#keys.master(version, `What operation ${key.container} has staged`);
      return yield* cut(decryptStaged(masterOf, key, whole()), { offset, length });
    }
    const secret = await this.#secretOf(key);
    if (secret === null) return yield* this.#stored.get(key, options);
    const keys = frameKeysFor(secret, key.name);
    const prefix = prefixOf(key.name);
    if (prefix !== null && key.name === metadataName(prefix)) {
      const frames = new ByteReader(readMetadataFrames(whole()));
      return yield* cut(decryptFrames(keys, frames), { offset, length });
    }
    const read = (part: { offset: number; length: number | null }): AsyncIterable<Uint8Array> =>
      this.#stored.get(key, {
        offset: part.offset,
        ...(part.length === null ? {} : { length: part.length }),
        ...(signal === undefined ? {} : { signal }),
      });
    yield* decryptPart(keys, read, { offset, length });
  }

  /** The plaintext size; FormatError when no encrypted object can have the stored size. For metadata, the stored size. */
  async stat(key: ObjectKey): Promise<{ sizeBytes: number }> {
    const { sizeBytes } = await this.#stored.stat(key);
    const place = placeOf(key);
    if (place === null || !(await this.#hasTextSize(place, key.name))) return { sizeBytes };
    const textBytes = textBytesOf(sizeBytes);
    if (textBytes === null) throw new FormatError(`its ${sizeBytes} stored bytes are not an encrypted object`);
    return { sizeBytes: textBytes };
  }

  /** Sizes are plaintext sizes when the objects of one backup are listed, and 0 for objects too short to be encrypted ones. */
  async *list(container: string, prefix: string, onPassedOver?: OnPassedOver): AsyncGenerator<ListedObject> {
    for await (const object of this.#stored.list(container, prefix, onPassedOver)) {
      const { name, sizeBytes } = object;
      const place = placeOf({ container, name });
      const textSize = place !== null && prefix.startsWith(place.prefix) && (await this.#hasTextSize(place, name));
      yield { ...object, sizeBytes: textSize ? (textBytesOf(sizeBytes) ?? 0) : sizeBytes };
    }
  }

  identity(): Promise<{ id: string }> {
    return this.#stored.identity();
  }

  checkWritable(): Promise<void> {
    return this.#stored.checkWritable();
  }

  freeBytes(): Promise<number | null> {
    return this.#stored.freeBytes();
  }

  remarks(): Promise<string[]> {
    return this.#stored.remarks();
  }

  initialize(): Promise<{ id: string }> {
    return this.#stored.initialize();
  }

  defaultContainer(backupId: string): string {
    return this.#stored.defaultContainer(backupId);
  }

  defaultPrefix(input: { volumeId: string; backupId: string; at: Date }): string {
    return this.#stored.defaultPrefix(input);
  }

  ensureContainer(container: string): Promise<void> {
    return this.#stored.ensureContainer(container);
  }

  remove(key: ObjectKey): Promise<void> {
    return this.#stored.remove(key);
  }

  containers(onPassedOver?: OnPassedOver): AsyncIterable<string> {
    return this.#stored.containers(onPassedOver);
  }

  leftovers(containers: readonly string[], onPassedOver?: OnPassedOver): AsyncIterable<Leftover> {
    return this.#stored.leftovers(containers, onPassedOver);
  }

  removeLeftover(leftover: Leftover, ctx: WriteContext): Promise<void> {
    return this.#stored.removeLeftover(leftover, ctx);
  }

  holdsOnly(belongs: (name: string) => boolean): Promise<boolean> {
    return this.#stored.holdsOnly(belongs);
  }

  [Symbol.asyncDispose](): PromiseLike<void> {
    return this.#stored[Symbol.asyncDispose]();
  }

  async #putMetadata(
    place: BackupPlace,
    { label, body }: Parameters<RepositoryEncryption["putMetadata"]>[1],
    ctx: WriteContext,
  ): Promise<void> {
    const key = { container: place.container, name: metadataName(place.prefix) };
    const keys = frameKeysFor(await this.#keys.require(place), key.name);
    await this.#stored.putIfAbsent(key, encodeEncryptedMetadata(encryptFrames(keys, body, 1), label), ctx);
  }

  /** The secret for an object; null when it does not belong to an encrypted backup. Throws the errors of key lookup. */
  async #secretOf(key: ObjectKey): Promise<Buffer | null> {
    const place = placeOf(key);
    if (place === null) return null;
    const found = await this.#keys.find(place);
    if (found.state === "locked") throw found.error;
    return found.state === "open" ? found.secret : null;
  }

  async #hasTextSize(place: BackupPlace, name: string): Promise<boolean> {
    if (name === metadataName(place.prefix)) return false;
    return (await this.#keys.find(place)).state !== "plain";
  }
}

/** The backup that an object belongs to; also null for key objects, which are never encrypted. */
function placeOf({ container, name }: ObjectKey): BackupPlace | null {
  const prefix = prefixOf(name);
  return prefix === null || name.startsWith(`${prefix}_key_`) ? null : { container, prefix };
}

function isStaging(container: string): boolean {
  return container.startsWith(`${reservedContainer}/`) && container !== recordsContainer;
}

/** Part of a stream that can only be read from its start. */
async function* cut(
  text: AsyncIterable<Uint8Array<ArrayBuffer>>,
  { offset, length }: { offset: number; length: number | null },
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const end = length === null ? Number.POSITIVE_INFINITY : offset + length;
  let at = 0;
  for await (const chunk of text) {
    const wanted = chunk.subarray(Math.max(0, offset - at), Math.max(0, end - at));
    if (wanted.length > 0) yield wanted;
    at += chunk.length;
    if (at >= end) return;
  }
}
