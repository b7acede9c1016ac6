import { setTimeout as sleep } from "node:timers/promises";
import { BackendUnavailableError, SourceMissingError, VolumeStorageError } from "../../errors.ts";
import { clipExtent, type Extent } from "../../format/extents.ts";
import {
  askCeph,
  changeObject,
  changeRbd,
  linesOfRbd,
  type RbdAccess,
  RbdError,
  type RbdTask,
  type rbdErrno,
  runRbd,
  saysErrno,
  saysMissing,
} from "./rbd-command.ts";
import { shownAs } from "./rbd-name.ts";
import { userDefault } from "./serve-rbd.ts";

export interface ImageInfo {
  /** Stays the same when it gets another name. */
  id: string;
  sizeBytes: number;
  features: string[];
  /** What a clone has of its parent, in the pool and namespace that it is in itself or another. */
  parent: { place: string; image: string; snapshot: string } | null;
  /** The last time that a client noted a write, at most a minute late; else when it was made. */
  modifiedAt: Date;
}

export interface ImageSnapshot {
  id: number;
  name: string;
  sizeBytes: number;
  isProtected: boolean;
  madeAt: Date;
}

/** How long another task may take between two steps of renaming an image. */
const halfMs = 10_000;

/**
 * Without object maps, which have been wrong, and which diffs would rely on. `shared`: several clients write at the same time, which an
 * exclusive lock would have take turns; it can be enabled later. Deep flatten cannot.
 */
const features = {
  shared: ["layering", "deep-flatten"],
  single: ["layering", "exclusive-lock", "deep-flatten"],
} as const;

/** The commands of `rbd` (package ceph-common) in one pool. Every one throws VolumeStorageError, RbdError; SourceMissingError. */
export class RbdPool {
  readonly access: RbdAccess;

  constructor(access: RbdAccess) {
    this.access = access;
  }

  /** What an image is called in messages. */
  shown(image: string, snapshot: string | null = null): string {
    return shownAs({ ...this.access, image, snapshot });
  }

  /** Of the pool itself, as `rbd info` names it. */
  get place(): string {
    const { pool, namespace } = this.access;
    return namespace === null ? pool : `${pool}/${namespace}`;
  }

  async list(): Promise<string[]> {
    const names = await this.#ask(["ls"], `The pool ${this.place}`);
    if (!Array.isArray(names)) throw unexpected(this.place);
    return names as string[];
  }

  /** Null when there is no such image. */
  async info(image: string): Promise<ImageInfo | null> {
    const found = await orNull(this.#ask(["info", `--image=${image}`], this.shown(image)));
    if (found === null) return null;
    const { id, size, features: has, parent, modify_timestamp, create_timestamp } = found as Record<string, unknown>;
    if (typeof id !== "string" || typeof size !== "number" || !Array.isArray(has)) throw unexpected(this.shown(image));
    const from = parent as { pool: string; pool_namespace?: string; image: string; snapshot: string } | undefined;
    return {
      id,
      sizeBytes: size,
      features: has as string[],
      parent: from
        ? {
            place: from.pool_namespace ? `${from.pool}/${from.pool_namespace}` : from.pool,
            image: from.image,
            snapshot: from.snapshot,
          }
        : null,
      modifiedAt: timeOf(modify_timestamp ?? create_timestamp),
    };
  }

  /** In the order in which they were made; null for an image that is not there. */
  async snapshots(image: string): Promise<ImageSnapshot[] | null> {
    const found = await orNull(this.#ask(["snap", "ls", `--image=${image}`], this.shown(image)));
    if (found === null) return null;
    if (!Array.isArray(found)) throw unexpected(this.shown(image));
    const rows = found as { id: number; name: string; size: number; protected: unknown; timestamp: unknown }[];
    const snapshots = rows.map(({ id, name, size, protected: is, timestamp }) => ({
      id,
      name,
      sizeBytes: size,
      isProtected: String(is) === "true",
      madeAt: timeOf(timestamp),
    }));
    return snapshots.sort((a, b) => a.id - b.id);
  }

  /** Whether any image is a clone of a snapshot. One that is not there has none. */
  async hasChildren(image: string, snapshot: string): Promise<boolean> {
    const args = ["children", "--all", `--image=${image}`, `--snap=${snapshot}`];
    const found = await orNull(this.#ask(args, this.shown(image, snapshot)));
    if (found === null) return false;
    if (!Array.isArray(found)) throw unexpected(this.shown(image));
    return found.length > 0;
  }

  /** @throws RbdError `exists` */
  async create(image: string, sizeBytes: number, kind: keyof typeof features): Promise<void> {
    await this.#change(["create", `--size=${sizeBytes}B`, ...featuresOf(kind)], image, "created");
  }

  /** Of a protected snapshot, on which the clone depends. */
  async clone(image: string, snapshot: string, to: string): Promise<void> {
    const { pool, namespace } = this.access;
    const dest = [`--dest-pool=${pool}`, ...(namespace === null ? [] : [`--dest-namespace=${namespace}`])];
    // The second format needs no protection, but leaves removed snapshots in a trash that nothing here could name.
    const args = ["clone", `--snap=${snapshot}`, ...dest, `--dest=${to}`, ...featuresOf("single")];
    await this.#change([...args, "--rbd-default-clone-format=1"], image, "cloned");
  }

  /** Copies into a clone what it has of its parent, so that it depends on nothing. */
  async flatten(image: string, signal: AbortSignal): Promise<void> {
    await this.#change(["flatten"], image, "flattened", signal);
  }

  /** An image that is longer already is left as it is: RbdError `invalid`. */
  async extend(image: string, sizeBytes: number): Promise<void> {
    await this.#change(["resize", `--size=${sizeBytes}B`, "--no-progress"], image, "extended");
  }

  async lockExclusively(image: string): Promise<void> {
    if ((await this.info(image))?.features.includes("exclusive-lock")) return;
    await this.#change(["feature", "enable", "exclusive-lock"], image, "changed");
  }

  /**
   * Ceph does this in three steps. What an interrupted one has left is finished or taken back.
   *
   * @returns whether there was such an image
   * @throws RbdError `exists`
   */
  async rename(image: string, to: string): Promise<boolean> {
    try {
      await this.#rename(image, to);
      return true;
    } catch (error) {
      const isTaken = saysErrno(error, "exists");
      if (!isTaken && !saysMissing(error)) throw error;
      if ((await this.#namesLeft(image, to, isTaken)).stale.length > 0) await sleep(halfMs);
      const { stale, isListed, isDone } = await this.#namesLeft(image, to, isTaken);
      for (const name of stale) await this.#forgetName(name);
      if (isDone) return true;
      if (!isListed && (!isTaken || stale.includes(image))) return false;
      if (!stale.includes(to)) throw error;
      await this.#rename(image, to);
      return true;
    }
  }

  async #rename(image: string, to: string): Promise<void> {
    const { pool, namespace } = this.access;
    const dest = [`--dest-pool=${pool}`, ...(namespace === null ? [] : [`--dest-namespace=${namespace}`])];
    await this.#change(["rename", ...dest, `--dest=${to}`], image, `renamed to ${to}`);
  }

  /**
   * `stale`: names that lead to the image, or to nothing, though the pool's directory does not list them: it was being renamed to one or
   * from one. `isListed`: it has its old name; `isDone`: it has the new one. `isTaken`: the new name leads anywhere.
   */
  async #namesLeft(
    image: string,
    to: string,
    isTaken: boolean,
  ): Promise<{ stale: string[]; isListed: boolean; isDone: boolean }> {
    const one = await this.info(image);
    if (one === null) return { stale: [], isListed: false, isDone: false };
    const [other, names] = [await this.info(to), await this.list()];
    const isSame = other?.id === one.id;
    const leading = [image, ...(isSame || (isTaken && other === null) ? [to] : [])];
    return {
      stale: leading.filter((name) => !names.includes(name)),
      isListed: names.includes(image),
      isDone: isSame && !names.includes(image) && names.includes(to),
    };
  }

  /** The image stays: only the object goes that leads from this name to it. */
  async #forgetName(name: string): Promise<void> {
    await changeObject(["rm", `rbd_id.${name}`], this.access, { shown: this.shown(name), doing: "forgotten" });
  }

  /** @returns false when it is still in use, or has snapshots. A missing image is removed. */
  async remove(image: string): Promise<boolean> {
    try {
      await orNull(this.#change(["rm"], image, "removed"));
      return true;
    } catch (error) {
      if (saysErrno(error, "busy") || saysErrno(error, "notEmpty")) return false;
      throw error;
    }
  }

  /** One that exists is kept. */
  async freeze(image: string, snapshot: string): Promise<void> {
    const args = ["snap", "create", `--snap=${snapshot}`, "--no-progress"];
    await unless("exists", this.#change(args, image, "frozen"));
  }

  async protect(image: string, snapshot: string): Promise<void> {
    await unless("busy", this.#change(["snap", "protect", `--snap=${snapshot}`], image, "cloned"));
  }

  /** @throws RbdError `busy` when there is a clone of it */
  async unprotect(image: string, snapshot: string): Promise<void> {
    await unless(
      "invalid",
      orNull(this.#change(["snap", "unprotect", `--snap=${snapshot}`], image, `rid of ${snapshot}`)),
    );
  }

  async renameSnapshot(image: string, snapshot: string, to: string): Promise<void> {
    const { pool, namespace } = this.access;
    const dest = [`--dest-pool=${pool}`, ...(namespace === null ? [] : [`--dest-namespace=${namespace}`])];
    const args = ["snap", "rename", `--snap=${snapshot}`, ...dest, `--dest=${image}`, `--dest-snap=${to}`];
    await this.#change(args, image, `rid of ${snapshot}`);
  }

  /** A missing one is removed. @throws RbdError `busy` when it is protected */
  async removeSnapshot(image: string, snapshot: string): Promise<void> {
    const args = ["snap", "rm", `--snap=${snapshot}`, "--no-progress"];
    await orNull(this.#change(args, image, `rid of ${snapshot}`));
  }

  /**
   * What was written or discarded since a snapshot of the same image until another one, or now, ascending. Asks for the objects themselves:
   * with `--whole-object`, Ceph looks at the image's object map instead, which has been wrong.
   */
  async *changes(image: string, since: string, until: string | null): AsyncGenerator<Extent, void> {
    const args = ["diff", `--image=${image}`, `--from-snap=${since}`, ...(until === null ? [] : [`--snap=${until}`])];
    const task = { shown: this.shown(image, until), doing: "compared" };
    try {
      for await (const line of linesOfRbd(args, this.access, task)) {
        const [, offset, length] = /^\s*([0-9]+)\s+([0-9]+)\s+(?:data|zero)\s*$/.exec(line) ?? [];
        if (offset !== undefined) yield { offset: Number(offset), length: Number(length) };
        else if (!/^\s*(?:Offset\s+Length\s+Type\s*)?$/.test(line)) throw unexpected(task.shown);
      }
    } catch (error) {
      throw this.#explained(error);
    }
  }

  /** The parts of `range` that may differ between two snapshots of an image that has no parent, or since one, ascending. */
  async *changesIn(
    range: Extent,
    { image, since, until }: { image: string; since: ImageSnapshot; until: ImageSnapshot | null },
  ): AsyncGenerator<Extent, void> {
    const end = range.offset + range.length;
    const shared = { offset: range.offset, length: Math.min(end, since.sizeBytes) - range.offset };
    for await (const extent of this.changes(image, since.name, until?.name ?? null)) {
      const part = clipExtent(extent, shared);
      if (part !== null) yield part;
    }
    const longer = clipExtent({ offset: since.sizeBytes, length: Number.MAX_SAFE_INTEGER }, range);
    if (longer !== null) yield longer;
  }

  /** A value that an image was given; null when there is none, or no image. */
  async note(image: string, key: string): Promise<string | null> {
    const args = ["image-meta", "get", `--image=${image}`, key];
    const found = await orNull(changeRbd(args, this.access, { shown: this.shown(image), doing: "read" }));
    return found?.trim() ?? null;
  }

  async notes(image: string): Promise<[key: string, value: string][]> {
    const found = await orNull(this.#ask(["image-meta", "list", `--image=${image}`], this.shown(image)));
    return Object.entries((found ?? {}) as Record<string, string>);
  }

  async setNote(image: string, key: string, value: string): Promise<void> {
    await this.#change(["image-meta", "set", key, value], image, "changed");
  }

  async removeNote(image: string, key: string): Promise<void> {
    await orNull(this.#change(["image-meta", "remove", key], image, "changed"));
  }

  /** What the pool has room for, with its copies; null where the cluster has no manager to count it. */
  async freeBytes(): Promise<number | null> {
    const task = { shown: `The room in the pool ${this.access.pool}`, doing: "found out" };
    const answer = (await askCeph(["df"], this.access, task)) as {
      stats?: { total_bytes?: number };
      pools?: { name: string; stats: { max_avail: number } }[];
    };
    if (!answer.stats?.total_bytes) return null;
    const found = answer.pools?.find(({ name }) => name === this.access.pool);
    if (found === undefined) throw new BackendUnavailableError(`Ceph has no pool ${this.access.pool}.`);
    return found.stats.max_avail;
  }

  async #ask(args: readonly string[], shown: string): Promise<unknown> {
    return await runRbd(args, this.access, shown).catch((error: unknown) => {
      throw this.#explained(error);
    });
  }

  async #change(args: readonly string[], image: string, doing: string, signal?: AbortSignal): Promise<string> {
    const task: RbdTask = { shown: this.shown(image), doing, ...(signal && { signal }) };
    return await changeRbd([...args, `--image=${image}`], this.access, task).catch((error: unknown) => {
      throw this.#explained(error);
    });
  }

  /** Says which rights are missing; a pool that is gone is no missing image. */
  #explained(error: unknown): unknown {
    if (error instanceof SourceMissingError && /error opening pool/.test(error.message))
      return new BackendUnavailableError(error.message, { cause: error });
    if (!(error instanceof RbdError) || !/\((?:1|13)\)/.test(error.message)) return error;
    const { pool, user } = this.access;
    const rights = `client.${user ?? userDefault} needs mon 'profile rbd' osd 'profile rbd pool=${pool}'`;
    return new RbdError(`${error.message} ${rights}.`, { cause: error, retryable: false, errno: error.errno });
  }
}

const featuresOf = (kind: keyof typeof features): string[] => features[kind].map((name) => `--image-feature=${name}`);

const unexpected = (shown: string): VolumeStorageError =>
  new VolumeStorageError(`rbd says of ${shown} what is not understood.`, { retryable: false });

async function orNull<Result>(call: Promise<Result>): Promise<Result | null> {
  return await call.catch((error: unknown) => {
    if (saysMissing(error)) return null;
    throw error;
  });
}

async function unless(errno: keyof typeof rbdErrno, call: Promise<unknown>): Promise<void> {
  await call.catch((error: unknown) => {
    if (!saysErrno(error, errno)) throw error;
  });
}

/** As ctime(3) has it, in this machine's time zone. */
const timeOf = (text: unknown): Date => {
  const time = new Date(String(text));
  return Number.isNaN(time.getTime()) ? new Date() : time;
};
