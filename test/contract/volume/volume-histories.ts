import { randomBytes, randomUUID } from "node:crypto";
import { join } from "node:path";
import { type Engine, openEngine, openRepository, type Repository, type SourceReference } from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { freeContext, layoutFor, referenceTo, temporaryFolder } from "../../format/backup-fixture.ts";
import { times } from "../../kit/long.ts";
import { type Random, randomFrom } from "../../kit/random.ts";
import type { VolumePlace } from "./volume-contract.ts";

/** A place whose volumes are also read by somebody else's program. */
export interface JudgedPlace extends VolumePlace {
  /** All bytes of a volume or snapshot, not read by code of this project. */
  readElsewhere(source: SourceReference): Promise<Buffer>;
  /** After everything was removed: the names of what is left, apart from locks and empty folders. */
  names(): Promise<string[]>;
}

/** Set TEPHRA_TEST_SEED to repeat a run. */
const firstSeed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(3).readUIntLE(0, 3));
const KiB = 1024;
const startBytes = 512 * KiB;
const longestBytes = 2048 * KiB;
const stepsPerHistory = 24;
const free = freeContext();

/**
 * Random writes, snapshots, clones, extensions, backups and restores, beside references in memory; of volumes that exist already, only
 * writes, backups and restores. `missing`: why this machine has no such volumes.
 */
export function describeHistories(
  name: string,
  open: () => Promise<JudgedPlace>,
  { isGiven = false, missing }: { isGiven?: boolean; missing?: () => Promise<string | null> } = {},
): void {
  describe(`random histories of volumes ${name}`, () => {
    let engine: Engine;
    beforeAll(() => {
      engine = openEngine({ threads: 1 });
    });
    afterAll(() => engine[Symbol.asyncDispose]());

    const seeds = Array.from({ length: times({ usual: 2, long: 50 }) }, (_, n) => firstSeed + n);
    test.for(seeds)("seed %i", { timeout: 240_000 }, async (seed, context) => {
      const why = (await missing?.()) ?? null;
      context.skip(why !== null, why ?? "");
      await using place = await open();
      await using home = await temporaryFolder();
      await using repository = await openRepository(`posix:${join(home.path, "repository")}`);
      await repository.initialize();
      const history = new History(place, { engine, repository, random: randomFrom(seed), isGiven });
      for (let step = 0; step < stepsPerHistory; step++) await history.step();
      await history.judge();
      await history.removeAll();
      expect(await place.names(), history.told()).toEqual([]);
    });
  });
}

class History {
  readonly #place: JudgedPlace;
  readonly #engine: Engine;
  readonly #repository: Repository;
  readonly #random: Random;
  readonly #isGiven: boolean;
  readonly #volumes = new Map<string, Buffer>();
  readonly #snapshots = new Map<string, { bytes: Buffer; volumeId: string }>();
  /** By volume: its newest backup, with the bytes and the snapshot that it was made of. */
  readonly #backups = new Map<string, { chain: ReturnType<typeof referenceTo>[]; bytes: Buffer; snapshotId: string }>();
  readonly #done: string[] = [];

  constructor(place: JudgedPlace, tools: { engine: Engine; repository: Repository; random: Random; isGiven: boolean }) {
    this.#place = place;
    this.#engine = tools.engine;
    this.#repository = tools.repository;
    this.#random = tools.random;
    this.#isGiven = tools.isGiven;
  }

  /** What was done, for a message. */
  told(): string {
    return this.#done.join("\n");
  }

  async step(): Promise<void> {
    const verbs = [
      ...Array.from({ length: 4 }, () => this.#write),
      ...(this.#isGiven
        ? [this.#restore, this.#restore]
        : [this.#freeze, this.#freeze, this.#thaw, this.#thaw, this.#goBack, this.#clone, this.#extend, this.#remove]),
      ...[this.#backUp, this.#backUp, this.#restore],
    ];
    if (this.#volumes.size < (this.#isGiven ? 2 : 1)) return this.#create();
    const verb: (() => Promise<unknown>) | undefined = verbs[this.#random(verbs.length)];
    await verb?.call(this);
  }

  async judge(): Promise<void> {
    for (const [volumeId, bytes] of this.#volumes) await this.#compare({ volumeId }, bytes);
    for (const [snapshotId, { bytes }] of this.#snapshots) await this.#compare({ snapshotId }, bytes);
  }

  async removeAll(): Promise<void> {
    for (const id of this.#volumes.keys()) await this.#place.backend.remove(id);
    for (const id of this.#snapshots.keys()) await this.#place.backend.thaw(id);
  }

  async #compare(source: SourceReference, expected: Buffer): Promise<void> {
    const found = await this.#place.readElsewhere(source);
    expect(found.length, this.told()).toBe(expected.length);
    expect(found.equals(expected), `${JSON.stringify(source)}\n${this.told()}`).toBe(true);
  }

  #note(verb: string, ...of: (string | number)[]): void {
    this.#done.push(`${verb} ${of.map((each) => String(each).slice(0, 12)).join(" ")}`);
  }

  #anyVolume(): [string, Buffer] {
    const all = [...this.#volumes];
    return all[this.#random(all.length)] as [string, Buffer];
  }

  async #create(): Promise<void> {
    const id = randomUUID();
    this.#note("create", id);
    await (this.#place.provide?.(id, startBytes) ?? this.#place.backend.create(id, startBytes));
    this.#volumes.set(id, Buffer.alloc(startBytes));
  }

  async #write(): Promise<void> {
    const [id, bytes] = this.#anyVolume();
    const offset = this.#random(bytes.length / 512) * 512;
    const length = Math.min(bytes.length - offset, (1 + this.#random(300)) * 512);
    const data = Buffer.alloc(length, this.#random(4) === 0 ? 0 : 1 + this.#random(255));
    this.#note("write", id, offset, length, data[0] ?? 0);
    await this.#place.write(id, data, offset);
    bytes.set(data, offset);
  }

  async #freeze(): Promise<string> {
    const [volumeId, bytes] = this.#anyVolume();
    const id = randomUUID();
    this.#note("freeze", volumeId, id);
    await this.#place.backend.freeze(volumeId, id, free);
    this.#snapshots.set(id, { bytes: Buffer.from(bytes), volumeId });
    return id;
  }

  async #thaw(): Promise<void> {
    const ids = [...this.#snapshots.keys()];
    const id = ids[this.#random(ids.length || 1)];
    if (id === undefined) return;
    this.#note("thaw", id);
    await this.#place.backend.thaw(id);
    this.#snapshots.delete(id);
  }

  async #goBack(): Promise<void> {
    const { backend } = this.#place;
    const kept = [...this.#snapshots].filter(([, { volumeId }]) => this.#volumes.has(volumeId));
    const found = kept[this.#random(kept.length || 1)];
    if (found === undefined || backend.goBack === undefined) return;
    const [snapshotId, { volumeId, bytes }] = found;
    const present = this.#volumes.get(volumeId) ?? bytes;
    this.#note("go back", volumeId, snapshotId);
    await backend.goBack(volumeId, snapshotId, free);
    this.#volumes.set(volumeId, Buffer.concat([bytes, Buffer.alloc(Math.max(0, present.length - bytes.length))]));
  }

  async #clone(): Promise<void> {
    const snapshots = [...this.#snapshots];
    const [snapshot] = this.#random(2) === 0 ? snapshots : [];
    const [volumeId, present] = this.#anyVolume();
    const bytes = snapshot?.[1].bytes ?? present;
    const id = randomUUID();
    const length = bytes.length + this.#random(2) * 128 * KiB;
    this.#note("clone", snapshot?.[0] ?? volumeId, id, length);
    await this.#place.backend.clone(snapshot ? { snapshotId: snapshot[0] } : { volumeId }, id, length, free);
    this.#volumes.set(id, Buffer.concat([bytes, Buffer.alloc(length - bytes.length)]));
  }

  async #extend(): Promise<void> {
    const [id, bytes] = this.#anyVolume();
    if (bytes.length >= longestBytes) return;
    const length = bytes.length + 128 * KiB;
    this.#note("extend", id, length);
    await this.#place.backend.extend(id, length);
    this.#volumes.set(id, Buffer.concat([bytes, Buffer.alloc(length - bytes.length)]));
  }

  async #remove(): Promise<void> {
    const [id] = this.#anyVolume();
    if (this.#volumes.size < 3) return;
    this.#note("remove", id);
    await this.#place.backend.remove(id);
    this.#volumes.delete(id);
    this.#backups.delete(id);
  }

  /** What to back up: a volume as it is, or a new snapshot of one. */
  async #source(): Promise<{ source: SourceReference; snapshotId: string; bytes: Buffer; volumeId: string }> {
    if (this.#isGiven) {
      const [volumeId, present] = this.#anyVolume();
      return { source: { volumeId }, snapshotId: "", bytes: Buffer.from(present), volumeId };
    }
    const snapshotId = await this.#freeze();
    const { bytes, volumeId } = this.#snapshots.get(snapshotId) ?? { bytes: Buffer.alloc(0), volumeId: "" };
    return { source: { snapshotId }, snapshotId, bytes, volumeId };
  }

  /** A full backup, or an incremental, which reads all or what may have changed since the parent's snapshot. */
  async #backUp(): Promise<void> {
    const { source: reference, snapshotId, bytes, volumeId } = await this.#source();
    const last = this.#backups.get(volumeId);
    const parent = last?.bytes.length === bytes.length ? last : undefined;
    this.#note(parent ? "incremental" : "full", volumeId, snapshotId);
    const changed = parent && (await this.#changes(reference, parent, bytes));
    await using source = await this.#place.backend.openSource(reference);
    const options = { volumeId, parentId: parent?.chain[0]?.backupId ?? null, compression: "zlib" as const };
    const layout = layoutFor(this.#repository, source.sizeBytes, options);
    const work = { source, repository: this.#repository, layout, parent: parent?.chain[0] ?? null };
    const isTold = changed !== undefined && this.#random(2) === 0;
    await this.#engine.backupWhole(isTold ? { ...work, changed } : work, free);
    const chain = [referenceTo(this.#repository, layout), ...(parent?.chain ?? [])];
    this.#backups.set(volumeId, { chain, bytes, snapshotId });
  }

  /** What may have changed, which is all that has. */
  async #changes(
    source: SourceReference,
    since: { bytes: Buffer; snapshotId: string },
    bytes: Buffer,
  ): Promise<{ offset: number; length: number }[]> {
    const patched = Buffer.from(since.bytes);
    const range = { offset: 0, length: bytes.length };
    const changes = await Array.fromAsync(this.#place.backend.changedExtents(source, since.snapshotId, range));
    for (const { offset, length } of changes) patched.set(bytes.subarray(offset, offset + length), offset);
    expect(patched.equals(bytes), `changes since ${since.snapshotId}\n${this.told()}`).toBe(true);
    return changes;
  }

  /** The newest backup of some volume, over any volume. */
  async #restore(): Promise<void> {
    const backups = [...this.#backups];
    const backup = backups[this.#random(backups.length || 1)]?.[1];
    if (backup === undefined) return;
    const [id, present] = this.#anyVolume();
    const restoreId = `${randomUUID()}-0`;
    const keepTail = this.#random(2) === 0;
    this.#note("restore", backup.snapshotId, id, keepTail ? "with tail" : "whole");
    const { backend } = this.#place;
    await backend.beginRestore(id, restoreId, { sizeBytes: backup.bytes.length, keepTail }, free);
    {
      await using target = await backend.openRestoreTarget(id, restoreId);
      await this.#engine.restoreWhole({ chain: backup.chain, target }, free);
      await target.flush();
    }
    await backend.publishRestore(id, restoreId, { fresh: this.#random(2) === 0 }, free);
    const tail = keepTail ? present.subarray(backup.bytes.length) : Buffer.alloc(0);
    this.#volumes.set(id, Buffer.concat([backup.bytes, tail]));
  }
}
