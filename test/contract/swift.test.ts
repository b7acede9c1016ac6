import { randomUUID } from "node:crypto";
import { openRepository } from "@tephra/engine";
import { afterAll, beforeAll, describe } from "vitest";
import { type SwiftServer, startSwift } from "../harness/swift.ts";
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
});
