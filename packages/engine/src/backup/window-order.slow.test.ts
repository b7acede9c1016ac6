import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { freeContext, layoutFor, referenceTo, restoreToMemory } from "../../../../test/format/backup-fixture.ts";
import { openEngine } from "../engine.ts";
import { openRepository } from "../open-repository.ts";
import { openFileSource } from "../volume/file/file-source.ts";

const KiB = 1024;

test("a window that is admitted before an earlier one does not take the memory that this needs", async () => {
  const home = await mkdtemp(join(tmpdir(), "tephra-order-"));
  try {
    const bytes = randomBytes(1024 * KiB);
    await writeFile(join(home, "volume"), bytes);
    const repository = await openRepository(`posix:${join(home, "repository")}`);
    await repository.initialize();
    const objectBytes = 256 * KiB;
    // Enough for one window at a time.
    await using engine = openEngine({ threads: 2, memoryBytes: 2 * objectBytes - 1 });
    const layout = layoutFor(repository, bytes.length, { compression: "zlib", objectBytes, blockBytes: 4 * KiB });
    await using source = await openFileSource(join(home, "volume"));
    let asked = 0;
    const admit = (): Promise<void> | null => {
      asked += 1;
      return asked === 1 ? sleep(50) : null;
    };
    await engine.backupWhole({ source, repository, layout, parent: null }, { ...freeContext(), admit });
    expect(asked).toBe(4);
    expect((await restoreToMemory(engine, [referenceTo(repository, layout)])).equals(bytes)).toBe(true);
  } finally {
    await rm(home, { recursive: true, force: true });
  }
});
