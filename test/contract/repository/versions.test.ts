import { randomUUID } from "node:crypto";
import { ListObjectVersionsCommand, PutBucketVersioningCommand, S3Client } from "@aws-sdk/client-s3";
import { openRepository, type Repository } from "@tephra/engine";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";

const stack = new AsyncDisposableStack();
let server: SwiftServer;
let client: S3Client;
beforeAll(async () => {
  server = stack.use(await startSwift({ versions: true }));
  const credentials = { accessKeyId: server.user, secretAccessKey: server.key };
  client = new S3Client({ endpoint: server.url, region: "us-east-1", forcePathStyle: true, credentials });
  stack.defer(() => client.destroy());
});
afterAll(() => stack.disposeAsync());

async function open(bucket: string, parameters: string): Promise<Repository> {
  const url = `s3://${bucket}?endpoint=${server.url}${parameters}`;
  return stack.use(await openRepository(url, { accessKey: server.user, secretKey: server.key }));
}

/** A bucket that keeps versions. */
async function openVersioned(parameters: string): Promise<{ bucket: string; repository: Repository }> {
  const bucket = `b-${randomUUID()}`;
  const repository = await open(bucket, parameters);
  await repository.ensureContainer(bucket);
  const enabled = { Bucket: bucket, VersioningConfiguration: { Status: "Enabled" } } as const;
  await client.send(new PutBucketVersioningCommand(enabled));
  return { bucket, repository };
}

/** Keys of all versions and markers, in order; without those of the probe, which writes with every opening. */
async function versionsIn(bucket: string): Promise<string[]> {
  const { Versions = [], DeleteMarkers = [] } = await client.send(new ListObjectVersionsCommand({ Bucket: bucket }));
  return [...Versions, ...DeleteMarkers.map((marker) => ({ ...marker, Key: `${marker.Key} (marker)` }))]
    .map(({ Key = "" }) => Key)
    .filter((key) => !key.startsWith(".tephra/"))
    .sort();
}

const ctx = { signal: new AbortController().signal, fence: async () => {} };
const put = (repository: Repository, container: string, name: string, text: string) =>
  repository.putIfAbsent({ container, name }, Buffer.from(text), ctx);

/** An object is written and removed twice; one whose name begins with its own is there throughout. */
async function writeAndRemove(repository: Repository, container: string): Promise<void> {
  await put(repository, container, "object-2", "another");
  for (const text of ["first", "second"]) {
    await put(repository, container, "object", text);
    await repository.remove({ container, name: "object" });
  }
}

it("of a bucket that keeps versions it is said, and what is removed stays there", async () => {
  const { bucket, repository } = await openVersioned("");
  await writeAndRemove(repository, bucket);
  expect((await repository.remarks()).join()).toContain("remove_versions=true");
  expect(await versionsIn(bucket)).toEqual(["object", "object", "object (marker)", "object (marker)", "object-2"]);
});

it("with remove_versions nothing of an object is left, and all of one whose name begins with its own", async () => {
  const { bucket, repository } = await openVersioned("&remove_versions=true");
  await writeAndRemove(repository, bucket);
  expect(await repository.remarks()).toEqual([]);
  expect(await versionsIn(bucket)).toEqual(["object-2"]);
});

it("the option removes what was only hidden before it was set", async () => {
  const { bucket, repository } = await openVersioned("");
  await writeAndRemove(repository, bucket);
  const removing = await open(bucket, "&remove_versions=true");
  await removing.remove({ container: bucket, name: "object" });
  expect(await versionsIn(bucket)).toEqual(["object-2"]);
});
