import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdir, mkdtemp, open, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openVolumeBackend, type VolumeBackend } from "@tephra/engine";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { freeContext } from "../../format/backup-fixture.ts";
import { times } from "../../kit/long.ts";
import { attachLoopDevice, noLoopDevices } from "../../kit/loop-device.ts";
import { describeVolumeBackend } from "./volume-contract.ts";
import { describeHistories, type JudgedPlace } from "./volume-histories.ts";

const KiB = 1024;
const sizeBytes = 512 * KiB;
const free = freeContext();

interface DevicePlace extends JudgedPlace {
  home: string;
  /** Attaches a device of zeros, or of these bytes, under a name below the roots. @returns the path of that name */
  attach(name: string, bytes?: Buffer): Promise<string>;
}

/** Loop devices over files, named by links in a folder, as volume managers name theirs. */
async function openPlace(): Promise<DevicePlace> {
  const home = await mkdtemp(join(tmpdir(), "tephra-devices-"));
  const [records, roots] = [join(home, "records"), join(home, "disks")];
  for (const folder of [records, roots, join(home, "files")]) await mkdir(folder);
  const again = () => openVolumeBackend({ driver: "device", path: records, roots: [roots] });
  const backend = await again();
  const attach = async (name: string, bytes = Buffer.alloc(sizeBytes)): Promise<string> => {
    const file = join(home, "files", name);
    await writeFile(file, bytes);
    const device = await attachLoopDevice(file);
    if (device === null) throw new Error("no loop device could be attached");
    await symlink(device, join(roots, name));
    return join(roots, name);
  };
  return {
    home,
    backend,
    again,
    attach,
    async provide(id, length) {
      await backend.adoptImage?.(`device:${await attach(id, Buffer.alloc(length))}`, id, free);
    },
    async write(id, bytes, offset) {
      await using file = await open(join(roots, id), "r+");
      await file.write(bytes, 0, bytes.length, offset);
    },
    readElsewhere: async (source) => readFile(join(roots, "volumeId" in source ? source.volumeId : "none")),
    names: async () => (await readdir(records)).filter((name) => !/^\.(?:lock|drafts)$/.test(name)),
    [Symbol.asyncDispose]: () => rm(home, { recursive: true, force: true }),
  };
}

const given = { isGiven: true, missing: noLoopDevices };
describeVolumeBackend({ name: "device", restores: "in-place", open: openPlace, ...given });
describeHistories("device", openPlace, given);

let place: DevicePlace;
let backend: VolumeBackend;
beforeEach(async (context) => {
  const why = await noLoopDevices();
  context.skip(why !== null, why ?? "");
  place = await openPlace();
  ({ backend } = place);
  return () => place[Symbol.asyncDispose]();
});

const adopt = (url: string, id: string = randomUUID()) => backend.adoptImage?.(url, id, free);

describe("a device", () => {
  test("is adopted by the operator's link, once, and stays what it is when the volume goes", async () => {
    const bytes = randomBytes(sizeBytes);
    const path = await place.attach("web", bytes);
    const volumeId = randomUUID();
    for (let run = 0; run < 2; run++) expect(await adopt(`device:${path}`, volumeId)).toEqual({ sizeBytes });
    await symlink(path, join(place.home, "disks/again"));
    await expect(adopt(`device:${place.home}/disks/again`)).rejects.toThrow(`is volume ${volumeId} already`);
    await expect(adopt(`device:${await place.attach("db")}`, volumeId)).rejects.toThrow("already");
    await backend.remove(volumeId);
    expect((await readFile(path)).equals(bytes)).toBe(true);
    expect(await place.names()).toEqual([]);
  });

  test.each([
    "device:/dev/null",
    "device:/etc/passwd",
    "device:ROOT/../files/f",
    "device:ROOT/out/d",
    "device:ROOT/none",
  ])("(%s) out of the roots, or none, is refused in one sentence", async (form) => {
    await mkdir(join(place.home, "elsewhere"));
    await symlink(await place.attach("d"), join(place.home, "elsewhere/d"));
    await symlink(join(place.home, "elsewhere"), join(place.home, "disks/out"));
    const refused = adopt(form.replace("ROOT", join(place.home, "disks")));
    await expect(refused).rejects.toMatchObject({ code: "path_not_allowed", message: /^There is no block device/ });
    expect(await place.names()).toEqual([]);
  });

  test("is refused under another form of name", async () => {
    await expect(adopt(await place.attach("d"))).rejects.toMatchObject({ code: "invalid_volume_url" });
  });

  test("that somebody has claimed is neither adopted, read nor written", async () => {
    const path = await place.attach("web");
    const volumeId = randomUUID();
    await adopt(`device:${path}`, volumeId);
    // As a mount does.
    await using _claimed = await open(path, 0o2 | 0o200);
    for (const verb of [
      () => adopt(`device:${path}`),
      () => backend.openSource({ volumeId }),
      () => backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: true }, free),
    ]) {
      await expect(verb(), String(verb)).rejects.toMatchObject({ code: "volume_conflict", message: /is in use/ });
    }
    expect(await place.names()).toEqual([`device-${volumeId}`]);
  });

  test("is read by several at a time", async () => {
    const volumeId = randomUUID();
    await place.provide?.(volumeId, sizeBytes);
    const sources = await Promise.all(Array.from({ length: 16 }, () => backend.openSource({ volumeId })));
    for (const source of sources) await source[Symbol.asyncDispose]();
  });

  test("is not taken for another one that has its name now", async () => {
    const path = await place.attach("web");
    const volumeId = randomUUID();
    await adopt(`device:${path}`, volumeId);
    const other = await place.attach("other");
    await rm(path);
    await symlink(other, path);
    for (const verb of [
      () => backend.openSource({ volumeId }),
      () => backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: true }, free),
    ]) {
      await expect(verb(), String(verb)).rejects.toMatchObject({
        code: "path_not_allowed",
        message: /is another device/,
      });
    }
  });
});

describe("a restore in place", () => {
  const lengths = { sizeBytes, keepTail: true };

  /** A process that writes the volume, until it is killed. */
  async function startWriter(volumeId: string, restoreId: string): Promise<ChildProcess> {
    const program = fileURLToPath(new URL("../../kit/late-writer.ts", import.meta.url));
    const settings = { driver: "device", path: join(place.home, "records"), roots: [join(place.home, "disks")] };
    const args = [program, JSON.stringify(settings), volumeId, restoreId];
    const writer = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    onTestFinished(() => void writer.kill("SIGKILL"));
    await once(writer.stdout as NonNullable<typeof writer.stdout>, "data");
    return writer;
  }

  async function restore(volumeId: string, restoreId: string, bytes: Buffer): Promise<void> {
    await backend.beginRestore(volumeId, restoreId, lengths, free);
    {
      await using target = await backend.openRestoreTarget(volumeId, restoreId);
      await target.write(bytes, 0);
      await target.flush();
    }
    await backend.publishRestore(volumeId, restoreId, { fresh: true }, free);
  }

  test("is never published with a byte of a writer that was given up", { timeout: 900_000 }, async () => {
    const volumeId = randomUUID();
    await place.provide?.(volumeId, sizeBytes);
    for (let round = 0; round < times({ usual: 10, long: 50 }); round++) {
      const operation = randomUUID();
      const writer = await startWriter(volumeId, `${operation}-1`);
      const isPaused = round % 2 === 0;
      if (isPaused) {
        writer.kill("SIGSTOP");
        const passing = {
          code: "volume_storage",
          retryable: true,
          message: expect.stringContaining("has not let go of"),
        };
        await expect(backend.beginRestore(volumeId, `${operation}-2`, lengths, free)).rejects.toMatchObject(passing);
        writer.kill("SIGCONT");
        await expect(backend.beginRestore(volumeId, `${operation}-2`, lengths, free)).rejects.toMatchObject(passing);
      }
      const gone = once(writer, "exit");
      writer.kill("SIGKILL");
      const bytes = randomBytes(sizeBytes);
      // While the kernel still ends the writer.
      await restore(volumeId, `${operation}-2`, bytes);
      expect((await readFile(join(place.home, "disks", volumeId))).equals(bytes), `round ${round}`).toBe(true);
      await gone;
      expect((await readFile(join(place.home, "disks", volumeId))).equals(bytes), `round ${round}`).toBe(true);
      expect(await place.names()).toEqual([`device-${volumeId}`]);
    }
  });

  test("that another machine has begun is left to a person, who is told what to check", async () => {
    const volumeId = randomUUID();
    await place.provide?.(volumeId, sizeBytes);
    const record = join(place.home, "records", `restoring-${volumeId}`);
    const elsewhere = { restoreId: "restore-0", boot: randomUUID(), host: "web1", process: 7 };
    for (const left of [JSON.stringify(elsewhere), "", "null"]) {
      await writeFile(record, left);
      const before = await readFile(join(place.home, "disks", volumeId));
      const sentence = expect.stringMatching(
        /host (?:web1|unknown).* was interrupted .*remove .*restoring-.* and restore again/,
      );
      const refusal = { code: "volume_conflict", retryable: false, message: sentence };
      await expect(backend.beginRestore(volumeId, "restore-1", lengths, free)).rejects.toMatchObject(refusal);
      await expect(backend.remove(volumeId)).rejects.toMatchObject(refusal);
      await expect(backend.openRestoreTarget(volumeId, "restore-0")).rejects.toMatchObject({ code: "volume_conflict" });
      await backend.abandonRestore("restore-0");
      expect(await readFile(record, "utf8")).toBe(left);
      expect((await readFile(join(place.home, "disks", volumeId))).equals(before)).toBe(true);
    }
    await rm(record);
    await restore(volumeId, "restore-1", randomBytes(sizeBytes));
  });

  test("is neither continued by an earlier run nor begun by one that has lost its lease", async () => {
    const volumeId = randomUUID();
    await place.provide?.(volumeId, sizeBytes);
    await backend.beginRestore(volumeId, "restore-1", lengths, free);
    await backend.beginRestore(volumeId, "restore-2", lengths, free);
    for (const verb of [
      () => backend.openRestoreTarget(volumeId, "restore-1"),
      () => backend.publishRestore(volumeId, "restore-1", { fresh: false }, free),
    ]) {
      await expect(verb(), String(verb)).rejects.toMatchObject({ code: "volume_conflict" });
    }
    const lost = new Error("the lease is lost");
    const fence = (): void => {
      throw lost;
    };
    await expect(backend.beginRestore(volumeId, "restore-3", lengths, freeContext({ fence }))).rejects.toBe(lost);
    await backend.abandonRestore("restore-1");
    await restore(volumeId, "restore-2", randomBytes(sizeBytes));
    expect(await place.names()).toEqual([`device-${volumeId}`]);
  });
});
