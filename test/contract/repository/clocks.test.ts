import { randomBytes, randomUUID } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { unpackFaketime } from "../../../scripts/faketime-package.ts";
import { temporaryFolder } from "../../format/backup-fixture.ts";
import { engineIn } from "../../kit/engine-command.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";

let server: SwiftServer;
beforeAll(async () => {
  server = await startSwift();
});
afterAll(() => server[Symbol.asyncDispose]());

it("a machine whose clock is an hour off the store's backs up to S3 and restores", async () => {
  const faketime = await unpackFaketime((line) => process.stderr.write(`${line}\n`));
  await using folder = await temporaryFolder();
  const credentials = join(folder.path, "credentials.json");
  writeFileSync(credentials, JSON.stringify({ access_key: server.user, secret_key: server.key }));
  const url = `s3://b-${randomUUID()}?endpoint=${server.url}&credentials=${encodeURIComponent(credentials)}`;
  const repository = ["--repository", url];
  const image = join(folder.path, "disk.img");
  writeFileSync(image, randomBytes(3 * 1024 * 1024));
  const fast = engineIn(folder.path, faketime("+1h"));
  const slow = engineIn(folder.path, faketime("-1h"));

  await expect(fast.engine("init", ...repository)).resolves.toMatchObject({ status: 0, stderr: "" });
  const made = await slow.engine("backup", ...repository, "--source", image, "--object-bytes", "524288", "--json");
  expect(made).toMatchObject({ status: 0, stderr: "" });
  const { id } = JSON.parse(made.stdout).backup;
  const target = join(folder.path, "restored.img");
  const restored = await fast.engine("restore", ...repository, "--backup", id, "--target", target);
  expect(restored).toMatchObject({ status: 0, stderr: "" });
  expect(readFileSync(target).equals(readFileSync(image))).toBe(true);
});
