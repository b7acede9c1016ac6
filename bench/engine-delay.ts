import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { startFlakyProxy } from "../test/harness/flaky-proxy.ts";
import { startSwift } from "../test/harness/swift.ts";
import { backUp, cinderBackUp, GiB, objectBytes } from "./contenders.ts";
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
      note: "the server takes most of both times and shares the processors",
      ours: {
        name: "tephra-engine",
        run: async () => (await backUp(ours(bucketBefore()), image, { compression: "none" })).seconds,
      },
      cinder: {
        name: "cinder",
        run: async () => (await cinderBackUp(cinder(bucketBefore()), [image], { compression: "none" })).seconds,
      },
      others: [],
    },
    home,
    say,
  );
}
