import { randomBytes, randomUUID } from "node:crypto";
import { findPlaces, openRepository, type Repository } from "@tephra/engine";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type Fate, type FlakyProxy, startFlakyProxy } from "../../kit/flaky-proxy.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";

/** What stands before a store may lose a part of its answers: a listing is then whole, or fails; it is never shorter. */
const MiB = 1024 * 1024;
const free = { signal: new AbortController().signal, fence: () => {} };
const count = 10;
const prefix = `volume_${randomUUID()}/20261128202500/az_nova_backup_${randomUUID()}`;
const names = Array.from({ length: count }, (_, at) => `${prefix}-${String(at + 1).padStart(5, "0")}`);

let server: SwiftServer;
beforeAll(async () => {
  server = await startSwift();
});
afterAll(() => server[Symbol.asyncDispose]());

const urls = {
  s3: (base: string, place: string) =>
    `s3://${place}?endpoint=${base}&access_key=${server.user}&secret_key=${server.key}&list_page=3&retries=1&part_bytes=${5 * MiB}`,
  swift: (base: string, place: string) =>
    `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0&storage_url=${base}/v1/AUTH_test&user=${server.user}&key=${server.key}&list_page=3&retries=1`,
};

describe.each(["s3", "swift"] as const)("%s", (driver) => {
  let proxy: FlakyProxy;
  let place: string;
  let repository: Repository;
  beforeEach(async () => {
    proxy = await startFlakyProxy(server);
    place = `b-${randomUUID()}`;
    repository = await openRepository(urls[driver](proxy.url, place));
    await repository.initialize();
    for (const name of [...names, `${prefix}_metadata`]) {
      await repository.putIfAbsent({ container: place, name }, Buffer.from("x"), free);
    }
  });
  afterEach(async () => {
    await repository[Symbol.asyncDispose]();
    await proxy[Symbol.asyncDispose]();
  });

  const listed = async (): Promise<string[]> =>
    (await Array.fromAsync(repository.list(place, `${prefix}-`))).map(({ name }) => name);
  /** Changes what the store answers to the question for a listing. */
  const onListing = (fate: Fate): void => {
    proxy.decide = ({ method, path }) => (method === "GET" && /[?&](?:prefix|list-type)=/.test(path) ? fate : "pass");
  };

  const s3Quirks: [string, (body: string) => string, "whole" | "fails"][] = [
    ["no token", (body) => body.replace(/<NextContinuationToken>.*?<\/NextContinuationToken>/, ""), "whole"],
    [
      "no word about its end",
      (body) => body.replace(/<IsTruncated>.*?<\/IsTruncated>|<Next\w+>.*?<\/Next\w+>/g, ""),
      "whole",
    ],
    ["a token, and no more", (body) => body.replace("<IsTruncated>true", "<IsTruncated>false"), "whole"],
    [
      "no token and no entries",
      (body) => body.replace(/<Contents>.*<\/Contents>|<KeyCount>.*?<\/KeyCount>|<Next\w+>.*?<\/Next\w+>/g, ""),
      "fails",
    ],
    ["one entry less than it counts", (body) => body.replace(/<Contents>.*?<\/Contents>/, ""), "fails"],
    ["an entry without a name", (body) => body.replace(/<Key>.*?<\/Key>/, ""), "fails"],
    ["names that nobody asked for", (body) => body.replaceAll("<Key>volume_", "<Key>other_"), "fails"],
  ];
  test.runIf(driver === "s3").each(s3Quirks)(
    "a page with %s: the listing is whole or fails",
    async (_, rewrite, end) => {
      onListing({ rewrite });
      if (end === "whole") expect(await listed()).toEqual(names);
      else await expect(listed()).rejects.toThrow("contradicts itself");
    },
  );

  test("the same page again and again fails, and does not go on for ever", async () => {
    let first: string | null = null;
    onListing({ rewrite: (body) => (first ??= body) });
    await expect(listed()).rejects.toThrow("contradicts itself");
  });

  test("a container that is missing for the second page is not the end of the listing", async () => {
    let pages = 0;
    proxy.decide = ({ method, path }) => {
      const listing = method === "GET" && /[?&](?:prefix|list-type)=/.test(path);
      return listing && ++pages > 1 ? { status: 404 } : "pass";
    };
    await expect(listed()).rejects.toThrow();
  });

  test.runIf(driver === "swift")("an entry without a name or a size fails", async () => {
    for (const key of ["name", "bytes"]) {
      onListing({ rewrite: (body) => body.replace(`"${key}":`, '"other":') });
      await expect(listed()).rejects.toThrow("contradicts itself");
    }
  });

  test.runIf(driver === "s3")("uploads are listed to the end without the markers of the next page", async () => {
    proxy.decide = ({ method, path }) => (method === "DELETE" && path.includes("uploadId") ? { status: 405 } : "pass");
    for (const name of names.slice(0, 5)) {
      await repository.remove({ container: place, name });
      const broken = async function* (): AsyncGenerator<Uint8Array> {
        yield Buffer.alloc(11 * MiB, name);
        throw new Error("broken off");
      };
      await expect(repository.putIfAbsent({ container: place, name }, broken(), free)).rejects.toThrow();
    }
    const left = async (): Promise<string[]> => {
      const found = await Array.fromAsync(repository.leftovers([]));
      return found.flatMap((each) => (each.kind === "upload" ? [each.name] : [])).sort();
    };
    const uploads = ({ path }: { path: string }): boolean => /[?&]uploads/.test(path);
    for (const marker of ["Next\\w+Marker", "NextUploadIdMarker"]) {
      const rewrite = (body: string): string => body.replace(new RegExp(`<${marker}>.*?</${marker}>`, "g"), "");
      proxy.decide = (seen) => (uploads(seen) ? { rewrite } : "pass");
      expect(await left()).toEqual(names.slice(0, 5));
    }
    const nothing = (body: string): string => body.replace(/<Upload>.*<\/Upload>|<Next\w+>.*?<\/Next\w+>/g, "");
    proxy.decide = (seen) => (uploads(seen) ? { rewrite: nothing } : "pass");
    await expect(left()).rejects.toThrow("contradicts itself");
  });

  test("a backup whose metadata a listing leaves out is still a whole one: the reaper takes no remains for it", async () => {
    const places = () => Array.fromAsync(findPlaces(repository, [place], free.signal));
    expect(await places()).toMatchObject([{ prefix, whole: true }]);
    const rewrite =
      driver === "s3"
        ? (body: string) => body.replace(/_metadata</g, "_other<")
        : (body: string) => body.replaceAll("_metadata", "_other");
    onListing({ rewrite });
    expect(await places()).toMatchObject([{ prefix, whole: true, objects: count }]);
    proxy.decide = () => "pass";
    await repository.remove({ container: place, name: `${prefix}_metadata` });
    expect(await places()).toMatchObject([{ whole: false }]);
  });

  test("a byte that changes on the way is refused by the store, and the put is sent again", async () => {
    await using patient = await openRepository(urls[driver](proxy.url, place).replace("&retries=1", ""));
    const bytes = randomBytes(MiB);
    const key = { container: place, name: "volume_a/1/object" };
    let flipped = 0;
    proxy.decide = ({ method, path }) =>
      method === "PUT" && path.includes("volume_a") && flipped++ < 2 ? { flipAt: 1000 } : "pass";
    expect(await patient.putIfAbsent(key, bytes, free)).toBe("stored");
    expect(flipped).toBe(3);
    expect(Buffer.compare(Buffer.concat(await Array.fromAsync(repository.get(key))), bytes)).toBe(0);
  });

  test("a store that answers a put with the digest of other bytes is read back, and keeps nothing that is wrong", async () => {
    const key = { container: place, name: "volume_a/1/other" };
    const told = ({ method, path }: { method: string; path: string }): Fate =>
      method === "PUT" && path.includes("volume_a") ? { etag: "0".repeat(32) } : "pass";
    proxy.decide = told;
    expect(await repository.putIfAbsent(key, Buffer.from("right bytes"), free)).toBe("stored");
    const wrong = { ...key, name: "volume_a/1/wrong" };
    proxy.decide = (seen) => (seen.method === "GET" ? { rewrite: () => "wrong bytes" } : told(seen));
    await expect(repository.putIfAbsent(wrong, Buffer.from("right bytes"), free)).rejects.toThrow("does not keep");
    proxy.decide = () => "pass";
    expect(await Array.fromAsync(repository.list(place, "volume_a/1/wrong"))).toEqual([]);
  });
});
