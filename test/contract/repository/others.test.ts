import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { type Engine, openEngine, openRepository, type Repository, rescan } from "@tephra/engine";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { backUp, freeContext, temporaryFolder } from "../../format/backup-fixture.ts";
import { type FlakyProxy, startFlakyProxy } from "../../kit/flaky-proxy.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";

const execute = promisify(execFile);

let server: SwiftServer;
let proxy: FlakyProxy;
let engine: Engine;
beforeAll(async () => {
  server = await startSwift();
  proxy = await startFlakyProxy(server);
  engine = openEngine({ threads: 1 });
});
afterEach(() => {
  proxy.decide = () => "pass";
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
  await proxy[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const kinds = {
  s3: {
    open: (place: string) =>
      openRepository(`s3://${place}?endpoint=${proxy.url}&retries=1`, {
        accessKey: server.user,
        secretKey: server.key,
      }),
    /** Whether a request is one for the names of all containers. */
    listsAll: (path: string) => path.startsWith("/?"),
    pathOf: (place: string) => `/${place}`,
  },
  swift: {
    open: (place: string) =>
      openRepository(
        `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0&user=${server.user}&key=${server.key}&retries=1&storage_url=${proxy.url}/v1/AUTH_test`,
      ),
    listsAll: (path: string) => /^\/v1\/AUTH_test\/?\?/.test(path),
    pathOf: (place: string) => `/v1/AUTH_test/${place}`,
  },
};

async function storeOne(repository: Repository): Promise<string> {
  await using folder = await temporaryFolder();
  const path = join(folder.path, "volume");
  await writeFile(path, randomBytes(10_000));
  return (await backUp(engine, { repository, path })).backupId;
}

/** What a rescan finds, and what it passes over. */
async function search(repository: Repository): Promise<{ ids: string[]; passedOver: string[] }> {
  const passedOver: string[] = [];
  const found = await rescan(repository, freeContext().signal, (place) => void passedOver.push(place));
  return { ids: found.map(({ backup }) => backup.reference.backupId), passedOver };
}

describe.each(["s3", "swift"] as const)("of what others have in an account of %s", (driver) => {
  const { open, listsAll, pathOf } = kinds[driver];

  test.each([403, 501])("containers that cannot be listed (%i) are none", async (status) => {
    await using repository = await open(`b-${randomUUID()}`);
    await repository.initialize();
    const id = await storeOne(repository);
    proxy.decide = ({ path }) => (listsAll(path) ? { status } : "pass");
    expect(await search(repository)).toEqual({ ids: [id], passedOver: ["the other containers of the account"] });
  });

  test("a container that is closed is passed over and named, and one of our own is a failure", async () => {
    const [place, foreign] = [`b-${randomUUID()}`, `a-${randomUUID()}`];
    await using repository = await open(place);
    await repository.initialize();
    await repository.ensureContainer(foreign);
    const id = await storeOne(repository);
    const closed = (name: string) => (request: { path: string }) =>
      request.path.startsWith(pathOf(name)) ? ({ status: 403 } as const) : ("pass" as const);
    proxy.decide = closed(foreign);
    const { ids, passedOver } = await search(repository);
    expect(ids).toContain(id);
    expect(passedOver).toEqual([foreign]);
    proxy.decide = closed(place);
    await expect(search(repository)).rejects.toMatchObject({ code: "repository_denied" });
  });

  test("a container that is out of order for now is named, and one of our own is a failure that may pass", async () => {
    const [place, foreign] = [`b-${randomUUID()}`, `a-${randomUUID()}`];
    await using repository = await open(place);
    await repository.initialize();
    await repository.ensureContainer(foreign);
    const id = await storeOne(repository);
    const outOfOrder = (name: string) => (request: { path: string }) =>
      request.path.startsWith(pathOf(name)) ? ({ status: 500 } as const) : ("pass" as const);
    proxy.decide = outOfOrder(foreign);
    const { ids, passedOver } = await search(repository);
    expect(ids).toContain(id);
    expect(passedOver).toEqual([foreign]);
    proxy.decide = outOfOrder(place);
    await expect(search(repository)).rejects.toMatchObject({ retryable: true });
  });
});

test.each([403, 501])(
  "uploads that may not be listed (%i) are passed over, and what is staged is found",
  async (status) => {
    await using repository = await kinds.s3.open(`b-${randomUUID()}`);
    await repository.initialize();
    const staged = { container: `.tephra/${randomUUID()}`, name: "slice" };
    await repository.putIfAbsent(staged, Buffer.from("x"), freeContext());
    proxy.decide = ({ path }) => (/[?&]uploads/.test(path) ? { status } : "pass");
    const passedOver: string[] = [];
    const found = await Array.fromAsync(repository.leftovers([], (place) => void passedOver.push(place)));
    expect(found).toMatchObject([{ kind: "staged" }]);
    expect(passedOver).toEqual([`uploads to ${repository.ownContainer}`]);
  },
);

test("credentials that may store and never remove can mark a place and store backups", async () => {
  proxy.decide = ({ method }) => (method === "DELETE" ? { status: 403 } : "pass");
  await using repository = await kinds.s3.open(`b-${randomUUID()}`);
  await repository.initialize();
  await repository.checkWritable();
  await storeOne(repository);
});

test("a folder that the file system or others keep to themselves is passed over and named", async () => {
  await using place = await temporaryFolder();
  const repository = await openRepository(`posix:${place.path}`);
  await repository.initialize();
  const id = await storeOne(repository);
  for (const name of ["lost+found", "theirs", "no\\container"]) await mkdir(join(place.path, name));
  const program = `import { openRepository, rescan } from ${JSON.stringify(join(root, "packages/engine/dist/index.js"))};
    const repository = await openRepository("posix:.");
    const passedOver = [];
    const found = await rescan(repository, new AbortController().signal, (place) => passedOver.push(place));
    console.log(JSON.stringify({ ids: found.map(({ backup }) => backup.reference.backupId), passedOver: passedOver.sort() }));`;
  // Root of a namespace may do what its user may; this one gives up the capability to look into every folder.
  const script =
    'chmod 0 lost+found theirs && exec setpriv --bounding-set -all --inh-caps -all "$NODE" --input-type=module -e "$PROGRAM"';
  const env = { PATH: process.env["PATH"], NODE: projectNode(), PROGRAM: program };
  const { stdout } = await execute("unshare", ["-Urm", "sh", "-ec", script], { cwd: place.path, env });
  expect(JSON.parse(stdout)).toEqual({ ids: [id], passedOver: ["lost+found", "no\\container", "theirs"] });
});
