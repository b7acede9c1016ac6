import { randomBytes, randomUUID } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  openRepository,
  type Repository,
  RepositoryConfigError,
  RepositoryDeniedError,
  RepositoryFullError,
  RepositoryThrottledError,
  RepositoryUnavailableError,
  redactRepositoryUrl,
} from "@tephra/engine";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type FlakyProxy, startFlakyProxy } from "../../kit/flaky-proxy.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";
import { waitFor } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;
const free = { signal: new AbortController().signal, fence: () => {} };

let server: SwiftServer;
beforeAll(async () => {
  server = await startSwift();
});
afterAll(() => server[Symbol.asyncDispose]());

const urls = {
  s3: (base: string, place: string, more = "") =>
    `s3://${place}?endpoint=${base}&access_key=${server.user}&secret_key=${server.key}${more}`,
  swift: (base: string, place: string, more = "") =>
    `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0&storage_url=${base}/v1/AUTH_test&user=${server.user}&key=${server.key}${more}`,
};

describe.each(["s3", "swift"] as const)("%s behind a network that fails", (driver) => {
  let proxy: FlakyProxy;
  let place: string;
  let repository: Repository;
  let key: { container: string; name: string };
  beforeEach(async () => {
    proxy = await startFlakyProxy(server);
    place = `b-${randomUUID()}`;
    repository = await openRepository(urls[driver](proxy.url, place));
    await repository.initialize();
    key = { container: place, name: "volume_a/1/object" };
    // The question for conditional put is asked before the counting.
    await repository.putIfAbsent({ ...key, name: "first" }, Buffer.from("x"), free);
    proxy.seen.length = 0;
  });
  afterEach(async () => {
    await repository[Symbol.asyncDispose]();
    await proxy[Symbol.asyncDispose]();
  });

  const puts = (): number => proxy.seen.filter(({ method }) => method === "PUT").length;

  test("a put whose connection is lost, that is answered 500, or is told to slow down, is sent again and succeeds", async () => {
    const fates = ["reset", { status: 500 }, { status: 503 }] as const;
    let count = 0;
    proxy.decide = ({ method }) => (method === "PUT" ? (fates[count++] ?? "pass") : "pass");
    const bytes = randomBytes(2 * MiB);
    expect(await repository.putIfAbsent(key, bytes, free)).toBe("stored");
    expect(puts()).toBe(4);
    expect(Buffer.concat(await Array.fromAsync(repository.get(key)))).toEqual(bytes);
  });

  test("a put that was carried out and whose answer was lost is adopted by the next try", async () => {
    let lost = 0;
    proxy.decide = ({ method }) => (method === "PUT" && lost++ === 0 ? "lose answer" : "pass");
    expect(await repository.putIfAbsent(key, Buffer.from("bytes"), free)).toBe("exists");
    expect(lost).toBe(2);
  });

  test("a read that breaks off goes on where it was, in whole and in part", async () => {
    const bytes = randomBytes(3 * MiB + 5);
    await repository.putIfAbsent(key, bytes, free);
    const cuts = [1_000_000, 700_000, 1];
    proxy.decide = ({ method }) => {
      const cutAfterBytes = method === "GET" ? cuts.shift() : undefined;
      return cutAfterBytes === undefined ? "pass" : { cutAfterBytes };
    };
    expect(Buffer.compare(Buffer.concat(await Array.fromAsync(repository.get(key))), bytes)).toBe(0);
    expect(cuts).toEqual([]);
    cuts.push(500_000);
    const part = Buffer.concat(await Array.fromAsync(repository.get(key, { offset: 100, length: 2 * MiB })));
    expect(Buffer.compare(part, bytes.subarray(100, 100 + 2 * MiB))).toBe(0);
  });

  test("a read that breaks off after every few bytes comes to an end", { timeout: 120_000 }, async () => {
    await repository.putIfAbsent(key, randomBytes(MiB), free);
    let asked = 0;
    proxy.decide = ({ method }) => {
      if (method !== "GET") return "pass";
      asked += 1;
      return { cutAfterBytes: 1000 };
    };
    await expect(Array.fromAsync(repository.get(key))).rejects.toThrow(RepositoryUnavailableError);
    expect(asked).toBe(30);
  });

  test("a store that wants a pause gets it from everybody", async () => {
    let told: number | undefined;
    proxy.decide = () => {
      if (told !== undefined) return "pass";
      told = performance.now();
      return { status: 503, headers: { "retry-after": "1" } };
    };
    const one = repository.putIfAbsent(key, Buffer.from("one"), free);
    // The others come while the first is waiting: it has its answer some turns of the event loop later, however long they take.
    let turns = 0;
    await waitFor(() => told !== undefined && ++turns > 20, { what: "the first is told to wait", everyMs: 5 });
    const others = [2, 3, 4].map((n) => repository.putIfAbsent({ ...key, name: `o-${n}` }, Buffer.from("x"), free));
    await Promise.all([one, ...others]);
    const later = proxy.seen.slice(1).map(({ at }) => at - (told as number));
    expect(Math.min(...later)).toBeGreaterThan(990);
  });

  test("what cannot pass is thrown at once, and what lasts after the last try, each as its own error", async () => {
    const cases = [
      [403, RepositoryDeniedError, 1],
      [507, RepositoryFullError, 1],
      [405, RepositoryUnavailableError, 1],
      [503, RepositoryThrottledError, 2],
      [500, RepositoryUnavailableError, 2],
    ] as const;
    await using twice = await openRepository(urls[driver](proxy.url, place, "&retries=2"));
    await twice.putIfAbsent({ ...key, name: "second" }, Buffer.from("x"), free);
    for (const [status, kind, tries] of cases) {
      proxy.seen.length = 0;
      proxy.decide = ({ method }) => (method === "PUT" ? { status } : "pass");
      const error: unknown = await twice.putIfAbsent(key, Buffer.from("x"), free).catch((thrown: unknown) => thrown);
      expect(error, String(status)).toBeInstanceOf(kind);
      expect(puts(), String(status)).toBe(tries);
      expect(String(error)).not.toContain(server.key);
    }
  });

  test("after an abort, or when the fence refuses, nothing more is sent", async () => {
    const controller = new AbortController();
    proxy.decide = ({ method }) => {
      if (method === "PUT") controller.abort(new Error("cancelled"));
      return method === "PUT" ? { status: 500 } : "pass";
    };
    const aborted = repository.putIfAbsent(key, Buffer.from("x"), { ...free, signal: controller.signal });
    await expect(aborted).rejects.toThrow("cancelled");
    expect(puts()).toBe(1);
    let held = true;
    proxy.decide = ({ method }) => {
      if (method === "PUT") held = false;
      return method === "PUT" ? { status: 500 } : "pass";
    };
    const fence = (): void => {
      if (!held) throw new Error("the lease is lost");
    };
    // An empty object has no pieces at which the fence would be asked as well.
    await expect(repository.putIfAbsent(key, Buffer.alloc(0), { ...free, fence })).rejects.toThrow("the lease is lost");
    expect(puts()).toBe(2);
  });

  test("a server that is not there is unavailable for now", async () => {
    await using nobody = await openRepository(urls[driver]("http://127.0.0.1:9", place, "&retries=1"));
    await expect(nobody.identity()).rejects.toMatchObject({ code: "repository_unavailable", retryable: true });
  });

  test("a server that never answers is given up", async () => {
    await using slow = await openRepository(urls[driver](proxy.url, place, "&retries=1&timeout_ms=300"));
    proxy.decide = () => "pass";
    const stuck = await startStuckServer();
    try {
      await using other = await openRepository(urls[driver](stuck.url, place, "&retries=1&timeout_ms=300"));
      await expect(other.identity()).rejects.toBeInstanceOf(RepositoryUnavailableError);
    } finally {
      await stuck.close();
    }
    expect(await slow.identity()).toBeTruthy();
  });
});

/** Accepts connections and says nothing. */
async function startStuckServer(): Promise<{ url: string; close: () => Promise<void> }> {
  const { createServer } = await import("node:net");
  const sockets = new Set<{ destroy(): void }>();
  const listener = createServer((socket) => {
    sockets.add(socket.on("error", () => {}));
  });
  await new Promise<void>((ready) => listener.listen(0, "127.0.0.1", ready));
  const address = listener.address();
  if (address === null || typeof address === "string") throw new Error("no port was given");
  return {
    url: `http://127.0.0.1:${address.port}`,
    close: () => {
      for (const socket of sockets) socket.destroy();
      return new Promise((closed) => listener.close(() => closed()));
    },
  };
}

test("a token that runs out in the middle of a long copy is renewed, and the copy goes on", async () => {
  const place = `b-${randomUUID()}`;
  await using hasty = await startSwift();
  await using proxy = await startFlakyProxy(hasty);
  const url = `swift:${place}?auth=v1&auth_url=${proxy.url}/auth/v1.0&user=${server.user}&key=${server.key}`;
  await using repository = await openRepository(url);
  await repository.initialize();
  const bytes = randomBytes(100_000);
  for (let objects = 1; objects <= 12; objects += 1) {
    if (objects % 4 === 0) await hasty.endTokens();
    expect(await repository.putIfAbsent({ container: place, name: `object-${objects}` }, bytes, free)).toBe("stored");
  }
  expect(proxy.seen.filter(({ path }) => path.startsWith("/auth/"))).toHaveLength(1 + 3);
});

describe("configuration", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "tephra-credentials-"));
  });
  afterEach(() => rm(folder, { recursive: true, force: true }));

  test.each([
    ["JSON", () => JSON.stringify({ access_key: server.user, secret_key: server.key })],
    [
      "an ini file",
      () =>
        `[other]\naws_access_key_id = x\n\n[default]\naws_access_key_id = ${server.user}\naws_secret_access_key=${server.key}\n`,
    ],
  ])("credentials come from %s", async (_, text) => {
    const path = join(folder, "credentials");
    await writeFile(path, text());
    const place = `b-${randomUUID()}`;
    await using repository = await openRepository(`s3://${place}?endpoint=${server.url}`, { credentials: path });
    await repository.initialize();
    await using again = await openRepository(
      `s3://${place}?endpoint=${server.url}&credentials=${encodeURIComponent(path)}`,
    );
    expect(await again.identity()).toEqual(await repository.identity());
  });

  test.each([
    "s3:",
    "s3://b",
    "s3://bkt?access_key=sesame&secret_key=",
    "s3://bkt?access_key=sesame&secret_key=sesame&nonsense=1",
    "s3://bkt?access_key=sesame&secret_key=sesame&access_key=sesame",
    "s3://bkt?access_key=sesame&secret_key=sesame&endpoint=ftp://x",
    "s3://bkt?access_key=sesame&secret_key=sesame&endpoint=http://u:sesame@x",
    "s3://bkt?access_key=sesame&secret_key=sesame&path_style=maybe",
    "s3://bkt?access_key=sesame&secret_key=sesame&part_bytes=1",
    "s3://bkt?access_key=sesame&secret_key=sesame&ca=/nowhere",
    "s3://bkt?access_key=sesame%2&secret_key=sesame",
    "s3://bkt?credentials=/nowhere",
    "swift:c?auth=v1&user=u&key=sesame",
    "swift:c?auth=v9&auth_url=http://x&user=u&key=sesame",
    "swift:c?auth=v1&auth_url=http://x&user=u",
    "http://x",
  ])("%s is refused, and no secret is shown", async (url) => {
    const error: unknown = await openRepository(url).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(RepositoryConfigError);
    expect((error as Error).message).not.toContain("sesame");
  });

  test("a damaged file of credentials is refused without its contents", async () => {
    const path = join(folder, "credentials");
    await writeFile(path, '{"secret_key": "sesame",');
    const error: unknown = await openRepository("s3://bkt", { credentials: path }).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(RepositoryConfigError);
    expect((error as Error).message).not.toContain("sesame");
  });

  test("a URL that is shown has no secret", () => {
    expect(redactRepositoryUrl("s3://b?access_key=a&secret_key=b&endpoint=http://x&%6bey=c")).toBe(
      "s3://b?access_key=***&secret_key=***&endpoint=http://x&%6bey=***",
    );
    expect(redactRepositoryUrl("posix:/a?key=b")).toBe("posix:/a?key=b");
  });
});
