import { rename } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { startTephra } from "../../kit/tephra-command.ts";

const MiB = 1024 * 1024;

it("a backup that has failed is made good by a retry, once what failed it is mended", async () => {
  await using instance = await startInstance();
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 8 * MiB, [{ offset: 0, data: randomBytesOf("image", 8 * MiB) }]);
  const volume = await user.importVolume(image);
  const retry = async (id: string) => {
    const command = ["operation", "retry", id, "--wait", "--url", instance.url, "--json"];
    const { status, json, stderr } = await startTephra(command).finished;
    expect(status, stderr).toBe(0);
    return (await user.get(`/ops/operations/${json.operation.id}`)).operation;
  };

  const file = user.volumeFile(volume);
  await rename(file, `${file}.away`);
  await user.startBackup(volume);
  const query = `volume_id=${volume}&state=failed`;
  await instance.waitFor(() => user.operation(query), { what: "the backup has failed", timeoutMs: 60_000 });
  const backUp = await user.operation(query);
  await rename(`${file}.away`, file);
  const made = await retry(backUp.id);
  expect([made.kind, made.state, made.backup_id === backUp.backup_id]).toEqual(["backup-create", "succeeded", false]);

  await user.expectExact(made.backup_id, await sha256Of(image));
});
