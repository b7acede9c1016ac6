import { randomBytes, randomUUID } from "node:crypto";
import { appendFile, mkdtemp, open, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { freeContext, layoutFor } from "../../../test/format/backup-fixture.ts";
import { referenceOf } from "./backup/copy-range.ts";
import { type Engine, openEngine } from "./engine.ts";
import { InvalidObjectNameError, SourceChangedError } from "./errors.ts";
import type { BackupLayout } from "./format/layout.ts";
import { openRepository } from "./open-repository.ts";
import type { Repository } from "./repository/repository.ts";
import type { RunContext } from "./run/run-context.ts";
import { openFileSource } from "./volume/file/file-source.ts";

let home: string;
let engine: Engine;
let repository: Repository;
let volume: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-engine-"));
  volume = join(home, "volume");
  engine = openEngine({ threads: 2, memoryBytes: 4 * 1024 * 1024 });
  repository = await openRepository(`posix:${join(home, "repository")}`);
  await repository.initialize();
});
afterEach(async () => {
  await engine[Symbol.asyncDispose]();
  await rm(home, { recursive: true, force: true });
});

const layoutOf = (volumeBytes: number, overrides: Partial<BackupLayout> = {}): BackupLayout =>
  layoutFor(repository, volumeBytes, { objectBytes: 1024 * 1024, blockBytes: 32768, ...overrides });

/** The chunks that a copy of the whole volume passes to its repository for data objects, in put order. */
async function chunksStored(layout: BackupLayout): Promise<Uint8Array[]> {
  const chunks: Uint8Array[] = [];
  async function* noted(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of body) {
      chunks.push(chunk);
      yield chunk;
    }
  }
  const watched: Repository = Object.assign(Object.create(repository) as Repository, {
    ensureContainer: repository.ensureContainer.bind(repository),
    putIfAbsent: (...[key, body, ctx]: Parameters<Repository["putIfAbsent"]>) => {
      const isData = key.container === layout.container && !(body instanceof Uint8Array);
      return repository.putIfAbsent(key, isData ? noted(body) : body, ctx);
    },
  });
  await using source = await openFileSource(volume);
  const range = { offset: 0, length: layout.volumeBytes };
  const staging = { operationId: layout.backupId, name: "range" };
  await engine.copyRange({ source, repository: watched, layout, range, parent: null, staging }, freeContext());
  return chunks;
}

async function backUp(layout: BackupLayout, ctx: RunContext): Promise<unknown> {
  await using source = await openFileSource(volume);
  return await engine.backupWhole({ source, repository, layout, parent: null }, ctx);
}

async function namesOf(layout: BackupLayout): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of repository.list(layout.container, "")) names.push(name.slice(layout.prefix.length));
  return names.sort();
}

const leftovers = (): Promise<string[]> => readdir(join(home, "repository/.tephra/tmp"));

describe("a backup", () => {
  const volumeBytes = 6 * 1024 * 1024 + 5;
  beforeEach(() => writeFile(volume, randomBytes(volumeBytes)));

  test("stops at the fence: nothing is written after it has closed, and nothing half-written stays", async () => {
    for (const callsAllowed of [0, 1, 4, 9]) {
      let calls = 0;
      const fence = (): void => {
        if (calls++ >= callsAllowed) throw new Error("the lease is lost");
      };
      const layout = layoutOf(volumeBytes);
      await expect(backUp(layout, freeContext({ fence }))).rejects.toThrow("the lease is lost");
      expect(await namesOf(layout)).not.toContain("_metadata");
      expect((await namesOf(layout)).length).toBeLessThanOrEqual(callsAllowed);
      expect(await leftovers()).toEqual([]);
    }
  });

  test("that is aborted throws the reason, leaves no temporary file, and can be run again", async () => {
    const layout = layoutOf(volumeBytes);
    const controller = new AbortController();
    const onProgress = (): void => controller.abort(new Error("cancelled"));
    await expect(backUp(layout, freeContext({ signal: controller.signal, onProgress }))).rejects.toThrow("cancelled");
    expect(await leftovers()).toEqual([]);
    expect(await namesOf(layout)).not.toContain("_metadata");
    const second = await backUp(layout, freeContext());
    expect(second).toMatchObject({ objects: 7, bytesStored: volumeBytes });
    expect((second as { bytesAdopted: number }).bytesAdopted).toBeGreaterThan(0);
  });

  test("of a source that changes while it is read fails and is never sealed", async () => {
    const layout = layoutOf(volumeBytes);
    let changed: Promise<void> | null = null;
    const onProgress = (): void => {
      changed ??= appendFile(volume, "x");
    };
    await expect(backUp(layout, freeContext({ onProgress }))).rejects.toBeInstanceOf(SourceChangedError);
    await changed;
    expect(await namesOf(layout)).not.toContain("_metadata");
  });

  test("of a source that is shorter than planned fails", async () => {
    const longer = layoutOf(volumeBytes + 100_000_000);
    await expect(backUp(longer, freeContext())).rejects.toBeInstanceOf(SourceChangedError);
  });

  test("tells its progress up to the whole volume", async () => {
    const seen: number[] = [];
    await backUp(layoutOf(volumeBytes), freeContext({ onProgress: ({ bytesDone }) => seen.push(bytesDone) }));
    expect(seen).toEqual([...seen].sort((one, other) => one - other));
    expect(seen.at(-1)).toBe(volumeBytes);
  });
});

describe("a restore", () => {
  const volumeBytes = 6 * 1024 * 1024 + 5;

  /** Restores to a file, and returns how many bytes the caller's own thread wrote. */
  async function restored(layout: BackupLayout, ctx: RunContext): Promise<{ bytes: Buffer; written: number }> {
    const path = join(home, `target-${randomUUID()}`);
    await using file = await open(path, "w+");
    await file.truncate(volumeBytes);
    let written = 0;
    const write = async (data: Uint8Array, offset: number): Promise<void> => {
      written += data.length;
      await file.write(data, 0, data.length, offset);
    };
    const target = { sizeBytes: volumeBytes, isNew: true, descriptor: file.fd, write, flush: async () => {} };
    const disposable = { ...target, [Symbol.asyncDispose]: async () => {} };
    await engine.restoreWhole({ chain: [referenceOf(layout, repository)], target: disposable }, ctx);
    return { bytes: await readFile(path), written };
  }

  test("is written by threads up to the moment that is shared with them, and by the caller's own thread after it", async () => {
    await writeFile(volume, randomBytes(volumeBytes));
    const layout = layoutOf(volumeBytes, { compression: "none" });
    await backUp(layout, freeContext());
    const image = await readFile(volume);
    const free = await restored(layout, freeContext());
    expect(free.bytes.equals(image)).toBe(true);
    expect(free.written, "by threads alone").toBe(0);
    const over = new BigInt64Array(new SharedArrayBuffer(8));
    over[0] = process.hrtime.bigint();
    const late = await restored(layout, freeContext({ writableUntil: over }));
    expect(late.bytes.equals(image)).toBe(true);
    expect(late.written, "nothing by threads").toBe(volumeBytes);
    const fence = (): void => {
      throw new Error("the lease is lost");
    };
    await expect(restored(layout, freeContext({ fence, writableUntil: over }))).rejects.toThrow("the lease is lost");
  });
});

describe("many backups at once", () => {
  test("share threads and memory and are all right", async () => {
    await writeFile(volume, randomBytes(2_500_000));
    const layouts = Array.from({ length: 12 }, () => layoutOf(2_500_000));
    await Promise.all(layouts.map((layout) => backUp(layout, freeContext())));
    for (const layout of layouts) {
      expect(await namesOf(layout)).toEqual(["-00001", "-00002", "-00003", "_metadata", "_sha256file"]);
    }
  });
});

describe("zeros", () => {
  test("cost almost nothing to store, compressed or not, and are restored", async () => {
    await writeFile(volume, "");

    await truncate(volume, 20 * 1024 * 1024);
    for (const compression of ["zlib", "none"] as const) {
      const stored = (await backUp(layoutOf(20 * 1024 * 1024, { compression }), freeContext())) as {
        bytesStored: number;
      };
      expect(stored.bytesStored).toBeLessThan(25_000);
    }
  });

  test("are stored raw when the layout says so", async () => {
    await writeFile(volume, Buffer.alloc(100_000));
    const layout = layoutOf(100_000, { compression: "none", compressZeros: false });
    expect(await backUp(layout, freeContext())).toMatchObject({ bytesStored: 100_000 });
  });
});

describe("the memory of stored pieces", () => {
  test.each(["zlib", "zstd", "bz2"] as const)(
    "is given back at once by %s, and that of shared zeros never",
    async (codec) => {
      await writeFile(volume, Buffer.alloc(3_000_000, "text "));
      const ofData = await chunksStored(layoutOf(3_000_000, { compression: codec, level: 3 }));
      expect(ofData.length).toBeGreaterThanOrEqual(3);
      expect(ofData.every(({ buffer }) => (buffer as ArrayBuffer).detached)).toBe(true);
      await rm(volume);
      await writeFile(volume, "");
      await truncate(volume, 4 * 1024 * 1024);
      const ofZeros = await chunksStored(layoutOf(4 * 1024 * 1024, { compression: codec, level: 3 }));
      expect(ofZeros.length).toBeGreaterThanOrEqual(4);
      expect(ofZeros.some(({ buffer }) => (buffer as ArrayBuffer).detached)).toBe(false);
    },
  );
});

describe("removing", () => {
  test("takes exactly the backup's objects, metadata first, and is success the second time", async () => {
    await writeFile(volume, randomBytes(2_500_000));
    const layout = layoutOf(2_500_000, { container: "shared" });
    const other = layoutOf(2_500_000, { container: "shared" });
    await backUp(layout, freeContext());
    await backUp(other, freeContext());
    const foreign = { container: "shared", name: `${layout.prefix}.journal` };
    await repository.putIfAbsent(foreign, Buffer.from("x"), freeContext());
    const order: string[] = [];
    const watched: Repository = Object.assign(Object.create(repository) as Repository, {
      remove: (key: { container: string; name: string }) => {
        order.push(key.name);
        return repository.remove(key);
      },
      list: repository.list.bind(repository),
      get: repository.get.bind(repository),
      stat: repository.stat.bind(repository),
    });
    const input = { repository: watched, container: "shared", prefix: layout.prefix };
    expect(await engine.removeBackup(input, freeContext())).toEqual({ removed: 5 });
    expect(order.slice(0, 2)).toEqual([`${layout.prefix}_metadata`, `${layout.prefix}_sha256file`]);
    expect(await engine.removeBackup(input, freeContext())).toEqual({ removed: 0 });
    const names: string[] = [];
    for await (const { name } of repository.list("shared", "")) names.push(name);
    expect(names.length).toBe(6);
    expect(names).toContain(foreign.name);
  });

  test.each(["", "volume_", "v"])("with the prefix %j is refused", async (prefix) => {
    const removal = engine.removeBackup({ repository, container: "shared", prefix }, freeContext());
    await expect(removal).rejects.toBeInstanceOf(InvalidObjectNameError);
  });

  test("a damaged backup can be removed", async () => {
    await writeFile(volume, randomBytes(2_500_000));
    const layout = layoutOf(2_500_000);
    await backUp(layout, freeContext());
    await writeFile(join(home, "repository", layout.container, `${layout.prefix}_metadata`), "{ nonsense");
    const { container, prefix } = layout;
    expect(await engine.removeBackup({ repository, container, prefix }, freeContext())).toEqual({ removed: 5 });
    expect(await namesOf(layout)).toEqual([]);
  });
});
