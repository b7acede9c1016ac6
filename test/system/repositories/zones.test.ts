import { mkdtempSync, rmSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const backups = `/v3/${project}/backups`;
const latest = { "openstack-api-version": "volume 3.71" };

const countFiles = async (folder: string): Promise<number> =>
  (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile()).length;

it("keeps backups in a zone that holds nothing else, chains across zones, and fails one for a zone that is not there", async () => {
  await using stack = new AsyncDisposableStack();
  const places = mkdtempSync(join(tmpdir(), "tephra-zones-"));
  stack.defer(() => rmSync(places, { recursive: true, force: true }));
  const repositories = ["near", "far"].map((name) => ({
    name,
    url: `posix:${join(places, name)}`,
    zone: name === "near" ? "nova" : "vault",
  }));
  for (const { url } of repositories) await initialiseRepository(url);
  const config = { repositories, tasks: { unplaced_timeout_ms: 1_000, reconcile_ms: 300 } };
  const instance = stack.use(await startInstance({ config }));
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 8 * MiB, [{ offset: MiB, data: randomBytesOf("zones", 2 * MiB) }]);
  const volume = await user.importVolume(image);
  const empty = await countFiles(join(places, "far"));
  const create = async (fields: object) => {
    const reply = await instance.request("POST", backups, { backup: { volume_id: volume, ...fields } }, latest);
    expect(reply.status, reply.text).toBe(202);
    return reply.body.backup.id as string;
  };
  const show = async (id: string) => (await user.get(`${backups}/${id}`)).backup;

  const full = await create({ availability_zone: "vault" });
  expect((await show(full)).availability_zone).toBe("vault");
  await user.settled("backups", full, "available");
  expect(await countFiles(join(places, "far"))).toBeGreaterThan(empty);
  expect(await countFiles(join(places, "near"))).toBe(empty);

  await writeIslands(user.volumeFile(volume), null, [{ offset: 5 * MiB, data: randomBytesOf("more", MiB) }]);
  const here = await create({ incremental: true, availability_zone: "nova" });
  await user.settled("backups", here, "available");
  expect(await countFiles(join(places, "near"))).toBeGreaterThan(empty);
  const there = await create({ incremental: true });
  await user.settled("backups", there, "available");
  expect((await show(there)).availability_zone).toBe("nova");
  await user.expectExact(there, await sha256Of(user.volumeFile(volume)));
  await user.expectExact(full, await sha256Of(image));

  const zones = (await instance.request("GET", `${backups}?availability_zone=vault`)).body.backups;
  expect(zones.map((backup: { id: string }) => backup.id)).toEqual([full]);

  const nowhere = await create({ availability_zone: "nowhere" });
  await user.settled("backups", nowhere, "error");
  expect(await show(nowhere)).toMatchObject({
    availability_zone: "nowhere",
    fail_reason: "Service not found for creating backup.",
  });
  expect((await user.get(`/v3/${project}/volumes/${volume}`)).volume.status).toBe("available");
  await user.expectQuiet();
});
