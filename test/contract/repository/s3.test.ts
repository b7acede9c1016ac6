import { randomUUID } from "node:crypto";
import { openRepository } from "@tephra/engine";
import { afterAll, beforeAll, describe } from "vitest";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";
import { describeRepository } from "./repository-contract.ts";

const MiB = 1024 * 1024;

describe.each([
  { store: "that obeys If-None-Match", conditionalPut: true },
  { store: "without conditional put", conditionalPut: false },
])("a store $store", ({ conditionalPut }) => {
  let server: SwiftServer;
  beforeAll(async () => {
    server = await startSwift({ conditionalPut });
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const open = (bucket: string, secretKey = server.key) =>
    openRepository(`s3://${bucket}?endpoint=${server.url}&part_bytes=${5 * MiB}&list_page=7`, {
      accessKey: server.user,
      secretKey,
    });

  describeRepository({
    name: "s3",
    prefix: "folders",
    largeBytes: 12 * MiB + 17,
    // Swift, which is behind both, looks for the name when a put begins, not when it ends.
    exclusive: false,
    open: async () => {
      const bucket = `b-${randomUUID()}`;
      const repository = await open(bucket);
      await repository.ensureContainer(bucket);
      return {
        repository,
        container: `c-${randomUUID()}`,
        otherContainer: `d-${randomUUID()}`,
        again: () => open(bucket),
        missing: () => open(`m-${randomUUID()}`),
        denied: () => open(bucket, "wrong"),
        [Symbol.asyncDispose]: () => repository[Symbol.asyncDispose](),
      };
    },
  });
});
