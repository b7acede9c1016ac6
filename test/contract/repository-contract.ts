import { randomBytes, randomUUID } from "node:crypto";
import {
  InvalidObjectNameError,
  ObjectConflictError,
  type ObjectKey,
  ObjectMissingError,
  type Repository,
  RepositoryUnmarkedError,
} from "@tephra/engine";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

/** What a driver's test hands to the suite: a new, empty, unmarked place for every test. */
export type OpenRepository = () => Promise<{ repository: Repository } & AsyncDisposable>;

const free = { signal: new AbortController().signal, fence: () => {} };
const container = "some-container";

/** The rules of the Repository contract. Every driver enters here; a fault found in one adds a case for all. */
export function describeRepository(name: string, open: OpenRepository): void {
  describe(`repository ${name}`, () => {
    let place: Awaited<ReturnType<OpenRepository>>;
    let repository: Repository;
    beforeEach(async () => {
      place = await open();
      repository = place.repository;
    });
    afterEach(() => place[Symbol.asyncDispose]());

    describeIdentity(() => repository);
    describeObjects(() => repository);
    describeConditionalPut(() => repository);
    describeListing(() => repository);
  });
}

function describeIdentity(repository: () => Repository): void {
  test("a place without a marker is refused, and marking it twice keeps one identity", async () => {
    await expect(repository().identity()).rejects.toBeInstanceOf(RepositoryUnmarkedError);
    const both = await Promise.all([repository().initialize(), repository().initialize()]);
    expect(both[0]).toEqual(both[1]);
    expect(await repository().identity()).toEqual(both[0]);
  });

  test("prefixes have the form that Cinder's driver of the same kind gives them", () => {
    const ids = { volumeId: randomUUID(), backupId: randomUUID() };
    const prefix = repository().defaultPrefix({ ...ids, at: new Date("2026-11-20T17:21:41.999Z") });
    expect(prefix).toBe(`volume_${ids.volumeId}_20261120172141_backup_${ids.backupId}`);
  });
}

function describeObjects(repository: () => Repository): void {
  test("what is put is read back, whole, in part, and behind the end", async () => {
    await prepare(repository());
    const bytes = randomBytes(3 * 1024 * 1024 + 17);
    const key = { container, name: "object" };
    expect(await repository().putIfAbsent(key, bytes, free)).toBe("stored");
    expect(await read(repository(), key)).toEqual(bytes);
    expect(await read(repository(), key, { offset: 5, length: 1_500_000 })).toEqual(bytes.subarray(5, 1_500_005));
    expect(await read(repository(), key, { offset: bytes.length - 3, length: 100 })).toEqual(bytes.subarray(-3));
    expect(await read(repository(), key, { offset: bytes.length + 3, length: 100 })).toEqual(Buffer.alloc(0));
    expect(await repository().stat(key)).toEqual({ sizeBytes: bytes.length });
  });

  test("an empty object is an object", async () => {
    await prepare(repository());
    const key = { container, name: "empty" };
    expect(await repository().putIfAbsent(key, chunks([]), free)).toBe("stored");
    expect(await repository().stat(key)).toEqual({ sizeBytes: 0 });
    expect(await read(repository(), key)).toEqual(Buffer.alloc(0));
  });

  test("a missing object is ObjectMissingError to read, and success to remove", async () => {
    await prepare(repository());
    for (const missing of [
      { container, name: "missing" },
      { container: "missing-container", name: "missing" },
    ]) {
      await expect(repository().stat(missing)).rejects.toBeInstanceOf(ObjectMissingError);
      await expect(read(repository(), missing)).rejects.toBeInstanceOf(ObjectMissingError);
      await repository().remove(missing);
    }
  });

  test("a removed object is gone and its name is free", async () => {
    await prepare(repository());
    const key = { container, name: "object" };
    await repository().putIfAbsent(key, Buffer.from("one"), free);
    await repository().remove(key);
    await repository().remove(key);
    await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
    expect(await repository().putIfAbsent(key, Buffer.from("other"), free)).toBe("stored");
  });

  test.each(["", ".", "..", "a/../b", "/etc/passwd", "a\0b", "x".repeat(256)])(
    "the name %j is refused",
    async (name) => {
      await prepare(repository());
      const key = { container, name };
      await expect(repository().putIfAbsent(key, Buffer.from("x"), free)).rejects.toBeInstanceOf(
        InvalidObjectNameError,
      );
      await expect(repository().remove(key)).rejects.toBeInstanceOf(InvalidObjectNameError);
    },
  );
}

function describeConditionalPut(repository: () => Repository): void {
  test("a name that holds the same bytes is adopted, with other bytes it is a conflict and stays as it was", async () => {
    await prepare(repository());
    const key = { container, name: "object" };
    const bytes = randomBytes(2 * 1024 * 1024 + 1);
    await repository().putIfAbsent(key, bytes, free);
    expect(await repository().putIfAbsent(key, chunks([bytes.subarray(0, 7), bytes.subarray(7)]), free)).toBe("exists");
    const flipped = Buffer.from(bytes);
    flipped[flipped.length - 1] = (flipped.at(-1) as number) ^ 1;
    for (const other of [flipped, bytes.subarray(1), Buffer.concat([bytes, Buffer.from("x")]), Buffer.alloc(0)]) {
      await expect(repository().putIfAbsent(key, other, free)).rejects.toBeInstanceOf(ObjectConflictError);
    }
    expect(await read(repository(), key)).toEqual(bytes);
  });

  test("of many writers at once one stores and the others adopt", async () => {
    await prepare(repository());
    const bytes = randomBytes(300_000);
    const puts = Array.from({ length: 8 }, () => repository().putIfAbsent({ container, name: "object" }, bytes, free));
    expect((await Promise.all(puts)).sort()).toEqual([...Array.from({ length: 7 }, () => "exists"), "stored"]);
  });

  test("of many writers with different bytes exactly one wins", async () => {
    await prepare(repository());
    const key = { container, name: "object" };
    const bodies = Array.from({ length: 6 }, () => randomBytes(100_000));
    const outcomes = await Promise.allSettled(bodies.map((body) => repository().putIfAbsent(key, body, free)));
    const winners = outcomes.flatMap((outcome, index) => (outcome.status === "fulfilled" ? [index] : []));
    expect(winners.length).toBe(1);
    expect(await read(repository(), key)).toEqual(bodies[winners[0] as number]);
  });

  test("a writer that may no longer write leaves nothing under the name", async () => {
    await prepare(repository());
    const key = { container, name: "object" };
    for (const callsAllowed of [0, 1, 3]) {
      let calls = 0;
      const fence = (): void => {
        if (calls++ >= callsAllowed) throw new Error("the lease is lost");
      };
      const put = repository().putIfAbsent(key, randomBytes(2_500_000), { ...free, fence });
      await expect(put).rejects.toThrow("the lease is lost");
      await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
    }
  });

  test("an aborted put throws the reason and leaves nothing under the name", async () => {
    await prepare(repository());
    const key = { container, name: "object" };
    const controller = new AbortController();
    async function* body(): AsyncGenerator<Uint8Array> {
      yield randomBytes(1000);
      controller.abort(new Error("cancelled"));
      yield randomBytes(1000);
    }
    const put = repository().putIfAbsent(key, body(), { ...free, signal: controller.signal });
    await expect(put).rejects.toThrow("cancelled");
    await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
  });

  test("a body that fails in the middle leaves nothing under the name", async () => {
    await prepare(repository());
    async function* body(): AsyncGenerator<Uint8Array> {
      yield randomBytes(1000);
      throw new Error("the source is gone");
    }
    const key = { container, name: "object" };
    await expect(repository().putIfAbsent(key, body(), free)).rejects.toThrow("the source is gone");
    await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
  });
}

function describeListing(repository: () => Repository): void {
  test("a listing shows exactly the names with the prefix, with their sizes", async () => {
    await prepare(repository());
    for (const [index, name] of ["a-1", "a-10", "a_metadata", "b-1", "a"].entries()) {
      await repository().putIfAbsent({ container, name }, Buffer.alloc(index + 1), free);
    }
    expect(await list(repository(), "a-")).toEqual([
      ["a-1", 1],
      ["a-10", 2],
    ]);
    expect((await list(repository(), "a")).length).toBe(4);
    expect(await list(repository(), "c")).toEqual([]);
  });

  test("a missing container is empty", async () => {
    const names: string[] = [];
    for await (const { name } of repository().list("missing/container", "")) names.push(name);
    expect(names).toEqual([]);
  });

  test("containers are found, the reserved one is not among them", async () => {
    await prepare(repository());
    await repository().ensureContainer("ab/cd/ef");
    await repository().putIfAbsent({ container: "ab/cd/ef", name: "object" }, Buffer.from("x"), free);
    const found: string[] = [];
    for await (const each of repository().containers()) found.push(each);
    expect(found).toContain(container);
    expect(found).toContain("ab/cd/ef");
    expect(found.filter((each) => each.startsWith(".tephra"))).toEqual([]);
  });

  test("whether a place holds only what belongs there takes every object into account", async () => {
    await prepare(repository());
    await repository().putIfAbsent({ container, name: "mine" }, Buffer.from("x"), free);
    expect(await repository().holdsOnly((name) => name === "mine")).toBe(true);
    await repository().putIfAbsent({ container, name: "other" }, Buffer.from("x"), free);
    expect(await repository().holdsOnly((name) => name === "mine")).toBe(false);
  });
}

async function prepare(repository: Repository): Promise<void> {
  await repository.initialize();
  await repository.ensureContainer(container);
}

async function read(
  repository: Repository,
  key: ObjectKey,
  part?: { offset: number; length: number },
): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const chunk of repository.get(key, part)) parts.push(chunk);
  return Buffer.concat(parts);
}

async function list(repository: Repository, prefix: string): Promise<[string, number][]> {
  const found: [string, number][] = [];
  for await (const { name, sizeBytes } of repository.list(container, prefix)) found.push([name, sizeBytes]);
  return found.sort();
}

async function* chunks(parts: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* parts;
}
