import { randomBytes } from "node:crypto";
import { closeSync, openSync, writeSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Disk,
  GuestNotFrozenError,
  openHypervisor,
  openVolumeBackend,
  type RunContext,
  SourceChangedError,
  SourceMissingError,
} from "@tephra/engine";
import { afterEach, beforeEach, expect, test } from "vitest";

const free: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const mebibyte = 1024 * 1024;
const options = { freezeLimitMs: 10_000, requireConsistency: false, operationId: "op" };
const bytes = [randomBytes(2 * mebibyte + 3), Buffer.alloc(mebibyte), randomBytes(mebibyte)];

let home: string;
let disks: Disk[];
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-record-"));
  const folder = join(home, "volumes");
  await mkdir(folder);
  const backend = await openVolumeBackend({ driver: "file", path: folder });
  disks = ["a", "b", "c"].map((id) => ({ ...backend.snapshotPaths(id, `s-${id}`), device: `/dev/vd${id}` }));
  for (const [index, { volumePath }] of disks.entries()) await writeFile(volumePath, bytes[index] ?? "");
});
afterEach(() => rm(home, { recursive: true, force: true }));

const running = () => openHypervisor({ driver: "record", powerState: "ACTIVE" });
const snapshots = () => Promise.all(disks.map(({ snapshotPath }) => readFile(snapshotPath)));
async function names(): Promise<string[]> {
  expect(await readdir(join(home, "volumes/.drafts"))).toEqual([]);
  return (await readdir(join(home, "volumes"))).filter((name) => name !== ".drafts").sort();
}

test("a machine's state is what its record says", async () => {
  expect(await running().powerState(free.signal)).toBe("ACTIVE");
  expect(await openHypervisor({ driver: "record", powerState: "PAUSED" }).powerState(free.signal)).toBe("PAUSED");
});

test("snapshots taken together hold every byte, whatever a broken-off run has left under their names", async () => {
  await writeFile(disks[1]?.snapshotPath ?? "", "left by an earlier run");
  const before = Date.now();
  const taken = await running().snapshotTogether(disks, options, free);
  expect(await snapshots()).toEqual(bytes);
  expect(taken).toEqual({
    takenAt: expect.any(Date),
    frozenMs: null,
    consistency: "crash",
    sizesBytes: bytes.map(({ length }) => length),
  });
  expect(taken.takenAt.getTime()).toBeGreaterThanOrEqual(before);
  expect(taken.takenAt.getTime()).toBeLessThanOrEqual(Date.now());
  expect((await stat(disks[0]?.snapshotPath ?? "")).mode & 0o777).toBe(0o660);
});

test("only a machine that is off is consistent without a frozen guest", async () => {
  const strict = { ...options, requireConsistency: true };
  await expect(running().snapshotTogether(disks, strict, free)).rejects.toBeInstanceOf(GuestNotFrozenError);
  const off = openHypervisor({ driver: "record", powerState: "SHUTOFF" });
  expect(await off.snapshotTogether(disks, strict, free)).toMatchObject({ consistency: "application", frozenMs: null });
});

/** Where blocks are shared instead of copied there is no time between two pieces in which a disk could change. */
const copies = async (): Promise<boolean> =>
  !(await (await openVolumeBackend({ driver: "file", path: join(home, "volumes") })).canFreezeCheaply());

/** Runs when the engine asks the fence: in the middle of the copies, before their last look. */
function interfering(change: (call: number) => void | Promise<void>): RunContext {
  let calls = 0;
  return { ...free, fence: () => void change(++calls) };
}

test("a change of a disk that was copied already spoils them all: after three tries nothing is kept", async (context) => {
  context.skip(!(await copies()), "this file system shares blocks");
  let changes = 0;
  const path = disks[0]?.volumePath ?? "";
  const taken = running().snapshotTogether(
    disks,
    options,
    interfering((call) => {
      if (call % 4 !== 0) return;
      changes++;
      const file = openSync(path, "r+");
      writeSync(file, randomBytes(1), 0, 1, 5);
      closeSync(file);
    }),
  );
  await expect(taken).rejects.toThrow("The 3 volumes changed while their snapshots were taken, 3 times in a row");
  await expect(taken).rejects.toBeInstanceOf(SourceChangedError);
  expect(changes).toBeGreaterThanOrEqual(3);
  expect(await names()).toEqual(["volume-a", "volume-b", "volume-c"]);
});

test("a change in one try only is met by the next, and all copies are of after it", async (context) => {
  context.skip(!(await copies()), "this file system shares blocks");
  const path = disks[0]?.volumePath ?? "";
  const taken = await running().snapshotTogether(
    disks,
    options,
    interfering((call) => {
      if (call !== 4) return;
      const file = openSync(path, "r+");
      writeSync(file, "changed", 0);
      closeSync(file);
    }),
  );
  expect(taken.consistency).toBe("crash");
  const [first] = await snapshots();
  expect(first?.subarray(0, 7).toString()).toBe("changed");
  expect(first).toEqual(await readFile(path));
});

test("a write that leaves the time of its disk as it was is seen by its ctime", async (context) => {
  context.skip(!(await copies()), "this file system shares blocks");
  const { volumePath } = disks[2] ?? { volumePath: "" };
  const { atime, mtime } = await stat(volumePath);
  let left = 1;
  const pending: Promise<void>[] = [];
  await running().snapshotTogether(
    disks,
    options,
    interfering((call) => {
      if (call !== 6 || left-- === 0) return;
      const file = openSync(volumePath, "r+");
      writeSync(file, "hidden", 0);
      closeSync(file);
      pending.push(utimes(volumePath, atime, mtime));
    }),
  );
  await Promise.all(pending);
  expect((await snapshots())[2]?.subarray(0, 6).toString()).toBe("hidden");
});

test("an abort and a lost lease leave nothing behind", async (context) => {
  context.skip(!(await copies()), "this file system shares blocks");
  const controller = new AbortController();
  const cancelled = interfering(() => controller.abort(new Error("cancelled")));
  const taken = running().snapshotTogether(disks, options, { ...cancelled, signal: controller.signal });
  await expect(taken).rejects.toThrow("cancelled");
  const lost = interfering((call) => {
    if (call === 5) throw new Error("lease lost");
  });
  await expect(running().snapshotTogether(disks, options, lost)).rejects.toThrow("lease lost");
  expect(await names()).toEqual(["volume-a", "volume-b", "volume-c"]);
});

test("a missing disk fails before anything is copied", async () => {
  await rm(disks[2]?.volumePath ?? "");
  const taken = running().snapshotTogether(disks, options, free);
  await expect(taken).rejects.toBeInstanceOf(SourceMissingError);
  expect((await readdir(join(home, "volumes"))).sort()).toEqual(["volume-a", "volume-b"]);
});
