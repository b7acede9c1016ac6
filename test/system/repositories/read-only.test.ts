import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { openRepository } from "@tephra/engine";
import { expect, it } from "vitest";
import { startFlakyProxy } from "../../kit/flaky-proxy.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { startSwift } from "../../kit/swift.ts";

const MiB = 1024 * 1024;

it("a service restores, verifies and rescans what it can only read, and says why it makes no backup there", async () => {
  await using server = await startSwift();
  await using proxy = await startFlakyProxy(server);
  const url = `s3://b-${randomUUID()}?endpoint=${proxy.url}`;
  const keys = { accessKey: server.user, secretKey: server.key };
  await using repository = await openRepository(url, keys);
  await repository.initialize();
  const stored = { name: "main", url, access_key: keys.accessKey, secret_key: keys.secretKey, object_bytes: MiB };
  await using instance = await startInstance({
    workers: 1,
    config: {
      repositories: [stored],
      range_bytes: 2 * MiB,
      tasks: { unplaced_timeout_ms: 1_000, reconcile_ms: 300 },
    },
  });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 7 * MiB, [{ offset: 0, data: randomBytesOf("read-only", 6 * MiB) }]);
  const volume = await user.importVolume(image);
  const backup = await user.backUp(volume);

  proxy.decide = ({ method }) => (/^(?:GET|HEAD)$/.test(method) ? "pass" : { status: 403 });
  const [worker] = instance.workers;
  await worker?.stop();
  await instance.startWorker();
  const [registered] = await instance.sql(
    "SELECT reaches, unreachable FROM workers ORDER BY heartbeat_at DESC LIMIT 1",
  );
  expect(registered.reaches).toContain("repository-read:main");
  expect(registered.reaches).not.toContain("repository:main");
  expect(registered.unreachable["repository:main"]).toContain("403");

  await user.expectExact(backup, await sha256Of(image));
  const { operation } = await user.accepted("POST", `/ops/backups/${backup}/verify`, { mode: "deep" });
  const ended = async (id: string) => {
    return instance.waitFor(
      async () => {
        const { operation: row } = await user.get(`/ops/operations/${id}`);
        return ["succeeded", "failed", "cancelled"].includes(row.state) && row;
      },
      { what: `operation ${id} has ended`, timeoutMs: 60_000 },
    );
  };
  expect(await ended(operation.id)).toMatchObject({ result: { verify: { damaged: [] } } });
  const rescan = await user.accepted("POST", "/ops/repositories/main/rescan", {});
  expect(await ended(rescan.operation.id)).toMatchObject({ result: { found: 1, problems: [] } });

  const refused = await user.startBackup(volume, { force: true });
  const failed = (await user.settled("backups", refused, "error")) as { fail_reason?: string };
  expect(failed.fail_reason).toMatch(/Service not found for creating backup.*403/);
  await user.settled("volumes", volume, "available");
}, 400_000);
