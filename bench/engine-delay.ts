import { randomUUID } from "node:crypto";
import { openAsBlob } from "node:fs";
import { join } from "node:path";
import { mapConcurrent } from "../packages/engine/src/run/map-concurrent.ts";
import { startFlakyProxy } from "../test/kit/flaky-proxy.ts";
import { startSwift } from "../test/kit/swift.ts";
import { backUp, cinderBackUp, GiB, objectBytes, timed } from "./contenders.ts";
import { compare } from "./engine-compare.ts";
import { writeRandomImage } from "./engine-images.ts";
import type { Measurement, Say } from "./measurement.ts";

const delayMs = 20;

/** Both S3 drivers against one real server, with a proxy before it that holds every request back. */
export async function measureDelayedS3(home: string, say: Say): Promise<Measurement[]> {
  const image = join(home, "random.img");
  await writeRandomImage(image, GiB);
  await using server = await startSwift();
  await using proxy = await startFlakyProxy({ port: server.port });
  proxy.decide = () => ({ delayMs });
  const bucketBefore = (): string => `bench-${randomUUID()}`;
  const ours = (bucket: string): string => {
    const secrets = `access_key=${encodeURIComponent(server.user)}&secret_key=${encodeURIComponent(server.key)}`;
    return `s3://${bucket}?endpoint=${encodeURIComponent(proxy.url)}&${secrets}`;
  };
  const cinder = (bucket: string) => ({
    driver: "cinder.backup.drivers.s3.S3BackupDriver",
    settings: {
      backup_s3_endpoint_url: proxy.url,
      backup_s3_store_access_key: server.user,
      backup_s3_store_secret_key: server.key,
      backup_s3_store_bucket: bucket,
      backup_s3_object_size: objectBytes,
      backup_s3_block_size: 32_768,
    },
  });
  // Awaited here: the server and the proxy end with this function.
  return await compare(
    {
      name: `full, none, random, S3 with ${delayMs} ms added to each request`,
      goal: 4,
      note: "the server has a part in both times: the line of plain puts is its own",
      ours: {
        name: "tephra-engine",
        run: async () => (await backUp(ours(bucketBefore()), image, { compression: "none" })).seconds,
      },
      cinder: {
        name: "cinder",
        run: async () => (await cinderBackUp(cinder(bucketBefore()), [image], { compression: "none" })).seconds,
      },
      others: [{ name: "plain puts to the server, nothing hashed", run: () => putPlainly(server, proxy.url, image) }],
    },
    home,
    say,
  );
}

/** What the server itself needs: the same bytes in the same pieces, four at a time, by its own protocol without a signature. */
async function putPlainly(server: { user: string; key: string }, url: string, image: string): Promise<number> {
  const identity = { "x-auth-user": server.user, "x-auth-key": server.key };
  const { headers } = await fetch(`${url}/auth/v1.0`, { headers: identity });
  const token = { "x-auth-token": headers.get("x-auth-token") ?? "" };
  const account = new URL(headers.get("x-storage-url") ?? "").pathname;
  const container = `${url}${account}/plain-${randomUUID()}`;
  const put = async (target: string, body: Blob | null): Promise<void> => {
    const answer = await fetch(target, { method: "PUT", headers: token, body });
    if (!answer.ok) throw new Error(`PUT ${target}: ${answer.status}`);
  };
  await put(container, null);
  const bytes = await openAsBlob(image);
  const offsets = Array.from({ length: Math.ceil(GiB / objectBytes) }, (_, index) => index * objectBytes);
  return timed(async () => {
    const putOne = (offset: number): Promise<void> =>
      put(`${container}/${offset}`, bytes.slice(offset, offset + objectBytes));
    const stored = mapConcurrent(offsets, putOne, { concurrency: 4, signal: AbortSignal.timeout(600_000) });
    for await (const _ of stored);
  });
}
