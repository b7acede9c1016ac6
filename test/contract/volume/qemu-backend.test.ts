import { execFile, spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { openVolumeBackend, VolumeConflictError } from "@tephra/engine";
import { afterEach, beforeEach, expect, test } from "vitest";
import { freeContext, temporaryFolder } from "../../format/backup-fixture.ts";
import { installQemuUtils, qemu, qemuWrite } from "../../kit/qemu-utils.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { describeVolumeBackend } from "./volume-contract.ts";
import { describeHistories, type JudgedPlace } from "./volume-histories.ts";

await installQemuUtils();

const KiB = 1024;
const free = freeContext();

const open = async (): Promise<JudgedPlace & { path: string }> => {
  const path = await mkdtemp(join(tmpdir(), "tephra-images-"));
  const again = () => openVolumeBackend({ driver: "qemu", path });
  return {
    path,
    backend: await again(),
    again,
    write: (id, bytes, offset) => qemuWrite(join(path, `volume-${id}`), bytes, offset),
    readElsewhere: async (source) => {
      const name = "volumeId" in source ? `volume-${source.volumeId}` : `snapshot-${source.snapshotId}`;
      await qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", join(path, name), join(path, ".raw"));
      return readFile(join(path, ".raw"));
    },
    names: async () => (await readdir(path)).filter((name) => !/^\.(?:lock|merging|drafts|raw)$/.test(name)),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
};

describeVolumeBackend({ name: "qemu", restores: "aside", keepsWritersOff: true, open });
describeHistories("qemu", open);

let place: JudgedPlace & { path: string };
beforeEach(async () => {
  place = await open();
});
afterEach(() => place[Symbol.asyncDispose]());

test("snapshots that are gone leave neither layers nor a longer chain, and cost no second copy", {
  timeout: 120_000,
}, async () => {
  const { backend } = place;
  const id = randomUUID();
  const bytes = randomBytes(1024 * KiB);
  await backend.create(id, bytes.length);
  await place.write(id, bytes, 0);
  for (let round = 0; round < 3; round++) {
    const snapshots = [randomUUID(), randomUUID()];
    for (const snapshot of snapshots) {
      await backend.freeze(id, snapshot, free);
      bytes.set(randomBytes(64 * KiB), 128 * KiB * (2 * round + 1));
      await place.write(id, bytes.subarray(0, 1024 * KiB), 0);
    }
    for (const snapshot of snapshots) await backend.thaw(snapshot);
  }
  expect(await place.names()).toEqual([`volume-${id}`]);
  expect((await stat(join(place.path, `volume-${id}`))).blocks * 512).toBeLessThan(2 * bytes.length);
  expect((await place.readElsewhere({ volumeId: id })).equals(bytes)).toBe(true);
});

test("an image that another program has open for writing is neither read, frozen, extended nor replaced", {
  timeout: 120_000,
}, async () => {
  const { backend } = place;
  const id = randomUUID();
  await backend.create(id, 256 * KiB);
  await backend.beginRestore(id, "restore-0", { sizeBytes: 256 * KiB, keepTail: false }, free);
  const socket = join(place.path, "s");
  const writer = spawn("qemu-nbd", ["-t", "-f", "qcow2", "-k", socket, join(place.path, `volume-${id}`)]);
  await waitFor(async () => (await readdir(place.path)).includes("s"), {
    what: "the writer is there",
    timeoutMs: 20_000,
  });
  const snapshotId = randomUUID();
  for (const verb of [
    () => backend.openSource({ volumeId: id }),
    () => backend.freeze(id, snapshotId, free),
    () => backend.extend(id, 512 * KiB),
    () => backend.publishRestore(id, "restore-0", { fresh: false }, free),
  ]) {
    await expect(verb(), String(verb)).rejects.toMatchObject({ code: "volume_storage", retryable: true });
  }
  writer.kill();
  await once(writer, "exit");
  await backend.freeze(id, snapshotId, free);
  await backend.publishRestore(id, "restore-0", { fresh: false }, free);
  expect((await place.readElsewhere({ volumeId: id })).length).toBe(256 * KiB);
});

test("a file is imported and exported raw, in whole sectors", async () => {
  const { backend } = place;
  await using users = await temporaryFolder();
  const places = { roots: [users.path] };
  const [from, to] = [join(users.path, "in"), join(users.path, "out")];
  const bytes = randomBytes(5000);
  await writeFile(from, bytes);
  const id = randomUUID();
  expect(await backend.statImport(from, places)).toEqual({ sizeBytes: 5120 });
  expect(await backend.importFile(from, id, places, free)).toEqual({ sizeBytes: 5120 });
  await backend.importIfAbsent(from, id, places, free);
  const run = { operationId: randomUUID(), claim: 0 };
  await backend.exportFile(id, to, { places, run, overwrite: false }, free);
  expect((await readFile(to)).equals(Buffer.concat([bytes, Buffer.alloc(120)]))).toBe(true);
  await writeFile(from, randomBytes(5000));
  await expect(backend.importIfAbsent(from, id, places, free)).rejects.toBeInstanceOf(VolumeConflictError);
});

test("without QEMU's programs the backend is unavailable, and says why", async () => {
  const program = fileURLToPath(new URL("../../kit/qemu-verbs.ts", import.meta.url));
  const env = { ...process.env, PATH: place.path };
  const failing = promisify(execFile)(process.execPath, [program, place.path, "create"], { env });
  await expect(failing).rejects.toMatchObject({
    stderr: expect.stringContaining("qemu-img is not installed (package qemu-utils)"),
  });
});
