import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { appendFileSync } from "node:fs";
import { link, mkdir, mkdtemp, open, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  BackendUnavailableError,
  openFileSource,
  openVolumeBackend,
  PathNotAllowedError,
  PathTakenError,
  type RunContext,
  removeExportDrafts,
  SourceChangedError,
  SourceMissingError,
  type VolumeBackend,
  VolumeConflictError,
} from "@tephra/engine";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { describeVolumeBackend } from "./volume-contract.ts";
import { describeHistories, type JudgedPlace } from "./volume-histories.ts";

const openPlace = async (): Promise<JudgedPlace> => {
  const path = await mkdtemp(join(tmpdir(), "tephra-volumes-"));
  const again = () => openVolumeBackend({ driver: "file", path });
  return {
    backend: await again(),
    again,
    write: async (id, bytes, offset) => {
      const file = await open(join(path, `volume-${id}`), "r+");
      await file.write(bytes, 0, bytes.length, offset);
      await file.close();
    },
    readElsewhere: (source) =>
      readFile(join(path, "volumeId" in source ? `volume-${source.volumeId}` : `snapshot-${source.snapshotId}`)),
    names: async () => (await readdir(path)).filter((name) => name !== ".drafts"),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
};

describeVolumeBackend({ name: "file", restores: "aside", open: openPlace });
describeHistories("file", openPlace);

const free: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const mebibyte = 1024 * 1024;

let home: string;
let folder: string;
let backend: VolumeBackend;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-volumes-"));
  folder = join(home, "volumes");
  await mkdir(folder);
  backend = await openVolumeBackend({ driver: "file", path: folder });
});
afterEach(() => rm(home, { recursive: true, force: true }));

const volumePath = (id: string): string => join(folder, `volume-${id}`);

async function fill(id: string, bytes: Uint8Array): Promise<void> {
  await writeFile(volumePath(id), bytes);
}

/** Everything in the folder but the one for drafts, which must be empty. */
async function names(): Promise<string[]> {
  const all = await readdir(folder);
  if (all.includes(".drafts")) expect(await readdir(join(folder, ".drafts"))).toEqual([]);
  return all.filter((name) => name !== ".drafts").sort();
}

test.each(["missing", "file"])("a %s is no folder of volumes", async (name) => {
  await writeFile(join(home, "file"), "");
  await expect(openVolumeBackend({ driver: "file", path: join(home, name) })).rejects.toBeInstanceOf(
    BackendUnavailableError,
  );
});

describe("volumes", () => {
  test("a new volume is sparse, reads as zeros, and creating it again is success", async () => {
    await backend.create("v1", 10 * mebibyte + 3);
    await backend.create("v1", 10 * mebibyte + 3);
    await using source = await backend.openSource({ volumeId: "v1" });
    expect(source.sizeBytes).toBe(10 * mebibyte + 3);
    expect(await Array.fromAsync(source.dataExtents({ offset: 0, length: source.sizeBytes }))).toEqual([]);
    expect((await stat(volumePath("v1"))).blocks).toBe(0);
    expect((await stat(volumePath("v1"))).mode & 0o777).toBe(0o660);
    await expect(backend.create("v1", 5)).rejects.toBeInstanceOf(VolumeConflictError);
    expect(await names()).toEqual(["volume-v1"]);
  });

  test("removing twice is success", async () => {
    await backend.create("v1", 1);
    await backend.remove("v1");
    await backend.remove("v1");
    expect(await names()).toEqual([]);
    await expect(backend.openSource({ volumeId: "v1" })).rejects.toBeInstanceOf(SourceMissingError);
  });

  test("holes and data are told apart", async () => {
    await backend.create("v1", 8 * mebibyte);
    const file = await open(volumePath("v1"), "r+");
    await file.write(randomBytes(65536), 0, 65536, 4 * mebibyte);
    await file.sync();
    await file.close();
    await using source = await backend.openSource({ volumeId: "v1" });
    const extents = await Array.fromAsync(source.dataExtents({ offset: 0, length: 8 * mebibyte }));
    expect(extents).toEqual([{ offset: 4 * mebibyte, length: 65536 }]);
    expect(await Array.fromAsync(source.dataExtents({ offset: 4 * mebibyte + 7, length: 9 }))).toEqual([
      { offset: 4 * mebibyte + 7, length: 9 },
    ]);
  });

  test("a source that has become shorter is SourceChangedError, not zeros", async () => {
    await fill("v1", randomBytes(10000));
    await using source = await backend.openSource({ volumeId: "v1" });
    const before = await source.fingerprint();
    await fill("v1", randomBytes(5000));
    expect(await source.fingerprint()).not.toBe(before);
    await expect(source.read(new Uint8Array(1000), 4500)).rejects.toBeInstanceOf(SourceChangedError);
    expect(await Array.fromAsync(source.dataExtents({ offset: 6000, length: 100 }))).toEqual([
      { offset: 6000, length: 100 },
    ]);
  });

  test("a volume that is a symbolic link or a FIFO is refused without hanging", async () => {
    await writeFile(join(home, "secret"), "secret");
    await symlink(join(home, "secret"), volumePath("v1"));
    execFileSync("mkfifo", [volumePath("v2")]);
    for (const id of ["v1", "v2"])
      await expect(backend.openSource({ volumeId: id })).rejects.toBeInstanceOf(SourceMissingError);
  });
});

describe("snapshots", () => {
  test("a snapshot keeps the bytes of its moment, and taking it again keeps the first", async () => {
    const bytes = randomBytes(3 * mebibyte + 5);
    await fill("v1", bytes);
    expect(await backend.freeze("v1", "s1", free)).toEqual({ sizeBytes: bytes.length });
    await fill("v1", randomBytes(100));
    expect(await backend.freeze("v1", "s1", free)).toEqual({ sizeBytes: bytes.length });
    expect(await readFile(join(folder, "snapshot-s1"))).toEqual(bytes);
    await backend.thaw("s1");
    await backend.thaw("s1");
    expect(await names()).toEqual(["volume-v1"]);
  });

  test("a volume that keeps changing while it is copied is refused after three tries", async () => {
    if (await backend.canFreezeCheaply()) return;
    await fill("v1", randomBytes(3 * mebibyte));
    let writes = 0;
    const fence = (): void => {
      writes++;
      appendFileSync(volumePath("v1"), "x");
    };
    const taken = backend.freeze("v1", "s1", { ...free, fence });
    await expect(taken).rejects.toThrow("changed while it was being copied");
    await expect(taken).rejects.toBeInstanceOf(SourceChangedError);
    expect(writes).toBeGreaterThanOrEqual(9);
    expect(await names()).toEqual(["volume-v1"]);
  });

  test("a volume that changes once is copied again", async () => {
    await fill("v1", randomBytes(2 * mebibyte));
    let writes = 0;
    const fence = (): void => {
      if (++writes === 2) appendFileSync(volumePath("v1"), Buffer.alloc(0));
      if (writes === 3) execFileSync("touch", [volumePath("v1")]);
    };
    await backend.freeze("v1", "s1", { ...free, fence });
    expect(await readFile(join(folder, "snapshot-s1"))).toEqual(await readFile(volumePath("v1")));
  });

  test("an abort in the middle leaves nothing behind", async () => {
    await fill("v1", randomBytes(3 * mebibyte));
    const controller = new AbortController();
    const fence = (): void => controller.abort(new Error("cancelled"));
    const taken = backend.freeze("v1", "s1", { ...free, fence, signal: controller.signal });
    await expect(taken).rejects.toThrow("cancelled");
    expect(await names()).toEqual(["volume-v1"]);
  });
});

describe("files that come in and go out by path", () => {
  let roots: string[];
  let inside: string;
  const exported = (overwrite: boolean, claim = 0, reserved: string[] = []) => ({
    places: { roots, reserved },
    run: { operationId: "6a1c2b3d-0000-4000-8000-000000000001", claim },
    overwrite,
  });
  beforeEach(async () => {
    inside = join(home, "inside");
    roots = [join(home, "not-there"), inside];
    await mkdir(join(inside, "deep"), { recursive: true });
    await mkdir(join(home, "outside"));
  });

  test("an import keeps the exact length and bytes, and running it again does the same", async () => {
    const bytes = Buffer.concat([randomBytes(mebibyte + 1), Buffer.alloc(5 * mebibyte), randomBytes(3)]);
    await writeFile(join(inside, "deep/image"), bytes);
    expect(await backend.statImport(join(inside, "deep/image"), { roots })).toEqual({ sizeBytes: bytes.length });
    for (let run = 0; run < 2; run++) {
      const imported = await backend.importFile(join(inside, "deep/image"), "v1", { roots }, free);
      expect(imported).toEqual({ sizeBytes: bytes.length });
    }
    expect(await readFile(volumePath("v1"))).toEqual(bytes);
    expect(await names()).toEqual(["volume-v1"]);
  });

  test("an export gives the exact bytes and replaces a regular file only", async () => {
    const bytes = randomBytes(12345);
    await fill("v1", bytes);
    await writeFile(join(inside, "out"), "old");
    expect(await backend.exportFile("v1", join(inside, "out"), exported(true), free)).toEqual({
      sizeBytes: bytes.length,
    });
    expect(await readFile(join(inside, "out"))).toEqual(bytes);
    await symlink(join(home, "outside/target"), join(inside, "link"));
    execFileSync("mkfifo", [join(inside, "fifo")]);
    for (const name of ["link", "fifo", "deep"]) {
      const refused = backend.exportFile("v1", join(inside, name), exported(true), free);
      await expect(refused).rejects.toBeInstanceOf(PathNotAllowedError);
    }
    expect(await readdir(join(home, "outside"))).toEqual([]);
    expect((await readdir(inside)).sort()).toEqual(["deep", "fifo", "link", "out"]);
  });

  test("an export replaces a file only when it was asked to, and never one of the service's own", async () => {
    const bytes = randomBytes(5000);
    await fill("v1", bytes);
    await writeFile(join(inside, "out"), "old");
    await writeFile(join(inside, "deep/own"), "own");
    await link(join(inside, "deep/own"), join(inside, "hard"));
    const refused = backend.exportFile("v1", join(inside, "out"), exported(false), free);
    await expect(refused).rejects.toBeInstanceOf(PathTakenError);
    const reserved = [join(inside, "deep"), join(inside, "deep/own")];
    for (const name of ["deep/new", "deep/own", "hard"]) {
      const own = backend.exportFile("v1", join(inside, name), exported(true, 0, reserved), free);
      await expect(own, name).rejects.toBeInstanceOf(PathNotAllowedError);
      const read = backend.statImport(join(inside, name), { roots, reserved });
      await expect(read, name).rejects.toBeInstanceOf(PathNotAllowedError);
    }
    const within = backend.statImport(join(inside, "deep/own"), { roots: [join(inside, "deep")], reserved });
    await expect(within).rejects.toBeInstanceOf(PathNotAllowedError);
    expect(await readFile(join(inside, "out"), "utf8")).toBe("old");
    expect(await readFile(join(inside, "hard"), "utf8")).toBe("own");
    expect((await readdir(inside)).sort()).toEqual(["deep", "hard", "out"]);
  });

  test("an export that is run again knows its own file, and removes the draft of the run before", async () => {
    const bytes = randomBytes(5000);
    await fill("v1", bytes);
    const path = join(inside, "out");
    const [first, second] = [exported(false, 0), exported(false, 1)];
    await writeFile(join(inside, `.tephra-export-${first.run.operationId}-0`), "half");
    await backend.exportFile("v1", path, second, free);
    expect((await readdir(inside)).sort()).toEqual([`.tephra-export-${first.run.operationId}-1`, "deep", "out"]);
    expect(await backend.exportFile("v1", path, exported(false, 2), free)).toEqual({ sizeBytes: bytes.length });
    await removeExportDrafts(path, second.places, { ...second.run, claim: 2 });
    expect((await readdir(inside)).sort()).toEqual(["deep", "out"]);
    expect(await readFile(path)).toEqual(bytes);
  });

  test("nothing outside the roots is reached by any path", async () => {
    await writeFile(join(home, "outside/secret"), "secret");
    await symlink(join(home, "outside/secret"), join(inside, "link-to-file"));
    await symlink(join(home, "outside"), join(inside, "link-to-folder"));
    execFileSync("mkfifo", [join(inside, "fifo")]);
    await mkdir(join(home, "inside-too"));
    await writeFile(join(home, "inside-too/secret"), "secret");
    await link(join(home, "outside/secret"), join(home, "outside/hard"));
    const paths = [
      join(home, "outside/secret"),
      join(inside, "link-to-file"),
      join(inside, "link-to-folder/secret"),
      `${inside}/../outside/secret`,
      `${inside}/deep/../../outside/secret`,
      join(home, "inside-too/secret"),
      join(inside, "fifo"),
      join(inside, "deep"),
      `${inside}/deep/`,
      `${inside}/deep/..`,
      "/etc/passwd",
      "/dev/zero",
      "/proc/self/environ",
      "",
      "a\0b",
      join(home, "outside/missing/secret"),
    ];
    for (const path of paths) {
      await expect(backend.statImport(path, { roots }), path).rejects.toBeInstanceOf(PathNotAllowedError);
      await expect(backend.importFile(path, "v1", { roots }, free), path).rejects.toBeInstanceOf(PathNotAllowedError);
    }
    expect(await names()).toEqual([]);
    await fill("v2", Buffer.from("volume"));
    for (const path of [join(inside, "link-to-folder/new"), `${inside}/deep/../../outside/new`, "/proc/self/new"]) {
      const refused = backend.exportFile("v2", path, exported(true), free);
      await expect(refused, path).rejects.toBeInstanceOf(PathNotAllowedError);
    }
    expect((await readdir(join(home, "outside"))).sort()).toEqual(["hard", "secret"]);
    await expect(backend.statImport(join(inside, "missing"), { roots })).rejects.toBeInstanceOf(SourceMissingError);
    await expect(backend.statImport(join(inside, "deep"), { roots: [] })).rejects.toBeInstanceOf(PathNotAllowedError);
  });
});

describe("restores", () => {
  const old = Buffer.from("0123456789");

  test("the volume changes only when the restore is published, and publishing again changes nothing", async () => {
    await fill("v1", old);
    await backend.beginRestore("v1", "op1", { sizeBytes: 4, keepTail: false });
    await write("v1", "op1", "abcd");
    expect(await readFile(volumePath("v1"))).toEqual(old);
    await backend.publishRestore("v1", "op1", { fresh: false });
    await backend.publishRestore("v1", "op1", { fresh: false });
    expect(await readFile(volumePath("v1"), "utf8")).toBe("abcd");
    expect(await names()).toEqual(["volume-v1"]);
  });

  test("a restore onto a longer volume keeps what lies behind it", async () => {
    await fill("v1", old);
    await backend.beginRestore("v1", "op1", { sizeBytes: 4, keepTail: true });
    await write("v1", "op1", "abcd");
    await backend.publishRestore("v1", "op1", { fresh: false });
    expect(await readFile(volumePath("v1"), "utf8")).toBe("abcd456789");
  });

  test("a fresh inode leaves whoever has the private file open without the volume", async () => {
    await fill("v1", old);
    await backend.beginRestore("v1", "op1", { sizeBytes: 4, keepTail: false });
    await write("v1", "op1", "abcd");
    await using late = await backend.openRestoreTarget("v1", "op1");
    await backend.publishRestore("v1", "op1", { fresh: true });
    await late.write(Buffer.from("EVIL"), 0);
    await late.flush();
    expect(await readFile(volumePath("v1"), "utf8")).toBe("abcd");
    expect(await names()).toEqual(["volume-v1"]);
  });

  test("beginning again starts from zeros, and abandoning leaves the volume as it was", async () => {
    await fill("v1", old);
    await backend.beginRestore("v1", "op1", { sizeBytes: 4, keepTail: false });
    await write("v1", "op1", "abcd");
    await backend.beginRestore("v1", "op1", { sizeBytes: 4, keepTail: false });
    expect(await readFile(join(folder, ".restore-op1"))).toEqual(Buffer.alloc(4));
    await backend.abandonRestore("op1");
    await backend.abandonRestore("op1");
    expect(await names()).toEqual(["volume-v1"]);
    expect(await readFile(volumePath("v1"))).toEqual(old);
    await expect(backend.openRestoreTarget("v1", "op1")).rejects.toBeInstanceOf(VolumeConflictError);
  });

  async function write(volumeId: string, operationId: string, text: string): Promise<void> {
    await using target = await backend.openRestoreTarget(volumeId, operationId);
    await target.write(Buffer.from(text), 0);
    await target.flush();
  }
});

test("what an interrupted run has left is removed by the next one", async () => {
  await backend.create("v1", 1);
  await writeFile(join(folder, ".drafts", "volume-v2.left-over"), "x");
  await backend.create("v2", 1);
  expect(await names()).toEqual(["volume-v1", "volume-v2"]);
});

test("a source is a regular file or a block device", async () => {
  execFileSync("mkfifo", [join(home, "fifo")]);
  for (const path of [join(home, "fifo"), home, join(home, "missing"), "/dev/zero"]) {
    await expect(openFileSource(path)).rejects.toBeInstanceOf(SourceMissingError);
  }
});

test("what operations make is found with its ids and its age, and can be removed", async () => {
  const id = "0b2d9f0e-3c52-4f4e-9b5f-6d7a1c9e8f10";
  const other = "5f0c4d3e-8a1b-4c2d-9e3f-7a6b5c4d3e2f";
  await backend.create(id, 4096);
  await backend.freeze(id, other, free);
  await backend.beginRestore(id, `${other}-2`, { sizeBytes: 4096, keepTail: false });
  for (const name of [".drafts/volume-mine.draft", `.drafts/volume-${id}.${other}`, `.probe-${id}-copy`]) {
    await writeFile(join(folder, name), "x");
  }
  for (const name of ["snapshot-mine", "notes.txt", ".restore-mine", `snapshot-${id}.bak`]) {
    await writeFile(join(folder, name), "x");
  }
  const found = await Array.fromAsync(backend.leftovers());
  expect(found.map(({ kind, path, ids }) => [path.slice(folder.length + 1), kind, ids.length]).sort()).toEqual([
    [`.drafts/volume-${id}.${other}`, "private", 2],
    [".drafts/volume-mine.draft", "private", 0],
    [`.probe-${id}-copy`, "private", 1],
    [`.restore-${other}-2`, "private", 1],
    [`snapshot-${other}`, "snapshot", 1],
    [`volume-${id}`, "volume", 1],
  ]);
  expect(found.every(({ modifiedAt }) => Math.abs(Date.now() - modifiedAt.getTime()) < 600_000)).toBe(true);
  const removed = found.filter(({ kind }) => kind !== "volume");
  for (const each of [...removed, ...removed]) await backend.removeLeftover(each);
  expect(await names()).toEqual(
    [".restore-mine", "notes.txt", `snapshot-${id}.bak`, "snapshot-mine", `volume-${id}`].sort(),
  );
});
