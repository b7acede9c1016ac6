import { randomUUID } from "node:crypto";
import { openRepository, RepositoryDeniedError, RepositoryUnavailableError } from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type KeystoneServer, startKeystone } from "../../kit/keystone.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";
import { describeRepository } from "./repository-contract.ts";

const MiB = 1024 * 1024;

describe("swift with auth version 1", () => {
  let server: SwiftServer;
  beforeAll(async () => {
    server = await startSwift();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const open = (container: string, key = server.key) =>
    openRepository(
      `swift:${container}?auth=v1&auth_url=${server.url}/auth/v1.0&user=${server.user}&key=${key}&part_bytes=${5 * MiB}&list_page=7`,
    );

  describeRepository({
    name: "swift",
    prefix: "folders",
    largeBytes: 12 * MiB + 17,
    // Swift, which is behind both, looks for the name when a put begins, not when it ends.
    exclusive: false,
    open: async () => {
      const container = `b-${randomUUID()}`;
      const repository = await open(container);
      await repository.ensureContainer(container);
      return {
        repository,
        container: `c-${randomUUID()}`,
        otherContainer: `d-${randomUUID()}`,
        again: () => open(container),
        missing: () => open(`m-${randomUUID()}`),
        denied: () => open(container, "wrong"),
        [Symbol.asyncDispose]: () => repository[Symbol.asyncDispose](),
      };
    },
  });

  test("its quotas say how much can still be stored, and without one nothing does", async () => {
    const container = `q-${randomUUID()}`;
    await using repository = await open(container);
    await repository.ensureContainer(container);
    expect(await repository.freeBytes()).toBeNull();
    const login = await fetch(`${server.url}/auth/v1.0`, {
      headers: { "x-auth-user": server.user, "x-auth-key": server.key },
    });
    const token = login.headers.get("x-auth-token") ?? "";
    const set = async (path: string, header: string, value: string): Promise<void> => {
      const url = `${login.headers.get("x-storage-url")}${path}`;
      const answer = await fetch(url, { method: "POST", headers: { "x-auth-token": token, [header]: value } });
      expect(answer.status, header).toBe(204);
    };
    await set(`/${container}`, "x-container-meta-quota-bytes", "1000000");
    expect(await repository.freeBytes()).toBe(1_000_000);
    const free = { signal: new AbortController().signal, fence: () => {} };
    await repository.putIfAbsent({ container, name: "object" }, Buffer.alloc(100_000, 1), free);
    await expect.poll(() => repository.freeBytes(), { timeout: 30_000 }).toBe(900_000);
    // The account counts what is in it when its containers tell it.
    await set("", "x-account-meta-quota-bytes", "500000");
    await expect.poll(() => repository.freeBytes(), { timeout: 30_000 }).toBeLessThanOrEqual(500_000);
    await set("", "x-remove-account-meta-quota-bytes", "x");
    await expect.poll(() => repository.freeBytes(), { timeout: 30_000 }).toBe(900_000);
  });
});

describe("swift with Keystone", () => {
  let keystone: KeystoneServer;
  beforeAll(async () => {
    keystone = await startKeystone({ tokenLifeSeconds: 5 });
  });
  afterAll(() => keystone[Symbol.asyncDispose]());

  const free = { signal: new AbortController().signal, fence: () => {} };
  const open = (container: string, more = "", password = keystone.password) =>
    openRepository(
      `swift:${container}?auth_url=${keystone.url}/v3&user=${keystone.user}&key=${encodeURIComponent(password)}` +
        `&project=${keystone.project}${more}`,
    );

  test("objects are kept while tokens run out", async () => {
    const container = `b-${randomUUID()}`;
    await using repository = await open(container, "&region=north");
    const made = await repository.initialize();
    const begun = performance.now();
    let objects = 0;
    while (performance.now() - begun < 11_000) {
      objects += 1;
      const key = { container, name: `object-${objects}` };
      expect(await repository.putIfAbsent(key, Buffer.alloc(100_000, objects), free)).toBe("stored");
    }
    expect((await Array.fromAsync(repository.list(container, "object-"))).length).toBe(objects);
    await using again = await open(container);
    expect(await again.identity()).toEqual(made);
  }, 90_000);

  test("a wrong password is denied", async () => {
    await using wrong = await open("some-container", "", "sesame");
    await expect(wrong.identity()).rejects.toBeInstanceOf(RepositoryDeniedError);
  }, 90_000);

  test("a region that is not in the catalog is said", async () => {
    await using elsewhere = await open("some-container", "&region=south");
    const error: unknown = await elsewhere.identity().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(RepositoryUnavailableError);
    expect(String(error)).toContain("the catalog has no public endpoint");
  }, 90_000);

  test("containers are created with the storage policy that is asked for", async () => {
    const container = `b-${randomUUID()}`;
    await using repository = await open(container, "&storage_policy=silver");
    await repository.initialize();
    const user = { name: keystone.user, password: keystone.password, domain: { name: "Default" } };
    const scope = { project: { name: keystone.project, domain: { name: "Default" } } };
    const login = await fetch(`${keystone.url}/v3/auth/tokens`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ auth: { identity: { methods: ["password"], password: { user } }, scope } }),
    });
    const { token } = (await login.json()) as { token: { project: { id: string } } };
    const head = await fetch(`${keystone.swift.url}/v1/AUTH_${token.project.id}/${container}`, {
      headers: { "x-auth-token": login.headers.get("x-subject-token") ?? "" },
    });
    expect(head.headers.get("x-storage-policy")).toBe("silver");
  });
});
