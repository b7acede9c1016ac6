import { spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmod, chown, mkdir, mkdtemp, open, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openVolumeBackend, type VolumeBackend } from "@tephra/engine";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { resizeImage } from "../../../packages/engine/src/volume/qemu/qemu-img.ts";
import { serveImage } from "../../../packages/engine/src/volume/qemu/qemu-nbd.ts";
import { freeContext } from "../../format/backup-fixture.ts";
import { installQemuUtils, makeEncrypted, qemu, qemuWrite } from "../../kit/qemu-utils.ts";
import { waitFor } from "../../kit/wait-for.ts";

const KiB = 1024;
const sizeBytes = 512 * KiB;
const free = freeContext();

let home: string;
let users: string;
let backend: VolumeBackend;
beforeAll(installQemuUtils, 300_000);
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-adopted-"));
  users = join(home, "users");
  for (const name of ["images", "users", "elsewhere"]) await mkdir(join(home, name));
  backend = await openVolumeBackend({ driver: "qemu", path: join(home, "images"), roots: [users] });
});
afterEach(() => rm(home, { recursive: true, force: true }));

const adopt = (url: string, id = randomUUID()) => backend.adoptImage?.(url, id, free);

/** An image of some format with these bytes. */
async function makeImage(name: string, format: "qcow2" | "raw", bytes: Buffer): Promise<string> {
  const [path, raw] = [join(users, name), join(home, "bytes")];
  await writeFile(raw, bytes);
  await qemu("qemu-img", "convert", "-f", "raw", "-O", format, raw, path);
  return path;
}

async function bytesOf(path: string, format: string): Promise<Buffer> {
  const raw = join(home, "read");
  await qemu("qemu-img", "convert", "-f", format, "-O", "raw", path, raw);
  return readFile(raw);
}

async function readVolume(reference: { volumeId: string } | { snapshotId: string }): Promise<Buffer> {
  await using source = await backend.openSource(reference);
  const bytes = Buffer.alloc(source.sizeBytes);
  await source.read(bytes, 0);
  return bytes;
}

test.each(["qcow2", "raw"] as const)("a %s image is a volume where it lies", { timeout: 120_000 }, async (format) => {
  const bytes = randomBytes(sizeBytes);
  const path = await makeImage("web.img", format, bytes);
  const volumeId = randomUUID();
  for (let run = 0; run < 2; run++) expect(await adopt(`${format}:${path}`, volumeId)).toEqual({ sizeBytes });
  expect(await backend.measure(volumeId)).toEqual({ sizeBytes });
  expect((await readVolume({ volumeId })).equals(bytes)).toBe(true);
  expect(await backend.canFreezeCheaply(volumeId)).toBe(false);

  // Its owner goes on using it: what was frozen or cloned before does not change.
  const [snapshotId, clone] = [randomUUID(), randomUUID()];
  await backend.freeze(volumeId, snapshotId, free);
  await backend.clone({ volumeId }, clone, 2 * sizeBytes, free);
  const changed = Buffer.concat([randomBytes(64 * KiB), bytes.subarray(64 * KiB)]);
  if (format === "raw") await writeFile(path, changed);
  else await qemuWrite(path, changed.subarray(0, 64 * KiB), 0);
  expect((await readVolume({ volumeId })).equals(changed)).toBe(true);
  expect((await readVolume({ snapshotId })).equals(bytes)).toBe(true);
  expect((await readVolume({ volumeId: clone })).subarray(0, sizeBytes).equals(bytes)).toBe(true);

  await backend.extend(volumeId, 2 * sizeBytes);
  const restored = randomBytes(2 * sizeBytes);
  await backend.beginRestore(volumeId, "restore-0", { sizeBytes: 2 * sizeBytes, keepTail: false }, free);
  {
    await using target = await backend.openRestoreTarget(volumeId, "restore-0");
    await target.write(restored, 0);
    await target.flush();
  }
  const { mode } = await stat(path);
  for (let run = 0; run < 2; run++) await backend.publishRestore(volumeId, "restore-0", { fresh: false }, free);
  expect((await bytesOf(path, format)).equals(restored)).toBe(true);
  expect((await stat(path)).mode).toBe(mode);
  expect(await readdir(users)).toEqual(["web.img"]);

  const links = (await Array.fromAsync(backend.leftovers())).filter(({ ids }) => ids.includes(volumeId));
  expect(links.map(({ kind }) => kind)).toEqual(["volume"]);
  await backend.remove(volumeId);
  await expect(backend.openSource({ volumeId })).rejects.toMatchObject({ code: "source_missing" });
  expect((await bytesOf(path, format)).equals(restored)).toBe(true);
});

describe("an image that cannot be a volume is refused in clear words", () => {
  const cases: Record<string, [make: () => Promise<string>, why: string]> = {
    "outside the roots": [
      async () => {
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", join(home, "elsewhere/a"), "1M");
        return `qcow2:${join(home, "elsewhere/a")}`;
      },
      "There is no image",
    ],
    "outside, by a link": [
      async () => {
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", join(home, "elsewhere/a"), "1M");
        await symlink(join(home, "elsewhere/a"), join(users, "a"));
        return `qcow2:${join(users, "a")}`;
      },
      "There is no image",
    ],
    missing: [async () => `qcow2:${join(users, "none")}`, "There is no image"],
    "without a format": [async () => join(users, "a"), "names no image"],
    "of another format": [
      async () => `qcow2:${await makeImage("a", "raw", randomBytes(4096))}`,
      "it is no qcow2 image",
    ],
    "qcow2 named raw": [async () => `raw:${await makeImage("a", "qcow2", randomBytes(4096))}`, "not raw, but qcow2"],
    encrypted: [
      async () => {
        await makeEncrypted(join(users, "a"), "1M");
        return `qcow2:${join(users, "a")}`;
      },
      "it is encrypted",
    ],
    "over a file outside": [
      async () => {
        await writeFile(join(home, "elsewhere/base"), Buffer.alloc(4096));
        const over = ["-b", join(home, "elsewhere/base"), "-F", "raw"];
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", ...over, join(users, "a"));
        return `qcow2:${join(users, "a")}`;
      },
      "in none of the folders where backing files may be",
    ],
    "over a file that is gone": [
      async () => {
        await qemu("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "gone", "-F", "raw", join(users, "a"), "1M");
        return `qcow2:${join(users, "a")}`;
      },
      "cannot be opened (ENOENT)",
    ],
    "over itself": [
      async () => {
        await qemu("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "a", "-F", "qcow2", join(users, "a"), "1M");
        return `qcow2:${join(users, "a")}`;
      },
      "is a circle",
    ],
    "of half a sector": [async () => `raw:${await makeHalf()}`, "is not a number of sectors"],
  };
  const makeHalf = async (): Promise<string> => {
    await writeFile(join(users, "a"), Buffer.alloc(1000));
    return join(users, "a");
  };

  test.each(Object.entries(cases))("(%s)", async (_, [make, why]) => {
    const url = await make();
    await expect(adopt(url)).rejects.toMatchObject({ retryable: false, message: expect.stringContaining(why) });
    expect((await readdir(join(home, "images"))).filter((name) => name.startsWith("adopted"))).toEqual([]);
  });

  test("(in use, or a volume already)", { timeout: 60_000 }, async () => {
    const path = await makeImage("a", "qcow2", randomBytes(4096));
    const writer = spawn("qemu-nbd", ["-t", "-f", "qcow2", "-k", join(home, "s"), path]);
    await waitFor(async () => (await readdir(home)).includes("s"), { what: "the writer is there", timeoutMs: 20_000 });
    await expect(adopt(`qcow2:${path}`)).rejects.toThrow("another program has it open for writing");
    writer.kill();
    await once(writer, "exit");
    const id = randomUUID();
    await adopt(`qcow2:${path}`, id);
    await expect(adopt(`qcow2:${path}`)).rejects.toThrow(`is volume ${id} already`);
  });
});

test("what the owner of an image may not read is not read for him, and no link of his is followed by a restore", {
  timeout: 60_000,
}, async (context) => {
  context.skip(process.geteuid?.() !== 0, "only the superuser can give files away");
  const [path, base, victim] = [join(users, "web.img"), join(users, "base"), join(home, "elsewhere/victim")];
  const bytes = randomBytes(sizeBytes);
  await makeImage("base", "raw", bytes);
  const owner = 4321;
  const volumeId = randomUUID();
  await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path);
  await chown(path, owner, owner);
  await chmod(base, 0o600);
  const refusal = { code: "path_not_allowed", message: expect.stringContaining("is not readable for the owner") };
  await expect(adopt(`qcow2:${path}`, volumeId)).rejects.toMatchObject(refusal);
  await chmod(base, 0o644);
  await adopt(`qcow2:${path}`, volumeId);
  expect((await readVolume({ volumeId })).equals(bytes)).toBe(true);
  await chmod(base, 0o600);
  for (const verb of [
    () => backend.openSource({ volumeId }),
    () => backend.freeze(volumeId, randomUUID(), free),
    () => backend.clone({ volumeId }, randomUUID(), sizeBytes, free),
    () => backend.measure(volumeId),
  ]) {
    await expect(verb(), String(verb)).rejects.toMatchObject(refusal);
  }
  await chmod(base, 0o644);
  await writeFile(victim, "of somebody else");
  await symlink(victim, join(users, ".tephra-restore-restore-0"));
  await backend.beginRestore(volumeId, "restore-0", { sizeBytes, keepTail: false }, free);
  await backend.publishRestore(volumeId, "restore-0", { fresh: false }, free);
  expect(await readFile(victim, "utf8")).toBe("of somebody else");
  expect([await readVolume({ volumeId }), (await stat(path)).uid, (await stat(victim)).uid]).toEqual([
    Buffer.alloc(sizeBytes),
    owner,
    0,
  ]);
  expect((await readdir(users)).sort()).toEqual(["base", "web.img"]);
});

test("an image into whose header another file was written since it was checked is not served nor extended", async () => {
  const [path, secret] = [join(users, "web.img"), join(home, "elsewhere/secret")];
  await writeFile(secret, randomBytes(sizeBytes));
  const named = ["-o", `data_file=${secret},data_file_raw=on`];
  await qemu("qemu-img", "create", "-q", "-f", "qcow2", ...named, path, String(sizeBytes));
  await using file = await open(path, "r");
  const chain = [{ path, format: "qcow2", file }] as const;
  const other = "another file is named in it by now";
  await expect(serveImage(chain, { writable: false })).rejects.toThrow(other);
  await expect(resizeImage(chain, 2 * sizeBytes)).rejects.toThrow(other);
  expect((await stat(secret)).size).toBe(sizeBytes);
});
