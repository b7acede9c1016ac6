import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type IncomingHttpHeaders } from "node:http";
import { type AddressInfo, createServer as createNetServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openRepository, type Repository, RepositoryConfigError } from "@tephra/engine";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

interface Asked {
  method: string;
  url: string;
  headers: IncomingHttpHeaders;
  body: string;
}

/** What a server is asked for by a repository that is opened and used; it grants a token, and has nothing else. */
let asked: Asked[] = [];
const server = createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += String(chunk);
  asked.push({ method: request.method ?? "", url: request.url ?? "", headers: request.headers, body });
  const login = /\/auth\/(?:v1\.0|tokens)$/.test(request.url ?? "");
  const endpoint = (region: string, kind: string) => ({
    region,
    interface: kind,
    url: `${base}/catalog/${region}-${kind}/AUTH_x`,
  });
  const endpoints = ["north", "south"].flatMap((region) =>
    ["public", "internal", "admin"].map((kind) => endpoint(region, kind)),
  );
  const token = { "x-auth-token": "t", "x-subject-token": "t", "x-storage-url": `${base}/told/AUTH_x` };
  response.writeHead(login ? 200 : 404, login ? token : {});
  response.end(login ? JSON.stringify({ token: { catalog: [{ type: "object-store", endpoints }] } }) : "");
});
let base: string;
let folder: string;
beforeAll(async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  base = `http://127.0.0.1:${typeof address === "object" ? address?.port : ""}`;
  folder = await mkdtemp(join(tmpdir(), "tephra-urls-"));
});
afterAll(async () => {
  server.closeAllConnections();
  server.close();
  await rm(folder, { recursive: true, force: true });
});

type Driver = "s3" | "swift";
const needed: Record<Driver, () => Record<string, string>> = {
  s3: () => ({ endpoint: base, access_key: "AK", secret_key: "SK", conditional_put: "true", retries: "1" }),
  swift: () => ({ auth: "v3", auth_url: base, user: "me", key: "secret", retries: "1" }),
};

function urlOf(driver: Driver, parameters: Record<string, string>): string {
  const place = driver === "s3" ? "s3://some-bucket" : "swift:some-container";
  const pairs = Object.entries(parameters).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  return `${place}?${pairs.join("&")}`;
}

/** Everything that is asked while a repository is looked at, listed and written to. */
async function use(url: string): Promise<{ asked: Asked[]; repository: Repository; prefix: string }> {
  asked = [];
  const repository = await openRepository(url);
  const ctx = { signal: new AbortController().signal, fence: () => {} };
  const container = repository.ownContainer as string;
  await repository.identity().catch(() => {});
  await Array.fromAsync(repository.list(container, "")).catch(() => {});
  await repository.ensureContainer(container).catch(() => {});
  await repository.putIfAbsent({ container, name: "object" }, Buffer.alloc(7_000_000), ctx).catch(() => {});
  const prefix = repository.defaultPrefix({ volumeId: randomUUID(), backupId: randomUUID(), at: new Date() });
  await repository[Symbol.asyncDispose]();
  return { asked, repository, prefix };
}

interface Case {
  driver: Driver;
  name: string;
  value: string;
  /** Other parameters that it needs beside those that are always there. */
  beside?: Record<string, string>;
  without?: string[];
  /** Whether what was asked shows that it was obeyed. */
  shows: (used: { asked: Asked[]; prefix: string }) => boolean;
}

const some =
  (test: (request: Asked) => boolean) =>
  (used: { asked: Asked[] }): boolean =>
    used.asked.some(test);
const data = ({ url }: Asked): boolean => !url.includes("/auth/");

const obeyed: Case[] = [
  {
    driver: "s3",
    name: "region",
    value: "mars-1",
    shows: some(({ headers }) => /\/mars-1\/s3\//.test(headers.authorization ?? "")),
  },
  {
    driver: "s3",
    name: "access_key",
    value: "OTHER",
    shows: some(({ headers }) => /=OTHER\//.test(headers.authorization ?? "")),
  },
  { driver: "s3", name: "path_style", value: "true", shows: some(({ url }) => url.startsWith("/some-bucket")) },
  { driver: "s3", name: "list_page", value: "17", shows: some(({ url }) => url.includes("max-keys=17")) },
  { driver: "s3", name: "part_bytes", value: "5242880", shows: some(({ url }) => url.includes("uploads")) },
  { driver: "s3", name: "zone", value: "az 9", shows: ({ prefix }) => prefix.includes("/az_az 9_backup_") },
  {
    driver: "s3",
    name: "conditional_put",
    value: "true",
    shows: some(({ headers }) => headers["if-none-match"] === "*"),
  },
  {
    driver: "s3",
    name: "conditional_put",
    value: "false",
    shows: (used) => !some(({ headers }) => headers["if-none-match"] === "*")(used),
  },
  { driver: "swift", name: "user", value: "ümlaut", shows: some(({ body }) => body.includes('"name":"ümlaut"')) },
  { driver: "swift", name: "key", value: "other", shows: some(({ body }) => body.includes('"password":"other"')) },
  {
    driver: "swift",
    name: "project",
    value: "p 1",
    shows: some(({ body }) => body.includes('"project":{"name":"p 1"')),
  },
  {
    driver: "swift",
    name: "user_domain",
    value: "d1",
    shows: some(({ body }) => body.includes('"domain":{"name":"d1"}')),
  },
  {
    driver: "swift",
    name: "project_domain",
    value: "d2",
    beside: { project: "p" },
    shows: some(({ body }) => body.includes('"domain":{"name":"d2"}')),
  },
  {
    driver: "swift",
    name: "region",
    value: "south",
    shows: some(({ url }) => url.startsWith("/catalog/south-public/")),
  },
  {
    driver: "swift",
    name: "interface",
    value: "internal",
    shows: some(({ url }) => url.startsWith("/catalog/north-internal/")),
  },
  { driver: "swift", name: "account", value: "AUTH_y", shows: some(({ url }) => url.includes("-public/AUTH_y/")) },
  {
    driver: "swift",
    name: "storage_policy",
    value: "gold",
    shows: some(({ headers }) => headers["x-storage-policy"] === "gold"),
  },
  { driver: "swift", name: "list_page", value: "17", shows: some(({ url }) => url.includes("limit=17")) },
  { driver: "swift", name: "part_bytes", value: "1048576", shows: some(({ url }) => url.includes("segments")) },
  { driver: "swift", name: "zone", value: "az9", shows: ({ prefix }) => prefix.includes("/az_az9_backup_") },
  {
    driver: "swift",
    name: "auth",
    value: "v1",
    shows: (used) =>
      some(({ headers }) => headers["x-auth-user"] === "me")(used) &&
      used.asked.filter(data).every(({ url }) => url.startsWith("/told/")),
  },
];

describe("a parameter of a repository's URL that is taken", () => {
  test.each(obeyed)("is obeyed: $driver $name=$value", async ({ driver, name, value, beside = {}, shows }) => {
    const authUrl = name === "auth" ? { auth_url: `${base}/auth/v1.0` } : {};
    const used = await use(urlOf(driver, { ...needed[driver](), ...beside, ...authUrl, [name]: value }));
    expect(shows(used), JSON.stringify(used.asked.map(({ method, url }) => `${method} ${url}`))).toBe(true);
  });

  test.each(["s3", "swift"] as const)("is obeyed: %s retries, timeout_ms, credentials", async (driver) => {
    let connections = 0;
    const closing = createNetServer((socket) => {
      connections += 1;
      socket.destroy();
    });
    await once(closing.listen(0, "127.0.0.1"), "listening");
    await using _ = { [Symbol.asyncDispose]: async () => void (await once(closing.close(), "close")) };
    const counted = async (retries: string) => {
      connections = 0;
      const there = `http://127.0.0.1:${(closing.address() as AddressInfo).port}`;
      const down = urlOf(driver, { ...needed[driver](), retries, endpoint: there, auth_url: there });
      const own = driver === "s3" ? down.replace(/&auth_url=[^&]*/, "") : down.replace(/&endpoint=[^&]*/, "");
      const repository = await openRepository(own);
      await repository.identity().catch(() => {});
      return connections;
    };
    expect(await counted("3")).toBeGreaterThan(await counted("1"));
    const path = join(folder, driver);
    await writeFile(path, JSON.stringify({ access_key: "FILED", secret_key: "s", user: "FILED", key: "k" }));
    const { access_key: _a, secret_key: _s, user: _u, key: _k, ...rest } = needed[driver]();
    const used = await use(urlOf(driver, { ...rest, credentials: path, timeout_ms: "5000" }));
    expect(JSON.stringify(used.asked)).toContain("FILED");
  });
});

const both = ["s3", "swift"] as const;
const refused: { driver: Driver; more: Record<string, string>; names: string }[] = [
  ...both.flatMap((driver) => [
    ...["timeout_ms", "retries", "part_bytes", "list_page"].flatMap((name) =>
      ["", "0", "-1", "1e3", "many", "99999999999999999999"].map((value) => ({
        driver,
        more: { [name]: value },
        names: name,
      })),
    ),
    { driver, more: { insecure: "yes" }, names: "insecure" },
    { driver, more: { ca: "/missing" }, names: "ca" },
    { driver, more: { zone: "a\nb" }, names: "zone" },
    { driver, more: { bogus: "1" }, names: "bogus" },
    { driver, more: { credentials: "/missing" }, names: "credentials" },
  ]),
  { driver: "s3", more: { endpoint: "ftp://x" }, names: "endpoint" },
  { driver: "s3", more: { endpoint: "http://u:p@x" }, names: "endpoint" },
  { driver: "s3", more: { insecure: "true" }, names: "insecure" },
  { driver: "s3", more: { region: "a b" }, names: "region" },
  { driver: "s3", more: { profile: "x" }, names: "profile" },
  { driver: "s3", more: { secret_key: "" }, names: "secret_key" },
  { driver: "s3", more: { remove_versions: "maybe" }, names: "remove_versions" },
  { driver: "s3", more: { storage_policy: "gold" }, names: "storage_policy" },
  { driver: "swift", more: { auth: "v2" }, names: "auth" },
  { driver: "swift", more: { auth: "v1", region: "north" }, names: "region" },
  { driver: "swift", more: { auth: "v1", project: "p" }, names: "project" },
  { driver: "swift", more: { auth: "v1", user_domain: "d" }, names: "user_domain" },
  { driver: "swift", more: { auth: "v1", interface: "public" }, names: "interface" },
  { driver: "swift", more: { storage_url: "http://x/v1/A", region: "north" }, names: "region" },
  { driver: "swift", more: { interface: "private" }, names: "interface" },
  { driver: "swift", more: { key_file: "/missing" }, names: "key_file" },
  { driver: "swift", more: { storage_policy: "a\r\nx: y" }, names: "storage_policy" },
  { driver: "swift", more: { access_key: "AK" }, names: "access_key" },
];

const refusalOf = (url: string, settings = {}): Promise<unknown> =>
  openRepository(url, settings).then(
    () => "opened",
    (error: unknown) => error,
  );

describe("a parameter that cannot be obeyed", () => {
  test.each(refused)("is refused by its name: $driver $more", async ({ driver, more, names }) => {
    const error = await refusalOf(urlOf(driver, { ...needed[driver](), ...more }));
    expect(error).toBeInstanceOf(RepositoryConfigError);
    expect((error as Error).message).toContain(names);
  });

  test.each([
    ["s3://some-bucket?access_key", "access_key has no value"],
    ["swift:c?user", "user has no value"],
    ["s3://b-1?region=a&region=b", "region is there twice"],
    ["nfs:server:/e?zone=a&ca=x", "ca"],
  ])("is refused when it has no value, comes twice or is another driver's: %s", async (url, said) => {
    const error = await refusalOf(url);
    expect(error).toBeInstanceOf(RepositoryConfigError);
    expect((error as Error).message).toContain(said);
  });

  test.each([
    ["posix:/x", { credentials: "/f" }, "credentials"],
    ["nfs:server:/e", { accessKey: "a" }, "access_key"],
    ["swift:c?auth_url=http://x", { secretKey: "a" }, "secret_key"],
  ])("is refused as a setting beside the URL, too: %s", async (url, settings, name) => {
    const error = await refusalOf(url, settings);
    expect(error).toBeInstanceOf(RepositoryConfigError);
    expect((error as Error).message).toContain(name);
  });
});

test.each([
  "s3://bucket/folder",
  "s3://bucket/folder/",
  "s3://Shared_Bucket",
  "s3:http://127.0.0.1:9000/bucket",
  "s3://ab",
  "s3://192.168.0.1",
  "swift:container/folder",
  "swift:.tephra",
])("%s is refused when it is read: a place is one bucket or container, without folders", async (place) => {
  const error = await refusalOf(`${place}?${place.startsWith("s3") ? "" : "auth_url=http://x&user=u&key=k"}`);
  expect(error).toBeInstanceOf(RepositoryConfigError);
});

test("any mixture of parameters is opened or refused with the name of one of them, and never quotes a secret", async () => {
  const names = [
    ...new Set([...obeyed, ...refused].flatMap((each) => ("name" in each ? [each.name] : Object.keys(each.more)))),
  ];
  const text = fc.oneof(
    fc.string(),
    fc.constantFrom("true", "false", "v1", "v3", "1", "5242880", "public", "http://127.0.0.1:1"),
  );
  const mixture = fc.dictionary(fc.constantFrom(...names), text, { maxKeys: 6 });
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...both), mixture, async (driver, mixed) => {
      const secret = `hush-${randomUUID()}`;
      const parameters = {
        ...needed[driver](),
        ...mixed,
        ...(driver === "s3" ? { secret_key: secret } : { key: secret }),
      };
      const outcome = await refusalOf(urlOf(driver, parameters));
      if (outcome === "opened") return;
      expect(outcome).toBeInstanceOf(RepositoryConfigError);
      const { message } = outcome as Error;
      expect(Object.keys(parameters).some((name) => message.includes(name)) || message.includes("zone")).toBe(true);
      expect(message).not.toContain(secret);
    }),
    { numRuns: 300 },
  );
});
