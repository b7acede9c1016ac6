import { idOfPrefix } from "@tephra/format";
import { LRUCache } from "lru-cache";
import {
  EncryptionKeyMissingError,
  EncryptionKeyWrongError,
  type EngineError,
  InvalidBackupError,
  ObjectConflictError,
  ObjectMissingError,
} from "../errors.ts";
import { keyName, keyVersion } from "../format/layout.ts";
import type { BackupPlace, ObjectKey, Repository } from "../repository/repository.ts";
import type { WriteContext } from "../run/run-context.ts";
import { keyObjectBytesMax, newDataKey, unwrapDataKey, wrapDataKey } from "./data-key.ts";
import type { MasterKey, MasterKeys } from "./master-keys.ts";

/** What is known about a backup: it has no data key, one that was unwrapped, or one that cannot be unwrapped here. */
export type BackupKey =
  | { state: "plain" }
  | { state: "open"; secret: Buffer }
  | { state: "locked"; error: EngineError };

/** Most cached answers: a restore asks for every member of a chain, for every object. */
const rememberedMax = 2000;
/** A rewrap puts the new key before it removes the old one, so a second attempt finds one of them. */
const looksMax = 3;

/** The data keys of one repository's backups, each in its own object beside the backup. */
export class BackupKeys {
  readonly #stored: Repository;
  readonly #readMasters: () => Promise<MasterKeys>;
  #masters: MasterKeys;
  /** By container and prefix; never "locked", since the master key may become available later. */
  readonly #known = new LRUCache<string, Promise<BackupKey>>({ max: rememberedMax });

  /**
   * `masters` is the last result of `readMasters`, which is called again for versions that are missing from it and before creating keys.
   */
  constructor(stored: Repository, masters: MasterKeys, readMasters: () => Promise<MasterKeys>) {
    this.#stored = stored;
    this.#masters = masters;
    this.#readMasters = readMasters;
  }

  /** Of the master keys that are given now. */
  async versions(): Promise<string[]> {
    this.#masters = await this.#readMasters();
    return this.#masters.map(({ version }) => version);
  }

  /** Never changes for a backup that has an object, so a known answer is cached. */
  find(place: BackupPlace): Promise<BackupKey> {
    const id = `${place.container}\0${place.prefix}`;
    const known = this.#known.get(id);
    if (known !== undefined) return known;
    const found = this.#look(place);
    const forget = (): void => {
      if (this.#known.get(id) === found) this.#known.delete(id);
    };
    found.then(({ state }) => state === "locked" && forget(), forget);
    this.#known.set(id, found);
    return found;
  }

  /** The secret of an encrypted backup, read afresh. InvalidBackupError when it has no key; also throws the errors of key lookup. */
  async require(place: BackupPlace): Promise<Buffer> {
    const found = await this.#findAnew(place);
    if (found.state === "locked") throw found.error;
    if (found.state === "plain") {
      throw new InvalidBackupError(`The data key of backup ${idOf(place)} is missing, and it was begun with one.`);
    }
    return found.secret;
  }

  /**
   * Creates the data key of a new backup, wrapped by the current master key, unless it has one. Only one caller at a time may begin a
   * backup: only the key object shows which key is in force.
   */
  async create(place: BackupPlace, ctx: WriteContext): Promise<void> {
    if ((await this.#findAnew(place)).state === "plain") {
      this.#masters = await this.#readMasters();
      const [current] = this.#masters;
      const key = this.#keyOf(place, current.version);
      await this.#stored.putIfAbsent(key, wrapDataKey(newDataKey(), current, key.name), ctx).catch((error: unknown) => {
        if (!(error instanceof ObjectConflictError)) throw error;
      });
    }
    await this.require(place);
  }

  /**
   * Wraps a backup's data key with the current master key alone. The new object is put and read back before the old ones are removed, so
   * that a key exists at every moment and the call can be interrupted and repeated. Returns whether anything was changed.
   */
  async rewrap(place: BackupPlace, ctx: WriteContext): Promise<boolean> {
    const secret = await this.require(place);
    const [current] = this.#masters;
    const key = this.#keyOf(place, current.version);
    let changed = false;
    if ((await this.#open(place, current)) === null) {
      await this.#stored.putIfAbsent(key, wrapDataKey(secret, current, key.name), ctx);
      changed = true;
    }
    const back = await this.#open(place, current);
    if (back?.state !== "open" || !back.secret.equals(secret)) throw wrongKey(place, current.version);
    for (const version of await this.#listVersions(place)) {
      if (version === current.version) continue;
      ctx.signal.throwIfAborted();
      ctx.fence();
      await this.#stored.remove(this.#keyOf(place, version));
      changed = true;
    }
    return changed;
  }

  /** The master key of this version. EncryptionKeyMissingError, whose message begins with `what`. */
  async master(version: string, what: string): Promise<MasterKey> {
    const has = (): MasterKey | undefined => this.#masters.find((each) => each.version === version);
    if (has() === undefined) this.#masters = await this.#readMasters();
    const master = has();
    if (master === undefined) throw missingKey(what, [version], this.#masters);
    return master;
  }

  get current(): MasterKey {
    return this.#masters[0];
  }

  #findAnew(place: BackupPlace): Promise<BackupKey> {
    this.#known.delete(`${place.container}\0${place.prefix}`);
    return this.find(place);
  }

  async #look(place: BackupPlace): Promise<BackupKey> {
    for (let look = 1; ; look++) {
      let locked: BackupKey | null = null;
      for (const master of this.#masters) {
        const found = await this.#open(place, master);
        if (found?.state === "open") return found;
        locked ??= found;
      }
      if (locked !== null) return locked;
      // By name first: a Swift listing may lag behind recent puts.
      const versions = await this.#listVersions(place);
      if (versions.length === 0) return { state: "plain" };
      this.#masters = await this.#readMasters();
      const atHand = versions.some((version) => this.#masters.some((master) => master.version === version));
      if (!atHand || look === looksMax) {
        return { state: "locked", error: missingKey(`Backup ${idOf(place)}`, versions, this.#masters) };
      }
    }
  }

  /** Null when no key of this version exists. */
  async #open(place: BackupPlace, master: MasterKey): Promise<Exclude<BackupKey, { state: "plain" }> | null> {
    const key = this.#keyOf(place, master.version);
    const chunks: Uint8Array[] = [];
    try {
      for await (const chunk of this.#stored.get(key, { length: keyObjectBytesMax })) chunks.push(chunk);
    } catch (error) {
      if (error instanceof ObjectMissingError) return null;
      throw error;
    }
    const secret = unwrapDataKey(Buffer.concat(chunks), master, key.name);
    if (secret === null) return { state: "locked", error: wrongKey(place, master.version) };
    return { state: "open", secret };
  }

  async #listVersions(place: BackupPlace): Promise<string[]> {
    const versions: string[] = [];
    for await (const { name } of this.#stored.list(place.container, keyName(place.prefix, ""))) {
      const version = keyVersion(place.prefix, name);
      if (version !== null) versions.push(version);
    }
    return versions;
  }

  #keyOf({ container, prefix }: BackupPlace, version: string): ObjectKey {
    return { container, name: keyName(prefix, version) };
  }
}

const idOf = ({ prefix }: BackupPlace): string => idOfPrefix(prefix);

function missingKey(what: string, versions: readonly string[], masters: MasterKeys): EncryptionKeyMissingError {
  const given = masters.map(({ version }) => version).join(", ");
  return new EncryptionKeyMissingError(
    `${what} is encrypted with master key ${versions.join(" or ")}, which is not among those given (${given}).`,
  );
}

function wrongKey(place: BackupPlace, version: string): EncryptionKeyWrongError {
  return new EncryptionKeyWrongError(
    `Master key ${version} does not open backup ${idOf(place)}: it is not the key that once bore this version, ` +
      "or the backup's key object is damaged.",
  );
}
