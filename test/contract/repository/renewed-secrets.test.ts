import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFile, rename, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { createServer } from "node:tls";
import { promisify } from "node:util";
import { openRepository, RepositoryConfigError, RepositoryDeniedError } from "@tephra/engine";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { temporaryFolder } from "../../format/backup-fixture.ts";
import { type FlakyProxy, type SeenRequest, startFlakyProxy } from "../../kit/flaky-proxy.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";
import { waitFor } from "../../kit/wait-for.ts";

const execute = promisify(execFile);
const free = { signal: new AbortController().signal, fence: () => {} };
const second = { user: "test:second", key: "secondkey" };

let server: SwiftServer;
let proxy: FlakyProxy;
let folder: Awaited<ReturnType<typeof temporaryFolder>>;
beforeAll(async () => {
  server = await startSwift({ otherUsers: { [second.user]: second.key } });
  proxy = await startFlakyProxy(server);
});
beforeEach(async () => {
  folder = await temporaryFolder();
});
afterEach(async () => {
  proxy.decide = () => "pass";
  await folder[Symbol.asyncDispose]();
});
afterAll(async () => {
  await proxy[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

/** As those who renew secrets do it: the new file takes the old one's place at once. */
async function replace(path: string, text: string): Promise<void> {
  await writeFile(`${path}.new`, text, { mode: 0o600 });
  await rename(`${path}.new`, path);
}

const keysOf = ({ user, key }: { user: string; key: string }, names = ["access_key", "secret_key"]): string =>
  JSON.stringify({ [String(names[0])]: user, [String(names[1])]: key });

const signedBy =
  (user: string) =>
  ({ headers }: SeenRequest): boolean =>
    String(headers.authorization).includes(`Credential=${user}/`);

describe("keys of S3", () => {
  test("that end and are renewed in their file cost a refusal, not a backup", async () => {
    const path = join(folder.path, "keys");
    await replace(path, keysOf(server));
    await using repository = await openRepository(`s3://b-${randomUUID()}?endpoint=${proxy.url}&credentials=${path}`);
    await repository.initialize();
    const container = repository.ownContainer as string;
    await replace(path, keysOf(second));
    proxy.decide = (request) => (signedBy(server.user)(request) ? { status: 403 } : "pass");
    const put = (name: string) => repository.putIfAbsent({ container, name }, randomBytes(1000), free);
    expect(await Promise.all(["a", "b", "c"].map(put))).toEqual(["stored", "stored", "stored"]);
    expect((await Array.fromAsync(repository.list(container, ""))).map(({ name }) => name)).toEqual(["a", "b", "c"]);
    proxy.decide = () => ({ status: 403 });
    await expect(repository.identity()).rejects.toBeInstanceOf(RepositoryDeniedError);
  });

  test("hold while their file cannot be read, and must be there at first", async () => {
    const path = join(folder.path, "keys");
    const url = `s3://b-${randomUUID()}?endpoint=${proxy.url}&credentials=${path}`;
    await expect(openRepository(url)).rejects.toBeInstanceOf(RepositoryConfigError);
    await replace(path, keysOf(server));
    await using repository = await openRepository(url);
    await repository.initialize();
    await replace(path, "{");
    await waitFor(async () => repository.identity(), { what: "an identity", timeoutMs: 5_000 });
    expect(await repository.identity()).toBeDefined();
  });

  test("come from where Amazon's client looks when none are given, and their lack is said", async () => {
    const before = { ...process.env };
    const profiles = join(folder.path, "profiles");
    const line = (name: string, value: string) => `aws_${name} = ${value}\n`;
    await writeFile(profiles, `[other]\n${line("access_key_id", server.user)}${line("secret_access_key", server.key)}`);
    const place = `b-${randomUUID()}`;
    try {
      Object.assign(process.env, {
        AWS_EC2_METADATA_DISABLED: "true",
        AWS_SHARED_CREDENTIALS_FILE: profiles,
        AWS_CONFIG_FILE: join(folder.path, "missing"),
      });
      for (const name of ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"]) delete process.env[name];
      await using none = await openRepository(`s3://${place}?endpoint=${proxy.url}`);
      const failure = none.identity();
      await expect(failure).rejects.toBeInstanceOf(RepositoryDeniedError);
      await expect(failure).rejects.toThrow("no credentials");
      await using other = await openRepository(`s3://${place}?endpoint=${proxy.url}&profile=other`);
      const made = await other.initialize();
      Object.assign(process.env, { AWS_ACCESS_KEY_ID: second.user, AWS_SECRET_ACCESS_KEY: second.key });
      proxy.decide = (request) => (signedBy(second.user)(request) ? "pass" : { status: 403 });
      await using fromEnvironment = await openRepository(`s3://${place}?endpoint=${proxy.url}`);
      expect(await fromEnvironment.identity()).toEqual(made);
    } finally {
      for (const name of Object.keys(process.env)) delete process.env[name];
      Object.assign(process.env, before);
    }
  });
});

describe("keys of Swift", () => {
  test.each(["key_file", "credentials"])("are read again from %s with each authentication", async (parameter) => {
    const path = join(folder.path, "key");
    const text = ({ user, key }: { user: string; key: string }) =>
      parameter === "key_file" ? `${key}\n` : keysOf({ user, key }, ["user", "key"]);
    await replace(path, text(server));
    const user = parameter === "key_file" ? `&user=${server.user}` : "";
    const url =
      `swift:b-${randomUUID()}?auth=v1&auth_url=${proxy.url}/auth/v1.0${user}&${parameter}=${path}` +
      `&storage_url=${proxy.url}/v1/AUTH_test`;
    await using repository = await openRepository(url);
    await repository.initialize();
    const renewed = parameter === "key_file" ? { user: server.user, key: "renewed" } : second;
    await replace(path, text(renewed));
    // The token that the old key got is no longer good.
    let ended = false;
    proxy.decide = ({ path: asked }) => {
      if (ended || asked.startsWith("/auth")) return "pass";
      ended = true;
      return { status: 401 };
    };
    await repository.identity().catch(() => {});
    const logins = proxy.seen.filter(({ path: asked }) => asked.startsWith("/auth"));
    expect(logins.at(-1)?.headers).toMatchObject({ "x-auth-user": renewed.user, "x-auth-key": renewed.key });
  });
});

test("no put waits to be asked for its body", async () => {
  await using repository = await openRepository(`s3://b-${randomUUID()}?endpoint=${proxy.url}`, {
    accessKey: server.user,
    secretKey: server.key,
  });
  await repository.initialize();
  const key = { container: repository.ownContainer as string, name: "object" };
  await repository.putIfAbsent(key, randomBytes(9 * 1024 * 1024), free);
  expect(proxy.seen.filter(({ headers }) => headers.expect !== undefined)).toEqual([]);
});

test("certificates that are renewed in their file are trusted with the next connection", async () => {
  const made = async (name: string) => {
    const [key, cert] = [join(folder.path, `${name}.key`), join(folder.path, `${name}.pem`)];
    const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"];
    const options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key, "-out", cert];
    await execute("openssl", ["req", ...options, ...subject]);
    return { key: await readFile(key, "utf8"), cert: await readFile(cert, "utf8") };
  };
  const [mine, others] = [await made("mine"), await made("others")];
  const tls = createServer({ key: mine.key, cert: mine.cert }, (socket) => {
    const through = connect(server.port, "127.0.0.1");
    for (const each of [socket, through]) each.on("error", () => {}).on("close", () => each.destroy());
    socket.pipe(through).pipe(socket);
  });
  tls.listen(0, "127.0.0.1");
  await once(tls, "listening");
  const address = tls.address();
  if (address === null || typeof address === "string") throw new Error("no port was given");
  const url = `https://127.0.0.1:${address.port}`;
  const trusted = join(folder.path, "trusted.pem");
  await replace(trusted, others.cert);
  const place = `b-${randomUUID()}`;
  await using s3 = await openRepository(`s3://${place}?endpoint=${url}&ca=${trusted}&retries=1`, {
    accessKey: server.user,
    secretKey: server.key,
  });
  await using swift = await openRepository(
    `swift:${place}?auth=v1&auth_url=${url}/auth/v1.0&user=${server.user}&key=${server.key}&storage_url=${url}/v1/AUTH_test&ca=${trusted}&retries=1`,
  );
  try {
    for (const repository of [s3, swift]) {
      await expect(repository.identity()).rejects.toMatchObject({ code: "repository_unavailable", retryable: false });
    }
    await replace(trusted, mine.cert);
    await waitFor(async () => s3.initialize().catch(() => null), {
      what: "the certificate is trusted",
      timeoutMs: 10_000,
    });
    const made = await s3.identity();
    expect(await waitFor(async () => swift.identity().catch(() => null), { what: "trust", timeoutMs: 10_000 })).toEqual(
      made,
    );
  } finally {
    tls.close();
  }
});
