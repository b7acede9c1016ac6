import { randomBytes, randomInt, randomUUID } from "node:crypto";
import { mkdtemp, open, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  backUp,
  freeContext,
  layoutFor,
  referenceTo,
  restoreToMemory,
} from "../../../../test/format/backup-fixture.ts";
import type { BackupReference } from "../chain/backup-reference.ts";
import { type Engine, openEngine } from "../engine.ts";
import { WrongChangesError } from "../errors.ts";
import type { Extent } from "../format/extents.ts";
import type { BackupLayout } from "../format/layout.ts";
import { openRepository } from "../open-repository.ts";
import type { Repository } from "../repository/repository.ts";
import { openFileSource } from "../volume/file/file-source.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

let home: string;
let engine: Engine;
let repository: Repository;
let volume: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-changed-"));
  volume = join(home, "volume");
  repository = await openRepository(`posix:${join(home, "repository")}`);
  await repository.initialize();
  engine = openEngine({ threads: 2 });
});
afterEach(async () => {
  await engine[Symbol.asyncDispose]();
  await rm(home, { recursive: true, force: true });
});

/** Overwrites parts of the volume with noise or zeros. @returns what was written, in ascending order */
async function change(parts: readonly Extent[]): Promise<Extent[]> {
  await using file = await open(volume, "r+");
  for (const { offset, length } of parts) {
    await file.write(randomInt(3) === 0 ? Buffer.alloc(length) : randomBytes(length), 0, length, offset);
  }
  return parts.toSorted((a, b) => a.offset - b.offset);
}

/** The objects and lists of a backup, without what differs between two of the same volume. */
async function contents(layout: BackupLayout): Promise<Map<string, string>> {
  const folder = join(home, "repository", layout.container);
  const files = new Map<string, string>();
  for (const name of await readdir(folder)) {
    const text = (await readFile(join(folder, name))).toString("latin1");
    const neutral = text.replaceAll(layout.prefix, "PREFIX").replaceAll(layout.backupId, "ID");
    files.set(name.slice(layout.prefix.length), neutral.replaceAll(layout.volumeId, "VOLUME"));
  }
  return files;
}

async function increment(
  parent: BackupReference,
  given: { changed?: readonly Extent[]; layout: Partial<BackupLayout>; volumeBytes: number },
): Promise<BackupLayout> {
  const layout = layoutFor(repository, given.volumeBytes, { ...given.layout, parentId: parent.backupId });
  await using source = await openFileSource(volume);
  const changes = given.changed === undefined ? {} : { changed: given.changed };
  await engine.backupWhole({ source, repository, layout, parent, ...changes }, freeContext());
  return layout;
}

describe("an incremental that is told what has changed", () => {
  test("has exactly the objects of one that reads everything, and restores exactly", async () => {
    const volumeBytes = 3 * MiB + 700;
    for (const compression of ["none", "zlib", "zstd"] as const) {
      await writeFile(volume, randomBytes(2 * MiB));
      await truncate(volume, volumeBytes);
      const layout = { compression, objectBytes: 256 * KiB, blockBytes: 4 * KiB };
      const parent = await backUp(engine, { repository, path: volume, layout });
      const written = await change(
        Array.from({ length: 12 }, () => {
          const length = 1 + randomInt(100 * KiB);
          return { offset: randomInt(volumeBytes - length), length };
        }),
      );
      const told = await increment(parent, { layout, volumeBytes, changed: written });
      const whole = await increment(parent, { layout, volumeBytes });
      expect(await contents(told)).toEqual(await contents(whole));
      const restored = await restoreToMemory(engine, [referenceTo(repository, told), parent]);
      expect(restored.equals(await readFile(volume))).toBe(true);
    }
  });

  const gib = 1024 * MiB;
  /** 64 MiB in 16 places of 4 GiB. */
  const parts = Array.from({ length: 16 }, (_, n) => ({ offset: n * 256 * MiB + n * MiB, length: 4 * MiB }));

  test("reads those parts and a hundredth of the rest, and notices 20 of 20 untruths", {
    timeout: 240_000,
  }, async () => {
    await writeFile(volume, "");
    await truncate(volume, 4 * gib);
    await change(Array.from({ length: 8 }, (_, n) => ({ offset: n * 300 * MiB + 30 * MiB, length: 8 * MiB })));
    const layout = { compression: "none", objectBytes: 32 * MiB, blockBytes: 32 * KiB } as const;
    const parent = await backUp(engine, { repository, path: volume, layout });
    const changed = await change(parts);
    await using source = await openFileSource(volume);
    const copy = async (told: readonly Extent[]) => {
      const next = layoutFor(repository, 4 * gib, { ...layout, parentId: parent.backupId });
      const staging = { operationId: randomUUID(), name: "range" };
      const range = { offset: 0, length: 4 * gib };
      const input = { source, repository, layout: next, range, parent, changed: told, staging };
      return engine.copyRange(input, freeContext());
    };
    const { bytesRead } = await copy(changed);
    expect(bytesRead).toBeGreaterThan(0);
    expect(bytesRead).toBeLessThanOrEqual(64 * MiB + 0.011 * 4 * gib);
    for (let untruth = 0; untruth < 20; untruth++) {
      // Nothing has changed, or one of the 16.
      const told = untruth < 4 ? [] : changed.slice(untruth - 4, untruth - 3);
      await expect(copy(told)).rejects.toThrow(WrongChangesError);
    }
  });
});
