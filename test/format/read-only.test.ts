import { randomBytes, randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type Engine,
  findBackups,
  openEngine,
  openRepository,
  type Repository,
  RepositoryDeniedError,
  type RestoreRange,
  stagingContainer,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type FlakyProxy, type SeenRequest, startFlakyProxy } from "../kit/flaky-proxy.ts";
import { type SwiftServer, startSwift } from "../kit/swift.ts";
import { backUp, freeContext, MemoryTarget, restoreToMemory, temporaryFolder } from "./backup-fixture.ts";

let server: SwiftServer;
let proxy: FlakyProxy;
let engine: Engine;
beforeAll(async () => {
  server = await startSwift();
  proxy = await startFlakyProxy(server);
  engine = openEngine({ threads: 2 });
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
  await proxy[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const open = {
  s3: (place: string) =>
    openRepository(`s3://${place}?endpoint=${proxy.url}`, { accessKey: server.user, secretKey: server.key }),
  swift: (place: string) =>
    openRepository(
      `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0&user=${server.user}&key=${server.key}&storage_url=${proxy.url}/v1/AUTH_test`,
    ),
};

/** As for a key that may read and nothing else. */
const readingOnly = ({ method }: SeenRequest) => (/^(?:GET|HEAD)$/.test(method) ? "pass" : { status: 403 });
/** As for a project whose quota is used up. */
const full = ({ method }: SeenRequest) => (/^(?:PUT|POST)$/.test(method) ? { status: 413 } : "pass");

/** A chain of two in a new repository, and what the newer one holds. */
async function storeChain(driver: keyof typeof open) {
  await using folder = await temporaryFolder();
  const path = join(folder.path, "volume");
  const place = `b-${randomUUID()}`;
  const repository = await open[driver](place);
  await repository.initialize();
  const image = randomBytes(500_001);
  await writeFile(path, image);
  const parent = await backUp(engine, { repository, path });
  image.write("changed", 250_000);
  await writeFile(path, image);
  const newest = await backUp(engine, { repository, path, parent });
  return { place, repository, chain: [newest, parent], image };
}

async function restoreByRanges(chain: Awaited<ReturnType<typeof storeChain>>["chain"]) {
  const operationId = randomUUID();
  const cut = { rangeBytes: 65_536, rangesMax: 100, staging: { operationId, name: "one" } };
  const planned = await engine.planRestore({ chain, ...cut }, freeContext());
  // As a worker gets them: through the row of a task.
  const ranges = JSON.parse(JSON.stringify(planned.ranges)) as RestoreRange[];
  const target = new MemoryTarget(planned.volumeBytes, { isNew: true });
  for (const range of ranges) {
    await engine.restoreRange({ chain, range, staging: { operationId }, target }, freeContext());
  }
  return { ranges, bytes: target.bytes, operationId };
}

async function staged(repository: Repository, operationId: string): Promise<number> {
  return (await Array.fromAsync(repository.list(stagingContainer(operationId), ""))).length;
}

describe.each(["s3", "swift"] as const)("credentials of %s that may only read", (driver) => {
  test("list, verify and restore, whole and by ranges, and are told from those that may write", async () => {
    const { repository: first, place, chain: stored, image } = await storeChain(driver);
    await first.checkWritable();
    const before = await Array.fromAsync(first.list(place, ""));
    await first[Symbol.asyncDispose]();
    proxy.decide = readingOnly;
    try {
      await using repository = await open[driver](place);
      const chain = stored.map((reference) => ({ ...reference, repository }));
      await repository.identity();
      await expect(repository.checkWritable()).rejects.toBeInstanceOf(RepositoryDeniedError);
      const found = await Array.fromAsync(findBackups(repository, freeContext().signal));
      expect(found.filter(({ container }) => container === place)).toHaveLength(2);
      expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
      const verified = await engine.verifyBackup({ chain, mode: "deep" }, freeContext());
      expect(verified.damaged).toEqual([]);
      const { ranges, bytes, operationId } = await restoreByRanges(chain);
      expect(ranges.length).toBeGreaterThan(3);
      expect(ranges.every(({ map }) => map.name === null)).toBe(true);
      expect(bytes.equals(image)).toBe(true);
      const plan = { rangeBytes: 65_536, rangesMax: 100, staging: { operationId, name: "verify" } };
      const { ranges: parts } = await engine.planVerify({ chain, mode: "deep", ...plan }, freeContext());
      let blocks = 0;
      for (const range of parts) {
        const checked = await engine.verifyRange({ chain, range, staging: { operationId } }, freeContext());
        expect(checked.damaged).toEqual([]);
        blocks += checked.blocks;
      }
      expect(blocks).toBe(verified.blocks);
      await engine.removeStaging(repository, operationId);
      expect(await Array.fromAsync(repository.list(place, ""))).toEqual(before);
    } finally {
      proxy.decide = () => "pass";
    }
  });

  test("restore from a full one, too; with room the slices are staged, and both give the same bytes", async () => {
    const { repository, chain, image } = await storeChain(driver);
    await using _ = repository;
    const roomy = await restoreByRanges(chain);
    expect(roomy.bytes.equals(image)).toBe(true);
    expect(await staged(repository, roomy.operationId)).toBe(roomy.ranges.length);
    proxy.decide = full;
    try {
      const crowded = await restoreByRanges(chain);
      expect(crowded.bytes.equals(image)).toBe(true);
      expect(await staged(repository, crowded.operationId)).toBe(0);
      expect(crowded.ranges.map(({ map }) => map.digest)).toEqual(roomy.ranges.map(({ map }) => map.digest));
    } finally {
      proxy.decide = () => "pass";
    }
  });
});
