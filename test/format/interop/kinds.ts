import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { openRepository, type Repository } from "@tephra/engine";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";
import { small } from "../backup-fixture.ts";
import type { CinderDriver } from "./cinder.ts";

/** An empty repository that both sides reach. Disposing of it stops its server. */
interface Place extends AsyncDisposable {
  repository: Repository;
  /** Where it is, as a service's configuration says it. */
  configured: { url: string; access_key?: string; secret_key?: string };
  cinder: CinderDriver;
}

interface Kind {
  name: string;
  open(folder: string): Promise<Place>;
}

const { objectBytes, blockBytes } = small;

/** A kind on a server of its own, so that a rescan finds what the test has written and nothing else. */
function onServer(
  name: string,
  sides: (
    server: SwiftServer,
    container: string,
  ) => { configured: Place["configured"]; settings: CinderDriver["settings"] },
): Kind {
  return {
    name,
    async open() {
      await using stack = new AsyncDisposableStack();
      const server = stack.use(await startSwift());
      const { configured, settings } = sides(server, `backups-${randomUUID()}`);
      const { url, access_key: accessKey, secret_key: secretKey } = configured;
      const keys = { ...(accessKey && { accessKey }), ...(secretKey && { secretKey }) };
      const repository = stack.use(await openRepository(url, keys));
      await repository.initialize();
      const owned = stack.move();
      const cinder = { driver: repository.service, settings };
      return { repository, configured, cinder, [Symbol.asyncDispose]: () => owned.disposeAsync() };
    },
  };
}

/** The kinds of repository that Cinder has a driver for, each with its options for that driver. */
export const kinds: readonly Kind[] = [
  {
    name: "posix",
    async open(folder) {
      const root = join(folder, "repository");
      const configured = { url: `posix:${root}` };
      const repository = await openRepository(configured.url);
      await repository.initialize();
      const settings = {
        backup_posix_path: root,
        backup_file_size: objectBytes,
        backup_sha_block_size_bytes: blockBytes,
      };
      return {
        repository,
        configured,
        cinder: { driver: repository.service, settings },
        [Symbol.asyncDispose]: () => repository[Symbol.asyncDispose](),
      };
    },
  },
  onServer("S3", ({ url, user, key }, bucket) => ({
    configured: { url: `s3://${bucket}?endpoint=${url}`, access_key: user, secret_key: key },
    settings: {
      backup_s3_endpoint_url: url,
      backup_s3_store_access_key: user,
      backup_s3_store_secret_key: key,
      backup_s3_store_bucket: bucket,
      backup_s3_object_size: objectBytes,
      backup_s3_block_size: blockBytes,
    },
  })),
  onServer("Swift", ({ url, user, key }, container) => ({
    configured: { url: `swift:${container}?auth=v1&auth_url=${url}/auth/v1.0&user=${user}&key=${key}` },
    settings: {
      backup_swift_auth: "single_user",
      backup_swift_auth_version: "1",
      backup_swift_auth_url: `${url}/auth/v1.0`,
      backup_swift_user: user,
      backup_swift_key: key,
      backup_swift_container: container,
      backup_swift_object_size: objectBytes,
      backup_swift_block_size: blockBytes,
    },
  })),
];
