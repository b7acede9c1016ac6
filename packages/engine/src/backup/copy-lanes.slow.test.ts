import { randomBytes } from "node:crypto";
import { fstatSync } from "node:fs";
import { appendFile, mkdtemp, open, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { freeContext, layoutFor } from "../../../../test/format/backup-fixture.ts";
import { type Engine, openEngine } from "../engine.ts";
import { ObjectConflictError, SourceChangedError } from "../errors.ts";
import type { BackupLayout } from "../format/layout.ts";
import type { HashingOption } from "../hashing/choose-hashing.ts";
import { loadNative } from "../hashing/native.ts";
import { openRepository } from "../open-repository.ts";
import type { ObjectDraft, Repository } from "../repository/repository.ts";
import type { RunContext } from "../run/run-context.ts";
import { openFileSource } from "../volume/file/file-source.ts";
import { openPathTarget } from "../volume/file/file-target.ts";
import type { VolumeTarget } from "../volume/volume.ts";

const native = loadNative() !== null;
const MiB = 1024 * 1024;

let home: string;
let engine: Engine;
let repository: Repository;
let volume: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-lanes-"));
  volume = join(home, "volume");
  repository = await openRepository(`posix:${join(home, "repository")}`);
  await repository.initialize();
  engine = openEngine({ threads: 2, hashing: native ? "native" : "openssl" });
});
afterEach(async () => {
  await engine[Symbol.asyncDispose]();
  await rm(home, { recursive: true, force: true });
});

const layoutOf = (volumeBytes: number, overrides: Partial<BackupLayout> = {}): BackupLayout =>
  layoutFor(repository, volumeBytes, { compression: "none", objectBytes: MiB, blockBytes: 32768, ...overrides });

async function backUp(using: Engine, layout: BackupLayout, ctx = freeContext()): Promise<{ bytesStored: number }> {
  await using source = await openFileSource(volume);
  return await using.backupWhole({ source, repository, layout, parent: null }, ctx);
}

/** 25 windows: noise, a hole, written zeros, zeros before and after data, and a final one of odd length. */
async function writeVolume(): Promise<number> {
  const sizeBytes = 24 * MiB + 70_001;
  await writeFile(volume, "");
  await truncate(volume, sizeBytes);
  const file = await open(volume, "r+");
  try {
    for (const window of [0, 1, 2, 3, 4, 5, 9, 10, 11, 15, 20, 21])
      await file.write(randomBytes(MiB), 0, MiB, window * MiB);
    await file.write(Buffer.alloc(MiB), 0, MiB, 7 * MiB);
    await file.write(randomBytes(5000), 0, 5000, 13 * MiB + 700_000);
    await file.write(randomBytes(5000), 0, 5000, 17 * MiB);
    await file.write(randomBytes(70_001), 0, 70_001, 24 * MiB);
  } finally {
    await file.close();
  }
  return sizeBytes;
}

/** Every file of a backup, with the fields removed that differ between two backups of the same volume. */
async function contents(layout: BackupLayout): Promise<Map<string, string>> {
  const folder = join(home, "repository", layout.container);
  const files = new Map<string, string>();
  for (const name of (await readdir(folder)).sort()) {
    const text = (await readFile(join(folder, name))).toString("latin1");
    const neutral = text
      .replaceAll(layout.prefix, "PREFIX")
      .replaceAll(layout.backupId, "ID")
      .replaceAll(layout.volumeId, "VOL");
    files.set(name.slice(layout.prefix.length), neutral);
  }
  return files;
}

/** With the time until which threads may write, they write the objects' files themselves; without it, objects are put as streams. */
const ways = [
  { way: "written by threads", freeContext },
  { way: "put as streams", freeContext: streaming },
];

function streaming(overrides: Partial<RunContext> = {}): RunContext {
  const { writableUntil: _, ...context } = freeContext(overrides);
  return context;
}

describe.each(ways)("windows in step, $way,", ({ freeContext }) => {
  test.each([true, false])("are stored to the byte as one by one (zeros compressed: %s)", async (compressZeros) => {
    const sizeBytes = await writeVolume();
    await using plain = openEngine({ threads: 2, hashing: "openssl" satisfies HashingOption });
    const [inStep, oneByOne] = [layoutOf(sizeBytes, { compressZeros }), layoutOf(sizeBytes, { compressZeros })];
    const results = [await backUp(engine, inStep, freeContext()), await backUp(plain, oneByOne)];
    expect(results[0]).toEqual(results[1]);
    expect(await contents(inStep)).toEqual(await contents(oneByOne));
    expect(await readdir(join(home, "repository/.tephra/tmp"))).toEqual([]);
  });

  test("are restored exactly", async () => {
    const sizeBytes = await writeVolume();
    const layout = layoutOf(sizeBytes);
    await backUp(engine, layout, freeContext());
    const path = join(home, "restored");
    const { backupId, container, prefix } = layout;
    await using opened = await openPathTarget(path, sizeBytes);
    await engine.restoreWhole(
      { chain: [{ backupId, repository, container, prefix }], target: opened.target },
      freeContext(),
    );
    await opened.publish();
    expect((await readFile(path)).equals(await readFile(volume))).toBe(true);
  });

  test("are named when damaged, and a damaged block is never written", async () => {
    const sizeBytes = await writeVolume();
    const layout = layoutOf(sizeBytes);
    await backUp(engine, layout, freeContext());
    const damagedAt = 4 * MiB + 400_000;
    const object = await open(join(home, "repository", layout.container, `${layout.prefix}-00005`), "r+");
    await object.write(Buffer.from("damage"), 0, 6, damagedAt - 4 * MiB);
    await object.close();
    const path = join(home, "damaged");
    await using file = await open(path, "w+");
    await file.truncate(sizeBytes);
    const target: VolumeTarget = {
      sizeBytes,
      isNew: true,
      descriptor: file.fd,
      write: async (data, offset) => void (await file.write(data, 0, data.length, offset)),
      flush: async () => {},
      [Symbol.asyncDispose]: async () => {},
    };
    const { backupId, container, prefix } = layout;
    const restore = engine.restoreWhole(
      { chain: [{ backupId, repository, container, prefix }], target },
      freeContext(),
    );
    await expect(restore).rejects.toMatchObject({ code: "damaged_object", object: `${prefix}-00005` });
    expect((await readFile(path)).includes("damage")).toBe(false);
  });

  test("stop at a put that fails, and say why", async () => {
    const sizeBytes = await writeVolume();
    const layout = layoutOf(sizeBytes);
    await repository.ensureContainer(layout.container);
    const taken = { container: layout.container, name: `${layout.prefix}-00003` };
    await repository.putIfAbsent(taken, randomBytes(MiB), freeContext());
    await expect(backUp(engine, layout, freeContext())).rejects.toBeInstanceOf(ObjectConflictError);
    expect(await readdir(join(home, "repository/.tephra/tmp"))).toEqual([]);
  });

  test("adopt what an earlier try has stored", async () => {
    const sizeBytes = await writeVolume();
    const layout = layoutOf(sizeBytes);
    const first = await backUp(engine, layout, freeContext());
    expect(await backUp(engine, layout, freeContext())).toEqual({ ...first, bytesAdopted: first.bytesStored });
  });

  test("stop at the fence and at an abort, and leave nothing half-written", async () => {
    const sizeBytes = await writeVolume();
    for (const callsAllowed of [0, 3, 11, 30]) {
      let calls = 0;
      const fence = (): void => {
        if (calls++ >= callsAllowed) throw new Error("the lease is lost");
      };
      await expect(backUp(engine, layoutOf(sizeBytes), freeContext({ fence }))).rejects.toThrow("the lease is lost");
      expect(calls).toBeLessThanOrEqual(callsAllowed + 32);
    }
    const controller = new AbortController();
    const fence = (): void => controller.abort(new Error("cancelled"));
    const aborted = backUp(engine, layoutOf(sizeBytes), freeContext({ fence, signal: controller.signal }));
    await expect(aborted).rejects.toThrow("cancelled");
    expect(await readdir(join(home, "repository/.tephra/tmp"))).toEqual([]);
  });

  test("of a source that shrinks or changes are never sealed", async () => {
    const sizeBytes = await writeVolume();
    let cut: Promise<void> | null = null;
    const shrink = (): void => {
      cut ??= truncate(volume, 3 * MiB);
    };
    const layout = layoutOf(sizeBytes);
    await expect(backUp(engine, layout, freeContext({ fence: shrink }))).rejects.toBeInstanceOf(SourceChangedError);
    await cut;
    await writeVolume();
    let grown: Promise<void> | null = null;
    const grow = (): void => {
      grown ??= appendFile(volume, "x");
    };
    await expect(backUp(engine, layoutOf(sizeBytes), freeContext({ fence: grow }))).rejects.toBeInstanceOf(
      SourceChangedError,
    );
    await grown;
  });
});

describe.skipIf(!native)("what a thread cannot write", () => {
  /** The repository, whose drafts are these. */
  function withDrafts(openDraft: NonNullable<Repository["openDraft"]>): Repository {
    return new Proxy(repository, {
      get(target, key) {
        if (key === "openDraft") return openDraft;
        const value = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }

  test("because it no longer may, is put as a stream", async () => {
    const sizeBytes = await writeVolume();
    const [late, inTime] = [layoutOf(sizeBytes), layoutOf(sizeBytes)];
    const expected = await backUp(engine, inTime);
    const seen: number[] = [];
    const onProgress = ({ bytesDone }: { bytesDone: number }): void => void seen.push(bytesDone);
    const written: number[] = [];
    const own = repository;
    repository = withDrafts(async (key, ctx) => {
      const draft = (await own.openDraft?.(key, ctx)) as ObjectDraft;
      const dispose = async (): Promise<void> => {
        written.push(fstatSync(draft.descriptor).size);
        await draft[Symbol.asyncDispose]();
      };
      return { descriptor: draft.descriptor, store: draft.store, [Symbol.asyncDispose]: dispose };
    });
    const writableUntil = new BigInt64Array(new SharedArrayBuffer(8));
    expect(await backUp(engine, late, freeContext({ writableUntil, onProgress }))).toEqual(expected);
    expect(await contents(late)).toEqual(await contents(inTime));
    expect(seen.at(-1)).toBe(sizeBytes);
    expect(new Set(written)).toEqual(new Set([0]));
  });

  test("because its file cannot be written, is put as a stream", async () => {
    const sizeBytes = await writeVolume();
    const [refused, written] = [layoutOf(sizeBytes), layoutOf(sizeBytes)];
    const expected = await backUp(engine, written);
    await using readOnly = await open(volume, "r");
    const store = async (): Promise<never> => {
      throw new Error("nothing was written");
    };
    let drafts = 0;
    repository = withDrafts(async () => {
      drafts++;
      return { descriptor: readOnly.fd, store, [Symbol.asyncDispose]: async () => void drafts-- };
    });
    expect(await backUp(engine, refused)).toEqual(expected);
    expect(await contents(refused)).toEqual(await contents(written));
    expect(drafts).toBe(0);
  });
});

describe("a window that a thread reads slice by slice", () => {
  test("gives an incremental the changed blocks and nothing else, wherever they lie", async () => {
    const sizeBytes = await writeVolume();
    const overrides = { objectBytes: 8 * MiB };
    const full = layoutOf(sizeBytes, overrides);
    await backUp(engine, full);
    const parent = { backupId: full.backupId, repository, container: full.container, prefix: full.prefix };
    const file = await open(volume, "r+");
    // First and last block of a slice, two adjacent blocks in different slices, zeros over noise, noise over a hole, the odd-length end.
    const changed = [2 * MiB, 3 * MiB - 32768, 4 * MiB - 32768, 4 * MiB, 14 * MiB, 24 * MiB + 65536];
    for (const at of changed) await file.write(randomBytes(1000), 0, 1000, at);
    await file.write(Buffer.alloc(65536), 0, 65536, 10 * MiB);
    await file.close();
    const layout = layoutOf(sizeBytes, { ...overrides, parentId: full.backupId });
    await using source = await openFileSource(volume);
    const result = await engine.backupWhole({ source, repository, layout, parent }, freeContext());
    expect(result).toMatchObject({ objects: 6 });
    const path = join(home, "restored");
    await using opened = await openPathTarget(path, sizeBytes);
    const newest = { backupId: layout.backupId, repository, container: layout.container, prefix: layout.prefix };
    await engine.restoreWhole({ chain: [newest, parent], target: opened.target }, freeContext());
    await opened.publish();
    expect((await readFile(path)).equals(await readFile(volume))).toBe(true);
  });
});
