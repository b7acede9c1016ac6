import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  decodeExportRecord,
  findBackups,
  findPlaces,
  InvalidContainerError,
  openRepository,
  parseContainer,
  type Repository,
  recordOf,
  rescan,
} from "@tephra/engine";
import { isContainer, isObjectPrefix, reservedContainer, zonePattern } from "@tephra/format";
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import { times } from "../../kit/long.ts";

/** What one door accepts, all others find: requests, listings, rescans, the reaper, records, deletions. */
const free = { signal: new AbortController().signal, fence: () => {} };
const { signal } = free;

let path: string;
let repository: Repository;
beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), "tephra-names-"));
  repository = await openRepository(`posix:${path}`);
  await repository.initialize();
});
afterEach(async () => {
  await repository[Symbol.asyncDispose]();
  await rm(path, { recursive: true, force: true });
});

const part = fc.oneof(
  fc.string({ unit: "binary", minLength: 1, maxLength: 12 }),
  fc.string({ unit: "grapheme", minLength: 1, maxLength: 80 }),
  fc.constantFrom(
    ".",
    "..",
    ".tephra",
    ".tephra-x",
    "tmp",
    "lost+found",
    " ",
    "...",
    "\ufffd",
    "%2f",
    "volume_a",
    "\\",
  ),
);
const container = fc.oneof(
  fc.array(part, { minLength: 1, maxLength: 4 }).map((parts) => parts.join("/")),
  fc.integer({ min: 120, max: 135 }).map((depth) => Array.from({ length: depth }, () => "d").join("/")),
);

const metadata = (backupId: string): string =>
  JSON.stringify({ backup_id: backupId, objects: [], parent_id: null, version: "1.0.0", volume_id: "v" });

test("whatever container a request may name is listed, rescanned, reaped, exported, imported and removed; any other is refused by all", async () => {
  await fc.assert(
    fc.asyncProperty(container, fc.uuid(), fc.uuid(), async (name, volumeId, backupId) => {
      if (!isContainer(name)) {
        expect(() => parseContainer(name)).toThrow(InvalidContainerError);
        // The repository keeps things of its own in containers that nobody can name.
        if (name.split("/")[0] === reservedContainer) return;
        await expect(repository.ensureContainer(name)).rejects.toThrow();
        await expect(Array.fromAsync(repository.list(name, ""))).rejects.toThrow();
        return;
      }
      const prefix = repository.defaultPrefix({ volumeId, backupId, at: new Date("2026-11-28T20:25:00Z") });
      expect(isObjectPrefix(prefix)).toBe(true);
      await repository.ensureContainer(name);
      const key = { container: name, name: `${prefix}_metadata` };
      await repository.putIfAbsent(key, Buffer.from(metadata(backupId)), free);
      const found = await Array.fromAsync(findBackups(repository, signal));
      expect(found).toMatchObject([{ backupId, container: name, prefix }]);
      const places = await Array.fromAsync(findPlaces(repository, repository.containers(), signal));
      expect(places).toMatchObject([{ backupId, container: name, prefix, whole: true }]);
      const [rescanned] = await rescan(repository, signal);
      const record = rescanned && recordOf(repository, rescanned);
      expect(decodeExportRecord(record?.backup_url ?? "")).toMatchObject({ container: name, prefix });
      await repository.remove(key);
      await rm(join(path, name.split("/")[0] ?? ""), { recursive: true });
      expect(await Array.fromAsync(findBackups(repository, signal))).toEqual([]);
    }),
    {
      numRuns: times({ usual: 6, long: 20 }),
      interruptAfterTimeLimit: 60_000,
      examples: [".tephra", ".tephra/tmp", "a/.tephra"].map((name) => [name, randomUUID(), randomUUID()]),
    },
  );
}, 120_000);

test("a zone that configuration takes makes names that every store takes", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary-ascii", maxLength: 260 }), (zone) => {
      const prefix = `volume_a/20261128202500/az_${zone}_backup_b`;
      expect(isObjectPrefix(prefix)).toBe(zonePattern.test(zone));
      if (zonePattern.test(zone)) expect(zone).not.toMatch(/[/\\]/);
    }),
  );
});
