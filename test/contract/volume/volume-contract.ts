import { randomBytes, randomUUID } from "node:crypto";
import { join } from "node:path";
import {
  type Engine,
  openEngine,
  openRepository,
  PathNotAllowedError,
  SourceMissingError,
  type SourceReference,
  type VolumeBackend,
  VolumeConflictError,
} from "@tephra/engine";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { freeContext, layoutFor, referenceTo, temporaryFolder } from "../../format/backup-fixture.ts";

/** A new, empty place for volumes. */
export interface VolumePlace extends AsyncDisposable {
  backend: VolumeBackend;
  /** The same place once more, as another process has it. */
  again(): Promise<VolumeBackend>;
  /** Makes what becomes a new volume of zeros, where the backend does not make it itself. */
  provide?(volumeId: string, sizeBytes: number): Promise<void>;
  /** Writes to a volume as whoever uses it does. */
  write(volumeId: string, bytes: Uint8Array, offset: number): Promise<void>;
}

export interface VolumeKind {
  name: string;
  open: () => Promise<VolumePlace>;
  restores: "aside" | "in-place";
  /** Whether nobody can write to a volume while it is open for reading. */
  keepsWritersOff?: boolean;
  /** Whether volumes are what exists already: they can be neither made, copied, made longer nor frozen. */
  isGiven?: boolean;
  /** Why this machine has no such volumes; null where it has. */
  missing?: () => Promise<string | null>;
}

const free = freeContext();
const KiB = 1024;
const sizeBytes = 512 * KiB;

/** The rules of the VolumeBackend contract. Every driver enters here; a fault found in one adds a case for all. */
export function describeVolumeBackend(kind: VolumeKind): void {
  describe(`volumes ${kind.name}`, () => {
    let opened: VolumePlace;
    beforeEach(async (context) => {
      const why = (await kind.missing?.()) ?? null;
      context.skip(why !== null, why ?? "");
      opened = await kind.open();
      return () => opened[Symbol.asyncDispose]();
    });
    const place = (): VolumePlace => opened;

    describeIds(place);
    if (kind.isGiven) describeGiven(place);
    else {
      describeVolumes(place);
      describeFreezing(place);
      describeLeftovers(place);
    }
    describeSources(place, kind);
    describeTargets(place, kind);
    if (kind.restores === "aside") describeAside(place);
    else describeInPlace(place);
    describeBackups(place, kind);
  });
}

/** A volume with these bytes at `offset`, and zeros elsewhere. */
async function volumeWith(place: VolumePlace, bytes: Uint8Array, offset = 0): Promise<string> {
  const id = randomUUID();
  await (place.provide?.(id, sizeBytes) ?? place.backend.create(id, sizeBytes));
  await place.write(id, bytes, offset);
  return id;
}

async function readAll(backend: VolumeBackend, reference: SourceReference): Promise<Buffer> {
  await using source = await backend.openSource(reference);
  const bytes = Buffer.alloc(source.sizeBytes);
  await source.read(bytes, 0);
  return bytes;
}

/** As toEqual(), which looks at every byte by itself. */
function expectBytes(found: Buffer, expected: Buffer): void {
  expect(found.length).toBe(expected.length);
  expect(found.equals(expected)).toBe(true);
}

/** Writes all of `bytes` through the target of a restore. */
async function restore(backend: VolumeBackend, volumeId: string, restoreId: string, bytes: Uint8Array): Promise<void> {
  await using target = await backend.openRestoreTarget(volumeId, restoreId);
  await target.write(bytes, 0);
  await target.flush();
}

function describeIds(place: () => VolumePlace): void {
  test("what is removed is gone, for every process, and removing it again is success", async () => {
    const { backend, again } = place();
    const id = await volumeWith(place(), Buffer.from("bytes"));
    const other = await again();
    await other.remove(id);
    await backend.remove(id);
    for (const each of [backend, other]) {
      await expect(each.openSource({ volumeId: id })).rejects.toBeInstanceOf(SourceMissingError);
    }
  });

  test.each(["", "..", "a/b", "../x", ".hidden", "a\0"])("the id %j is refused by every verb", async (id) => {
    const { backend } = place();
    const verbs: (() => Promise<unknown>)[] = [
      () => backend.create(id, sizeBytes),
      () => backend.clone({ volumeId: id }, randomUUID(), sizeBytes, free),
      () => backend.extend(id, sizeBytes),
      () => backend.remove(id),
      () => backend.openSource({ volumeId: id }),
      () => backend.openSource({ snapshotId: id }),
      () => backend.thaw(id),
      () => backend.beginRestore(randomUUID(), id, { sizeBytes, keepTail: false }, free),
      () => backend.abandonRestore(id),
    ];
    for (const verb of verbs)
      await expect((async () => verb())(), String(verb)).rejects.toBeInstanceOf(PathNotAllowedError);
  });
}

/** What exists already is not made, and all that cannot be done is said in Cinder's words. */
function describeGiven(place: () => VolumePlace): void {
  test("what cannot be done is refused for good, and changes nothing", async () => {
    const { backend } = place();
    const bytes = randomBytes(sizeBytes);
    const volumeId = await volumeWith(place(), bytes);
    const places = { roots: ["/"] };
    const verbs: (() => Promise<unknown>)[] = [
      () => backend.create(randomUUID(), sizeBytes),
      () => backend.clone({ volumeId }, randomUUID(), sizeBytes, free),
      () => backend.extend(volumeId, 2 * 1024 ** 3),
      () => backend.freeze(volumeId, randomUUID(), free),
      () => backend.importFile("/etc/hostname", randomUUID(), places, free),
    ];
    for (const verb of verbs) {
      const refusal = {
        code: "operation_not_supported",
        message: expect.stringMatching(/^Operation not supported: \w/),
      };
      await expect((async () => verb())(), String(verb)).rejects.toMatchObject(refusal);
    }
    expect(await backend.canFreezeCheaply(volumeId)).toBe(false);
    await backend.extend(volumeId, sizeBytes);
    await backend.thaw(randomUUID());
    expectBytes(await readAll(backend, { volumeId }), bytes);
    await expect(backend.extend(randomUUID(), sizeBytes)).rejects.toBeInstanceOf(SourceMissingError);
    await expect(backend.freeze(randomUUID(), randomUUID(), free)).rejects.toBeInstanceOf(SourceMissingError);
  });

  test("a volume is shown with its id and its age, and forgetting it leaves its bytes", async () => {
    const { backend } = place();
    const volumeId = await volumeWith(place(), randomBytes(4096));
    await backend.beginRestore(volumeId, `${randomUUID()}-2`, { sizeBytes, keepTail: true }, free);
    const found = await Array.fromAsync(backend.leftovers());
    expect(found.map(({ kind, ids }) => ({ kind, ids }))).toEqual([{ kind: "volume", ids: [volumeId] }]);
    expect(Math.abs(Date.now() - (found[0]?.modifiedAt.getTime() ?? 0))).toBeLessThan(600_000);
    for (const each of [...found, ...found]) await backend.removeLeftover(each);
    expect(await Array.fromAsync(backend.leftovers())).toEqual([]);
  });
}

function describeVolumes(place: () => VolumePlace): void {
  test("a new volume reads as zeros, and making it again keeps what has been written", async () => {
    const { backend, write } = place();
    const id = randomUUID();
    await backend.create(id, sizeBytes);
    expectBytes(await readAll(backend, { volumeId: id }), Buffer.alloc(sizeBytes));
    await write(id, Buffer.from("bytes"), 4096);
    await backend.create(id, sizeBytes);
    expect((await readAll(backend, { volumeId: id })).toString("latin1", 4096, 4101)).toBe("bytes");
    await expect(backend.create(id, 2 * sizeBytes)).rejects.toBeInstanceOf(VolumeConflictError);
    expect(await backend.freeBytes()).toBeGreaterThan(0);
  });

  test("a clone has its source's bytes, or more room, and goes its own way", async () => {
    const { backend, write } = place();
    const bytes = randomBytes(sizeBytes);
    const source = await volumeWith(place(), bytes);
    const snapshotId = randomUUID();
    await backend.freeze(source, snapshotId, free);
    const [same, longer] = [randomUUID(), randomUUID()];
    for (let run = 0; run < 2; run++) {
      expect(await backend.clone({ volumeId: source }, same, 1, free)).toEqual({ sizeBytes });
      expect(await backend.clone({ snapshotId }, longer, 2 * sizeBytes, free)).toEqual({ sizeBytes: 2 * sizeBytes });
    }
    await write(source, Buffer.alloc(4096, 1), 0);
    expectBytes(await readAll(backend, { volumeId: same }), bytes);
    expectBytes(await readAll(backend, { volumeId: longer }), Buffer.concat([bytes, Buffer.alloc(sizeBytes)]));
    const none = backend.clone({ volumeId: randomUUID() }, randomUUID(), sizeBytes, free);
    await expect(none).rejects.toBeInstanceOf(SourceMissingError);
  });

  test("a volume is made longer with zeros, and never shorter", async () => {
    const { backend } = place();
    const bytes = randomBytes(sizeBytes);
    const id = await volumeWith(place(), bytes);
    for (const size of [2 * sizeBytes, 2 * sizeBytes, sizeBytes]) await backend.extend(id, size);
    expectBytes(await readAll(backend, { volumeId: id }), Buffer.concat([bytes, Buffer.alloc(sizeBytes)]));
    expect(await backend.measure(id)).toEqual({ sizeBytes: 2 * sizeBytes });
    await expect(backend.extend(randomUUID(), sizeBytes)).rejects.toBeInstanceOf(SourceMissingError);
    await expect(backend.measure(randomUUID())).rejects.toBeInstanceOf(SourceMissingError);
  });
}

function describeSources(place: () => VolumePlace, kind: VolumeKind): void {
  test("a source is read at any place, at several at once, and not behind its end", async () => {
    const { backend } = place();
    const bytes = randomBytes(sizeBytes);
    await using source = await backend.openSource({ volumeId: await volumeWith(place(), bytes) });
    expect(source.sizeBytes).toBe(sizeBytes);
    const starts = [0, 1, 4095, 65536, sizeBytes - 513];
    const parts = starts.map((start) => ({ start, into: Buffer.alloc(513) }));
    await Promise.all(parts.map(({ start, into }) => source.read(into, start)));
    for (const { start, into } of parts) expectBytes(into, bytes.subarray(start, start + 513));
    await expect(source.read(new Uint8Array(2), sizeBytes - 1)).rejects.toHaveProperty("code");
  });

  test("what is said to be no data is zero, and what is said lies within what was asked", async () => {
    const { backend } = place();
    const bytes = randomBytes(70 * KiB);
    await using source = await backend.openSource({ volumeId: await volumeWith(place(), bytes, 192 * KiB) });
    for (const range of [
      { offset: 0, length: sizeBytes },
      { offset: 200 * KiB + 7, length: 9 },
    ]) {
      const shown = Buffer.alloc(range.length);
      let end = range.offset;
      for await (const extent of source.dataExtents(range)) {
        expect(extent.offset).toBeGreaterThanOrEqual(end);
        end = extent.offset + extent.length;
        expect(extent.length).toBeGreaterThan(0);
        const at = extent.offset - range.offset;
        await source.read(shown.subarray(at, at + extent.length), extent.offset);
      }
      expect(end).toBeLessThanOrEqual(range.offset + range.length);
      const whole = Buffer.alloc(range.length);
      await source.read(whole, range.offset);
      expectBytes(shown, whole);
    }
  });

  test("the fingerprint is the same in every process, and another one after a write", async () => {
    const { backend, again, write } = place();
    const volumeId = await volumeWith(place(), randomBytes(4096));
    const look = async (by: VolumeBackend): Promise<string> => {
      await using source = await by.openSource({ volumeId });
      return await source.fingerprint();
    };
    const before = await look(backend);
    expect(await look(await again())).toBe(before);
    {
      await using held = await backend.openSource({ volumeId });
      const writing = write(volumeId, randomBytes(4096), 8192);
      if (kind.keepsWritersOff) await expect(writing).rejects.toThrow();
      else await writing;
      const limit = Date.now() + 5_000;
      // A file system may stamp all writes of one tick with one time.
      while (!kind.keepsWritersOff && (await held.fingerprint()) === before && Date.now() < limit)
        await write(volumeId, randomBytes(4096), 8192);
      expect((await held.fingerprint()) === before).toBe(kind.keepsWritersOff === true);
    }
    await write(volumeId, randomBytes(4096), 12_288);
    expect(await look(backend)).not.toBe(before);
    expect(await look(backend)).toBe(await look(await again()));
  });
}

function describeFreezing(place: () => VolumePlace): void {
  test("what is frozen keeps the bytes of its moment, freezing again keeps the first, and thawing twice is success", async () => {
    const { backend, write } = place();
    const bytes = randomBytes(sizeBytes);
    const volumeId = await volumeWith(place(), bytes);
    const snapshotId = randomUUID();
    expect(await backend.freeze(volumeId, snapshotId, free)).toEqual({ sizeBytes });
    await write(volumeId, randomBytes(4096), 0);
    expect(await backend.freeze(volumeId, snapshotId, free)).toEqual({ sizeBytes });
    expectBytes(await readAll(backend, { snapshotId }), bytes);
    for (let run = 0; run < 2; run++) await backend.thaw(snapshotId);
    await expect(backend.openSource({ snapshotId })).rejects.toBeInstanceOf(SourceMissingError);
    await expect(backend.freeze(randomUUID(), snapshotId, free)).rejects.toBeInstanceOf(SourceMissingError);
    expect(typeof (await backend.canFreezeCheaply())).toBe("boolean");
  });

  test("a lost lease or an abort leaves nothing frozen", async () => {
    const { backend } = place();
    const volumeId = await volumeWith(place(), randomBytes(sizeBytes));
    const lost = new Error("the lease is lost");
    const fence = (): void => {
      throw lost;
    };
    for (const run of [freeContext({ fence }), freeContext({ signal: AbortSignal.abort(lost) })]) {
      const snapshotId = randomUUID();
      await expect(backend.freeze(volumeId, snapshotId, run)).rejects.toBe(lost);
      await expect(backend.openSource({ snapshotId })).rejects.toBeInstanceOf(SourceMissingError);
      const clone = randomUUID();
      await expect(backend.clone({ volumeId }, clone, sizeBytes, run)).rejects.toBe(lost);
      await expect(backend.openSource({ volumeId: clone })).rejects.toBeInstanceOf(SourceMissingError);
    }
  });

  test("what has changed since something was frozen lies within the changed extents", async () => {
    const { backend, write } = place();
    const before = randomBytes(sizeBytes);
    const volumeId = await volumeWith(place(), before);
    const [since, snapshotId] = [randomUUID(), randomUUID()];
    await backend.freeze(volumeId, since, free);
    await write(volumeId, randomBytes(5000), 100 * KiB + 3);
    await write(volumeId, Buffer.alloc(64 * KiB), 256 * KiB);
    await backend.freeze(volumeId, snapshotId, free);
    const range = { offset: 4 * KiB, length: sizeBytes - 8 * KiB };
    const patched = Buffer.from(before);
    await using source = await backend.openSource({ snapshotId });
    let changed = 0;
    for await (const { offset, length } of backend.changedExtents({ snapshotId }, since, range)) {
      expect(offset).toBeGreaterThanOrEqual(range.offset);
      expect(offset + length).toBeLessThanOrEqual(range.offset + range.length);
      await source.read(patched.subarray(offset, offset + length), offset);
      changed += length;
    }
    expectBytes(patched, await readAll(backend, { snapshotId }));
    if (backend.capabilities.tellsChanges) expect(changed).toBeLessThan(range.length / 2);
    await backend.thaw(since);
    const all = await Array.fromAsync(backend.changedExtents({ snapshotId }, since, range));
    expect(all.reduce((sum, { length }) => sum + length, 0)).toBe(range.length);
  });
}

function describeTargets(place: () => VolumePlace, kind: VolumeKind): void {
  test("the capabilities say how restores are written", () => {
    expect(place().backend.capabilities.restores).toBe(kind.restores);
  });

  test("different parts are written at the same time, and only what is known to be zero is said to be new", async () => {
    const { backend } = place();
    const volumeId = await volumeWith(place(), randomBytes(sizeBytes));
    await backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: false }, free);
    const bytes = randomBytes(sizeBytes);
    {
      await using target = await backend.openRestoreTarget(volumeId, "restore-0");
      expect(target.sizeBytes).toBe(sizeBytes);
      if (target.isNew === true) {
        await using prepared = await backend.openRestored(volumeId, "restore-0");
        const found = Buffer.alloc(sizeBytes);
        await prepared.read(found, 0);
        expectBytes(found, Buffer.alloc(sizeBytes));
      }
      const pieces = Array.from({ length: 8 }, (_, n) => n * (sizeBytes / 8));
      await Promise.all(pieces.map((at) => target.write(bytes.subarray(at, at + sizeBytes / 8), at)));
      await target.flush();
    }
    await backend.publishRestore(volumeId, "restore-0", { fresh: false }, free);
    expectBytes(await readAll(backend, { volumeId }), bytes);
  });

  test("publishing twice is success, publishing what was never begun is refused, abandoning nothing is success", async () => {
    const { backend } = place();
    const volumeId = await volumeWith(place(), randomBytes(sizeBytes));
    const bytes = randomBytes(sizeBytes);
    await backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: false }, free);
    await restore(backend, volumeId, "restore-0", bytes);
    for (let run = 0; run < 2; run++) await backend.publishRestore(volumeId, "restore-0", { fresh: false }, free);
    await backend.abandonRestore("restore-0");
    expectBytes(await readAll(backend, { volumeId }), bytes);
    const none = backend.publishRestore(randomUUID(), "restore-1", { fresh: false }, free);
    await expect(none).rejects.toBeInstanceOf(VolumeConflictError);
    await expect(backend.openRestoreTarget(randomUUID(), "restore-1")).rejects.toBeInstanceOf(VolumeConflictError);
    await expect(backend.openRestored(randomUUID(), "restore-1")).rejects.toBeInstanceOf(SourceMissingError);
    await backend.abandonRestore("restore-1");
  });

  test.each([
    { restored: sizeBytes / 2, keepTail: true, length: sizeBytes, is: "keeps what lies behind" },
    { restored: 2 * sizeBytes, keepTail: true, length: 2 * sizeBytes, is: "has the restored length" },
  ])("a volume restored with $restored of 524288 bytes $is", async ({ restored, keepTail, length }) => {
    const { backend } = place();
    const old = randomBytes(sizeBytes);
    const volumeId = await volumeWith(place(), old);
    const bytes = randomBytes(restored);
    const begun = backend.beginRestore(volumeId, "restore-0", { sizeBytes: restored, keepTail }, free);
    if (kind.isGiven && restored > sizeBytes) {
      await expect(begun).rejects.toBeInstanceOf(VolumeConflictError);
      expectBytes(await readAll(backend, { volumeId }), old);
      return;
    }
    await begun;
    await restore(backend, volumeId, "restore-0", bytes);
    await backend.publishRestore(volumeId, "restore-0", { fresh: false }, free);
    expectBytes(await readAll(backend, { volumeId }), Buffer.concat([bytes, old.subarray(bytes.length)]));
    expect((await readAll(backend, { volumeId })).length).toBe(length);
  });
}

function describeAside(place: () => VolumePlace): void {
  test("the volume is as it was until the restore is published, and when it is abandoned", async () => {
    const { backend, again } = place();
    const old = randomBytes(sizeBytes);
    const volumeId = await volumeWith(place(), old);
    const bytes = randomBytes(sizeBytes);
    for (let run = 0; run < 2; run++) {
      await backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: false }, free);
      await using fresh = await (await again()).openRestored(volumeId, "restore-0");
      const found = Buffer.alloc(sizeBytes);
      await fresh.read(found, 0);
      expectBytes(found, Buffer.alloc(sizeBytes));
      await restore(backend, volumeId, "restore-0", bytes);
      expectBytes(await readAll(backend, { volumeId }), old);
    }
    for (let run = 0; run < 2; run++) await backend.abandonRestore("restore-0");
    await expect(backend.openRestoreTarget(volumeId, "restore-0")).rejects.toBeInstanceOf(VolumeConflictError);
    expectBytes(await readAll(backend, { volumeId }), old);
  });

  test("a late writer reaches neither a volume that was published fresh nor a copy", async () => {
    const { backend } = place();
    const bytes = randomBytes(sizeBytes);
    const volumes = [await volumeWith(place(), randomBytes(4096)), await volumeWith(place(), randomBytes(4096))];
    for (const [n, volumeId] of volumes.entries()) {
      await backend.beginRestore(volumeId, `restore-${n}`, { sizeBytes, keepTail: false }, free);
      await restore(backend, volumeId, `restore-${n}`, bytes);
      await using late = await backend.openRestoreTarget(volumeId, `restore-${n}`);
      if (n === 0) await backend.publishRestore(volumeId, "restore-0", { fresh: true }, free);
      else await backend.copyRestore(volumeId, "restore-1", "restore-2", free);
      await late.write(Buffer.alloc(4096, 1), 0);
      await late.flush();
      if (n === 1) await backend.publishRestore(volumeId, "restore-2", { fresh: false }, free);
      expectBytes(await readAll(backend, { volumeId }), bytes);
    }
  });

  test("who has lost the lease cannot publish any more", async () => {
    const { backend } = place();
    const old = randomBytes(sizeBytes);
    const volumeId = await volumeWith(place(), old);
    await backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: false }, free);
    await restore(backend, volumeId, "restore-0", randomBytes(sizeBytes));
    const lost = new Error("the lease is lost");
    const fence = (): void => {
      throw lost;
    };
    for (const fresh of [false, true]) {
      await expect(backend.publishRestore(volumeId, "restore-0", { fresh }, freeContext({ fence }))).rejects.toBe(lost);
      expectBytes(await readAll(backend, { volumeId }), old);
    }
  });
}

function describeInPlace(place: () => VolumePlace): void {
  test("a restore needs the volume, writes it itself, and can neither be copied nor undone", async () => {
    const { backend } = place();
    const missing = backend.beginRestore(randomUUID(), "restore-0", { sizeBytes, keepTail: false }, free);
    await expect(missing).rejects.toBeInstanceOf(VolumeConflictError);
    const volumeId = await volumeWith(place(), randomBytes(sizeBytes));
    const bytes = randomBytes(sizeBytes);
    await backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: false }, free);
    await restore(backend, volumeId, "restore-0", bytes);
    expectBytes(await readAll(backend, { volumeId }), bytes);
    const copied = backend.copyRestore(volumeId, "restore-0", "restore-1", free);
    await expect(copied).rejects.toBeInstanceOf(VolumeConflictError);
    await backend.abandonRestore("restore-0");
    expectBytes(await readAll(backend, { volumeId }), bytes);
  });
}

function describeLeftovers(place: () => VolumePlace): void {
  test("what operations make is shown with its ids and its age, and can be removed", async () => {
    const { backend } = place();
    const volumeId = await volumeWith(place(), randomBytes(4096));
    const snapshotId = randomUUID();
    await backend.freeze(volumeId, snapshotId, free);
    await backend.beginRestore(volumeId, `${snapshotId}-2`, { sizeBytes, keepTail: false }, free);
    const found = await Array.fromAsync(backend.leftovers());
    const ids = (kind: string): string[] => found.filter((each) => each.kind === kind).flatMap((each) => each.ids);
    expect(ids("volume")).toEqual([volumeId]);
    expect(ids("snapshot")).toEqual([snapshotId]);
    if (backend.capabilities.restores === "aside") expect(ids("private")).toEqual([snapshotId]);
    expect(found.every(({ modifiedAt }) => Math.abs(Date.now() - modifiedAt.getTime()) < 600_000)).toBe(true);
    for (const each of [...found, ...found]) await backend.removeLeftover(each);
    expect(await Array.fromAsync(backend.leftovers())).toEqual([]);
    await expect(backend.openSource({ volumeId })).rejects.toBeInstanceOf(SourceMissingError);
  });
}

function describeBackups(place: () => VolumePlace, { isGiven = false }: VolumeKind): void {
  let engine: Engine;
  beforeAll(() => {
    engine = openEngine({ threads: 1 });
  });
  afterAll(() => engine[Symbol.asyncDispose]());

  test.each(["none", "zlib"] as const)(
    "a full backup and an incremental (%s) are restored over a volume that is not zero",
    async (compression) => {
      const { backend, write } = place();
      await using home = await temporaryFolder();
      await using repository = await openRepository(`posix:${join(home.path, "repository")}`);
      await repository.initialize();
      const volumeId = await volumeWith(place(), randomBytes(200 * KiB), 32 * KiB);
      const [first, second] = [randomUUID(), randomUUID()];
      const states = new Map<string, Buffer>();
      const freeze = async (id: string): Promise<SourceReference> => {
        const source = isGiven ? { volumeId } : { snapshotId: id };
        if (!isGiven) await backend.freeze(volumeId, id, free);
        states.set(id, await readAll(backend, source));
        return source;
      };
      const backUp = async (reference: SourceReference, parent: ReturnType<typeof referenceTo> | null) => {
        await using source = await backend.openSource(reference);
        const parentId = parent?.backupId ?? null;
        const layout = layoutFor(repository, source.sizeBytes, { volumeId, parentId, compression });
        await engine.backupWhole({ source, repository, layout, parent }, free);
        return referenceTo(repository, layout);
      };
      const full = await backUp(await freeze(first), null);
      await write(volumeId, randomBytes(9000), 300 * KiB);
      const incremental = await backUp(await freeze(second), full);
      for (const [chain, state] of [
        [[incremental, full], second],
        [[full], first],
      ] as const) {
        const onto = await volumeWith(place(), randomBytes(sizeBytes));
        await backend.beginRestore(onto, "restore-0", { sizeBytes, keepTail: false }, free);
        {
          await using target = await backend.openRestoreTarget(onto, "restore-0");
          await engine.restoreWhole({ chain, target }, free);
          await target.flush();
        }
        await backend.publishRestore(onto, "restore-0", { fresh: false }, free);
        expectBytes(await readAll(backend, { volumeId: onto }), states.get(state) ?? Buffer.alloc(0));
      }
    },
  );
}
