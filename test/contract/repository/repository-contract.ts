import assert from "node:assert/strict";
import { randomBytes, randomUUID } from "node:crypto";
import { writeSync } from "node:fs";
import {
  InvalidObjectNameError,
  ObjectConflictError,
  type ObjectKey,
  ObjectMissingError,
  type Repository,
  RepositoryDeniedError,
  RepositoryUnavailableError,
  RepositoryUnmarkedError,
  stagingContainer,
} from "@tephra/engine";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

/** A new, empty, unmarked place, and how it differs from the others. */
export interface Place extends AsyncDisposable {
  repository: Repository;
  /** A container that is not there yet, for objects. */
  container: string;
  /** Another one. */
  otherContainer: string;
  /** The same place once more, as another process has it. */
  again(): Promise<Repository>;
  /** A place of the same kind that is not there. */
  missing(): Promise<Repository>;
  /** The same place with credentials that are wrong; null where there are none. */
  denied: (() => Promise<Repository>) | null;
}

export interface Kind {
  name: string;
  open: () => Promise<Place>;
  prefix: "folders" | "names";
  /** A size that takes several requests, or null where there are none. */
  largeBytes: number | null;
  /** Whether of writers in several processes that are there at the same instant exactly one stores. */
  exclusive: boolean;
}

const free = { signal: new AbortController().signal, fence: () => {} };

/** The rules of the Repository contract. Every driver enters here; a fault found in one adds a case for all. */
export function describeRepository(kind: Kind): void {
  describe(`repository ${kind.name}`, () => {
    let opened: Place;
    beforeEach(async () => {
      opened = await kind.open();
    });
    afterEach(() => opened[Symbol.asyncDispose]());
    const place = (): Place => opened;

    describeIdentity(place, kind);
    describeObjects(place, kind);
    describeConditionalPut(place, kind);
    if (kind.largeBytes !== null) describeLargeObjects(place, kind.largeBytes);
    if (kind.largeBytes !== null) describeLargeCopy(place, kind.largeBytes);
    describeListing(place);
    describeLeftovers(place, kind);
  });
}

function describeIdentity(place: () => Place, kind: Kind): void {
  const repository = (): Repository => place().repository;

  test("a place without a marker is refused, and marking it twice keeps one identity", async () => {
    await expect(repository().identity()).rejects.toBeInstanceOf(RepositoryUnmarkedError);
    const both = await Promise.all([repository().initialize(), repository().initialize()]);
    expect(both[0]).toEqual(both[1]);
    expect(await repository().identity()).toEqual(both[0]);
  });

  test("prefixes have the form that Cinder's driver of the same kind gives them", () => {
    const ids = { volumeId: randomUUID(), backupId: randomUUID() };
    const prefix = repository().defaultPrefix({ ...ids, at: new Date("2026-11-20T17:21:41.999Z") });
    expect(prefix).toBe(
      kind.prefix === "names"
        ? `volume_${ids.volumeId}_20261120172141_backup_${ids.backupId}`
        : `volume_${ids.volumeId}/20261120172141/az_nova_backup_${ids.backupId}`,
    );
  });

  test("a place that is missing is unavailable, and asking does not create it", async () => {
    const missing = await place().missing();
    await expect(missing.identity()).rejects.toBeInstanceOf(RepositoryUnavailableError);
    await expect(missing.identity()).rejects.toBeInstanceOf(RepositoryUnavailableError);
  });

  test("wrong credentials are denied, to read and to write, and nothing is tried twice", async ({ skip }) => {
    const { denied } = place();
    if (denied === null) return skip("this kind has no credentials");
    const { container } = await prepare(place());
    await using stranger = await denied();
    await expect(stranger.identity()).rejects.toBeInstanceOf(RepositoryDeniedError);
    const put = stranger.putIfAbsent({ container, name: "object" }, Buffer.from("x"), free);
    await expect(put).rejects.toBeInstanceOf(RepositoryDeniedError);
    await expect(stranger.identity()).rejects.toMatchObject({ retryable: false });
    await expect(repository().stat({ container, name: "object" })).rejects.toBeInstanceOf(ObjectMissingError);
  });
}

function describeObjects(place: () => Place, kind: Kind): void {
  const repository = (): Repository => place().repository;

  test("what is put is read back, whole, in part, and behind the end", async () => {
    const { container } = await prepare(place());
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
    const { container } = await prepare(place());
    const key = { container, name: "empty" };
    expect(await repository().putIfAbsent(key, chunks([]), free)).toBe("stored");
    expect(await repository().stat(key)).toEqual({ sizeBytes: 0 });
    expect(await read(repository(), key)).toEqual(Buffer.alloc(0));
  });

  test("a missing object is ObjectMissingError to read, and success to remove", async () => {
    const { container } = await prepare(place());
    for (const missing of [
      { container, name: "missing" },
      { container: place().otherContainer, name: "missing" },
    ]) {
      await expect(repository().stat(missing)).rejects.toBeInstanceOf(ObjectMissingError);
      await expect(read(repository(), missing)).rejects.toBeInstanceOf(ObjectMissingError);
      await repository().remove(missing);
    }
  });

  test("names with slashes and other signs are plain names where the service allows them", async ({ skip }) => {
    if (kind.prefix === "names") return skip("names are those of files");
    const { container } = await prepare(place());
    const name = "volume_a/20261120172141/az_zone 1+%2f?#&=\u00e4_backup_b-00001";
    const key = { container, name };
    expect(await repository().putIfAbsent(key, Buffer.from("bytes"), free)).toBe("stored");
    expect(await read(repository(), key)).toEqual(Buffer.from("bytes"));
    expect(await list(repository(), container, "volume_a/20261120172141/az_zone 1+%2f?")).toEqual([[name, 5]]);
    await repository().remove(key);
    expect(await list(repository(), container, "")).toEqual([]);
  });

  test("what is staged is apart from every container of users, and can be listed and removed", async () => {
    const { container } = await prepare(place());
    const staging = stagingContainer("4f6c-1");
    await repository().ensureContainer(staging);
    await repository().putIfAbsent({ container: staging, name: "1.hashes" }, Buffer.from("abc"), free);
    expect(await list(repository(), staging, "")).toEqual([["1.hashes", 3]]);
    expect(await read(repository(), { container: staging, name: "1.hashes" })).toEqual(Buffer.from("abc"));
    expect(await list(repository(), container, "")).toEqual([]);
    expect(await repository().holdsOnly(() => false)).toBe(true);
    await repository().remove({ container: staging, name: "1.hashes" });
    expect(await list(repository(), staging, "")).toEqual([]);
  });

  test("a removed object is gone and its name is free", async () => {
    const { container } = await prepare(place());
    const key = { container, name: "object" };
    await repository().putIfAbsent(key, Buffer.from("one"), free);
    await repository().remove(key);
    await repository().remove(key);
    await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
    expect(await repository().putIfAbsent(key, Buffer.from("other"), free)).toBe("stored");
  });

  const tooLong = kind.prefix === "names" ? "x".repeat(256) : "x".repeat(1025);
  test.each(["", ".", "..", "a/../b", "/etc/passwd", "a\0b", tooLong, ".tephra/repository.json"])(
    "the name %j is refused",
    async (name) => {
      const { container } = await prepare(place());
      const key = { container, name };
      await expect(repository().putIfAbsent(key, Buffer.from("x"), free)).rejects.toBeInstanceOf(
        InvalidObjectNameError,
      );
      await expect(repository().remove(key)).rejects.toBeInstanceOf(InvalidObjectNameError);
    },
  );
}

function describeConditionalPut(place: () => Place, kind: Kind): void {
  const repository = (): Repository => place().repository;

  test("a name that holds the same bytes is adopted, with other bytes it is a conflict and stays as it was", async () => {
    const { container } = await prepare(place());
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

  test("a draft becomes an object once it is stored, and otherwise nothing", async ({ skip }) => {
    const { container } = await prepare(place());
    const key = { container, name: "object" };
    const begun = await repository().openDraft?.(key, free);
    if (!begun) return skip("threads do not write here");
    const bytes = randomBytes(200_000);
    const names = async (): Promise<string[]> =>
      (await Array.fromAsync(repository().list(container, ""))).map(({ name }) => name);
    const draft = async (data: Uint8Array): Promise<"stored" | "exists"> => {
      await using own = await repository().openDraft?.(key, free);
      assert(own);
      writeSync(own.descriptor, data, 0, data.length, 70_000);
      // Somebody else is faster, but for the first.
      if (data !== bytes)
        await repository().putIfAbsent(key, await read(repository(), { container, name: "first" }), free);
      return await own.store(data.length + 100_000);
    };
    await begun[Symbol.asyncDispose]();
    expect(await names()).toEqual([]);
    const refused = { ...free, fence: () => assert.fail("the lease is lost") };
    await expect(repository().openDraft?.(key, refused)).rejects.toThrow("lease is lost");
    expect(await draft(bytes)).toBe("stored");
    const whole = Buffer.concat([Buffer.alloc(70_000), bytes, Buffer.alloc(30_000)]);
    expect(await read(repository(), key)).toEqual(whole);
    expect(await repository().openDraft?.(key, free)).toBeNull();
    await repository().putIfAbsent({ container, name: "first" }, whole, free);
    await repository().remove(key);
    expect(await draft(Buffer.from(bytes))).toBe("exists");
    await repository().remove(key);
    await expect(draft(randomBytes(200_000))).rejects.toBeInstanceOf(ObjectConflictError);
    expect(await read(repository(), key)).toEqual(whole);
    expect(await Array.fromAsync(repository().leftovers([]))).toEqual([]);
  });

  test("an object is copied under another name, and what is there is adopted or is a conflict", async () => {
    const { container } = await prepare(place());
    const { otherContainer } = place();
    await repository().ensureContainer(otherContainer);
    const [from, to] = [
      { container, name: "object" },
      { container: otherContainer, name: "copy" },
    ];
    const bytes = randomBytes(300_003);
    await repository().putIfAbsent(from, bytes, free);
    expect(await repository().copyIfAbsent(from, to, free)).toBe("stored");
    expect(await repository().copyIfAbsent(from, to, free)).toBe("exists");
    expect(await read(repository(), to)).toEqual(bytes);
    const third = { container, name: "third" };
    await repository().putIfAbsent(third, Buffer.from(bytes), free);
    expect(await repository().copyIfAbsent(third, to, free)).toBe("exists");
    const other = { container, name: "other" };
    const flipped = Buffer.from(bytes);
    flipped[0] = (flipped[0] as number) ^ 1;
    await repository().putIfAbsent(other, flipped, free);
    await expect(repository().copyIfAbsent(other, to, free)).rejects.toBeInstanceOf(ObjectConflictError);
    const missing = repository().copyIfAbsent({ container, name: "none" }, { container, name: "new" }, free);
    await expect(missing).rejects.toBeInstanceOf(ObjectMissingError);
    const refused = { ...free, fence: () => assert.fail("the lease is lost") };
    await expect(repository().copyIfAbsent(from, { container, name: "late" }, refused)).rejects.toThrow(
      "lease is lost",
    );
    // Each is its own: removing one leaves the other.
    await repository().remove(from);
    expect(await read(repository(), to)).toEqual(bytes);
    const names = (await Array.fromAsync(repository().list(container, ""))).map(({ name }) => name);
    expect(names.sort()).toEqual(["other", "third"]);
  });

  test("of many writers at once one stores and the others adopt", async () => {
    const { container } = await prepare(place());
    const bytes = randomBytes(300_000);
    const puts = Array.from({ length: 8 }, () => repository().putIfAbsent({ container, name: "object" }, bytes, free));
    expect((await Promise.all(puts)).sort()).toEqual([...Array.from({ length: 7 }, () => "exists"), "stored"]);
  });

  test("eight writers of equal bytes in other processes all succeed, and where names are given once one stores", async () => {
    const { container } = await prepare(place());
    const key = { container, name: "object" };
    const bytes = randomBytes(300_000);
    const writers = await Promise.all(Array.from({ length: 8 }, () => place().again()));
    const outcomes = await Promise.all(writers.map((writer) => writer.putIfAbsent(key, bytes, free)));
    const stored = outcomes.filter((outcome) => outcome === "stored").length;
    if (kind.exclusive) expect(stored).toBe(1);
    else expect(stored).toBeGreaterThanOrEqual(1);
    expect(await read(repository(), key)).toEqual(bytes);
    for (const writer of writers) await writer[Symbol.asyncDispose]();
  });

  test("of many writers with different bytes exactly one wins", async () => {
    const { container } = await prepare(place());
    const key = { container, name: "object" };
    const bodies = Array.from({ length: 6 }, () => randomBytes(100_000));
    const outcomes = await Promise.allSettled(bodies.map((body) => repository().putIfAbsent(key, body, free)));
    const winners = outcomes.flatMap((outcome, index) => (outcome.status === "fulfilled" ? [index] : []));
    expect(winners.length).toBe(1);
    expect(await read(repository(), key)).toEqual(bodies[winners[0] as number]);
  });

  test("a writer that may no longer write leaves nothing under the name", async () => {
    const { container } = await prepare(place());
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
    const { container } = await prepare(place());
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
    const { container } = await prepare(place());
    async function* body(): AsyncGenerator<Uint8Array> {
      yield randomBytes(1000);
      throw new Error("the source is gone");
    }
    const key = { container, name: "object" };
    await expect(repository().putIfAbsent(key, body(), free)).rejects.toThrow("the source is gone");
    await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
  });
}

function describeLargeCopy(place: () => Place, largeBytes: number): void {
  test("a large object is copied whole, and the copy stays when the first is removed", async () => {
    const { container } = await prepare(place());
    const { repository } = place();
    const bytes = randomBytes(largeBytes);
    await repository.putIfAbsent({ container, name: "large" }, bytes, free);
    expect(await repository.copyIfAbsent({ container, name: "large" }, { container, name: "copy" }, free)).toBe(
      "stored",
    );
    await repository.remove({ container, name: "large" });
    expect((await read(repository, { container, name: "copy" })).equals(bytes)).toBe(true);
  });
}

function describeLargeObjects(place: () => Place, largeBytes: number): void {
  const repository = (): Repository => place().repository;
  const large = (): Buffer => randomBytes(largeBytes);

  test("an object of several parts is one object, in whole, in part, in a listing, and when it is removed", async () => {
    const { container } = await prepare(place());
    const key = { container, name: "large" };
    const bytes = large();
    expect(await repository().putIfAbsent(key, inPieces(bytes), free)).toBe("stored");
    expect(Buffer.compare(await read(repository(), key), bytes)).toBe(0);
    const part = { offset: 5_000_000, length: 1_000_000 };
    expect(Buffer.compare(await read(repository(), key, part), bytes.subarray(5_000_000, 6_000_000))).toBe(0);
    expect(await repository().stat(key)).toEqual({ sizeBytes: largeBytes });
    expect(await list(repository(), container, "")).toEqual([["large", largeBytes]]);
    await repository().remove(key);
    expect(await list(repository(), container, "")).toEqual([]);
    await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
  });

  test("equal bytes of several parts are adopted, others are a conflict and change nothing", async () => {
    const { container } = await prepare(place());
    const key = { container, name: "large" };
    const bytes = large();
    await repository().putIfAbsent(key, inPieces(bytes), free);
    expect(await repository().putIfAbsent(key, inPieces(bytes), free)).toBe("exists");
    const other = Buffer.from(bytes);
    other[largeBytes - 1] = (other[largeBytes - 1] as number) ^ 1;
    await expect(repository().putIfAbsent(key, inPieces(other), free)).rejects.toBeInstanceOf(ObjectConflictError);
    const shorter = repository().putIfAbsent(key, inPieces(bytes.subarray(1)), free);
    await expect(shorter).rejects.toBeInstanceOf(ObjectConflictError);
    expect(Buffer.compare(await read(repository(), key), bytes)).toBe(0);
  });

  test("of three writers of several parts one stores and the others adopt", async () => {
    const { container } = await prepare(place());
    const bytes = large();
    const puts = [1, 2, 3].map(() => repository().putIfAbsent({ container, name: "large" }, inPieces(bytes), free));
    const outcomes = await Promise.all(puts);
    expect(outcomes.sort()).toEqual(["exists", "exists", "stored"]);
    expect(Buffer.compare(await read(repository(), { container, name: "large" }), bytes)).toBe(0);
  });

  test("a large object whose body fails, or whose writer may no longer write, leaves nothing under the name", async () => {
    const { container } = await prepare(place());
    const key = { container, name: "large" };
    async function* failing(): AsyncGenerator<Uint8Array> {
      yield* inPieces(large());
      throw new Error("the source is gone");
    }
    await expect(repository().putIfAbsent(key, failing(), free)).rejects.toThrow("the source is gone");
    let calls = 0;
    const fence = (): void => {
      if (calls++ > largeBytes / 1024 / 1024 - 2) throw new Error("the lease is lost");
    };
    await expect(repository().putIfAbsent(key, inPieces(large()), { ...free, fence })).rejects.toThrow(
      "the lease is lost",
    );
    await expect(repository().stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
    expect(await list(repository(), container, "")).toEqual([]);
  });
}

function describeListing(place: () => Place): void {
  const repository = (): Repository => place().repository;

  test("a listing shows exactly the names with the prefix, with their sizes", async () => {
    const { container } = await prepare(place());
    for (const [index, name] of ["a-1", "a-10", "a_metadata", "b-1", "a"].entries()) {
      await repository().putIfAbsent({ container, name }, Buffer.alloc(index + 1), free);
    }
    expect(await list(repository(), container, "a-")).toEqual([
      ["a-1", 1],
      ["a-10", 2],
    ]);
    expect((await list(repository(), container, "a")).length).toBe(4);
    expect(await list(repository(), container, "c")).toEqual([]);
  });

  test("a listing of several pages is whole and has nothing twice", async () => {
    const { container } = await prepare(place());
    const names = Array.from({ length: 23 }, (_, index) => `p-${String(index).padStart(5, "0")}`);
    await Promise.all(names.map((name) => repository().putIfAbsent({ container, name }, Buffer.from("x"), free)));
    expect((await list(repository(), container, "p-")).map(([name]) => name)).toEqual(names);
  });

  test("a missing container is empty", async () => {
    const names: string[] = [];
    for await (const { name } of repository().list(place().otherContainer, "")) names.push(name);
    expect(names).toEqual([]);
  });

  test("containers are found, the reserved one is not among them", async () => {
    const { container } = await prepare(place());
    const { otherContainer } = place();
    await repository().ensureContainer(otherContainer);
    await repository().putIfAbsent({ container: otherContainer, name: "object" }, Buffer.from("x"), free);
    const found: string[] = [];
    for await (const each of repository().containers()) found.push(each);
    expect(found).toContain(container);
    expect(found).toContain(otherContainer);
    expect(found.filter((each) => each.startsWith(".tephra"))).toEqual([]);
  });

  test("whether a place holds only what belongs there takes every object into account", async () => {
    await prepare(place());
    const container = repository().defaultContainer(randomUUID());
    await repository().ensureContainer(container);
    await repository().putIfAbsent({ container, name: "mine" }, Buffer.from("x"), free);
    expect(await repository().holdsOnly((name) => name === "mine")).toBe(true);
    await repository().putIfAbsent({ container, name: "other" }, Buffer.from("x"), free);
    expect(await repository().holdsOnly((name) => name === "mine")).toBe(false);
  });
}

function describeLeftovers(place: () => Place, kind: Kind): void {
  const repository = (): Repository => place().repository;
  const leftovers = (container: string) => Array.fromAsync(repository().leftovers([container]));
  const isRecent = ({ modifiedAt }: { modifiedAt: Date }): boolean =>
    Math.abs(Date.now() - modifiedAt.getTime()) < 600_000;

  test("what operations have staged is found and removed, and records, the marker and backups are not", async () => {
    const { container } = await prepare(place());
    const ids = [randomUUID(), randomUUID()].sort();
    for (const id of ids) {
      await repository().ensureContainer(stagingContainer(id));
      for (const name of ["1.hashes", "2.hashes"]) {
        await repository().putIfAbsent({ container: stagingContainer(id), name }, Buffer.from(name), free);
      }
    }
    const record = { container: ".tephra/records", name: randomUUID() };
    await repository().ensureContainer(record.container);
    await repository().putIfAbsent(record, Buffer.from("record"), free);
    await repository().putIfAbsent({ container, name: "object" }, Buffer.from("x"), free);
    const staged = await leftovers(container);
    expect(staged.map((each) => each.kind === "staged" && each.operationId).sort()).toEqual(ids);
    expect(staged.every(isRecent)).toBe(true);
    const denied = {
      ...free,
      fence: () => {
        throw new Error("the lease is lost");
      },
    };
    for (const each of staged) {
      await expect(repository().removeLeftover(each, denied)).rejects.toThrow("the lease is lost");
      expect(await leftovers(container)).toContainEqual(each);
      await repository().removeLeftover(each, free);
      await repository().removeLeftover(each, free);
    }
    expect(await leftovers(container)).toEqual([]);
    expect(await repository().identity()).toBeDefined();
    expect(await read(repository(), record)).toEqual(Buffer.from("record"));
    expect(await list(repository(), container, "")).toEqual([["object", 1]]);
  });

  test("a listing says when an object was stored", async () => {
    const { container } = await prepare(place());
    await repository().putIfAbsent({ container, name: "object" }, Buffer.from("x"), free);
    const listed = await Array.fromAsync(repository().list(container, "object"));
    expect([listed.length, listed.every(isRecent)]).toEqual([1, true]);
  });

  test("large uploads that were never completed are found and removed, those that were and those of others are not", async ({
    skip,
  }) => {
    const { largeBytes } = kind;
    if (largeBytes === null) return skip("objects are put whole");
    const { container } = await prepare(place());
    const prefix = `volume_${randomUUID()}/20261120172141/az_zone 1_backup_${randomUUID()}`;
    const bytes = randomBytes(largeBytes);
    await repository().putIfAbsent({ container, name: `${prefix}-00001` }, inPieces(bytes), free);
    expect(await leftovers(container)).toEqual([]);

    let enough = (): void => {};
    const parts = new Promise<void>((resolve) => {
      enough = resolve;
    });
    let goOn = (): void => {};
    const held = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    async function* halting(): AsyncGenerator<Uint8Array> {
      yield* inPieces(bytes.subarray(0, (largeBytes as number) - 1000));
      enough();
      await held;
      yield bytes.subarray((largeBytes as number) - 1000);
    }
    const names = [`${prefix}-00002`, "somebody else's"];
    const puts = names.map((name) => repository().putIfAbsent({ container, name }, halting(), free));
    const outcomes = Promise.allSettled(puts);
    await parts;
    let found = await leftovers(container);
    for (let look = 0; look < 100 && found.length === 0; look += 1) found = await leftovers(container);
    expect(found).toMatchObject([{ kind: "upload", container, name: `${prefix}-00002` }]);
    expect(found.every(isRecent)).toBe(true);
    for (const each of found) await repository().removeLeftover(each, free);
    expect(await leftovers(container)).toEqual([]);
    goOn();
    expect((await outcomes).map(({ status }) => status)).toEqual(["rejected", "fulfilled"]);
    expect(Buffer.compare(await read(repository(), { container, name: `${prefix}-00001` }), bytes)).toBe(0);
    await expect(repository().stat({ container, name: `${prefix}-00002` })).rejects.toBeInstanceOf(ObjectMissingError);
  });
}

/** Marks the place and creates its container. */
async function prepare(place: Place): Promise<Place> {
  await place.repository.initialize();
  await place.repository.ensureContainer(place.container);
  return place;
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

async function list(repository: Repository, container: string, prefix: string): Promise<[string, number][]> {
  const found: [string, number][] = [];
  for await (const { name, sizeBytes } of repository.list(container, prefix)) found.push([name, sizeBytes]);
  return found.sort();
}

/** A body in pieces that do not fit those of requests. */
async function* inPieces(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let start = 0; start < bytes.length; start += 777_777) yield bytes.subarray(start, start + 777_777);
}

async function* chunks(parts: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* parts;
}
