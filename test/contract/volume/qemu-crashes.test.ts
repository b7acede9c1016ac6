import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { cp, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openVolumeBackend, type VolumeBackend } from "@tephra/engine";
import { afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { freeContext } from "../../format/backup-fixture.ts";
import { isLong } from "../../kit/long.ts";
import { installQemuUtils, qemu, qemuWrite } from "../../kit/qemu-utils.ts";
import { waitFor } from "../../kit/wait-for.ts";

const preload = new URL("../../kit/kill-at-file.ts", import.meta.url).href;
const program = fileURLToPath(new URL("../../kit/qemu-verbs.ts", import.meta.url));
const id = (n: number): string => `00000000-0000-4000-8000-00000000000${n}`;
const KiB = 1024;
const sizeBytes = 256 * KiB;
/** More calls than any verb makes. */
const callsMax = 60;
/** A verb is killed at every call, or in the short form at every fifth. */
const callStep = isLong ? 1 : 5;
const old = randomBytes(sizeBytes);
const written = Buffer.concat([old.subarray(0, 64 * KiB), randomBytes(64 * KiB), old.subarray(128 * KiB)]);
const zeros = (bytes: number): Buffer => Buffer.alloc(bytes);

let home: string;
let images: string;
beforeAll(installQemuUtils);
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-crash-"));
  images = join(home, "images");
});
afterEach(() => rm(home, { recursive: true, force: true }));

/** A volume with a snapshot from before its last write. */
async function layOut(): Promise<VolumeBackend> {
  await rm(images, { recursive: true, force: true });
  const first = join(home, "first");
  if (!(await readdir(home)).includes("first")) {
    await cp(await mkdtemp(join(home, "empty-")), first, { recursive: true });
    const backend = await openVolumeBackend({ driver: "qemu", path: first });
    await backend.create(id(1), sizeBytes);
    await qemuWrite(join(first, `volume-${id(1)}`), old, 0);
    await backend.freeze(id(1), id(5), freeContext());
    await qemuWrite(join(first, `volume-${id(1)}`), written, 0);
  }
  await cp(first, images, { recursive: true });
  return openVolumeBackend({ driver: "qemu", path: images });
}

/** @returns whether the program came to its end before the n-th call */
function runTo(verb: string, n: number, mark: string): Promise<boolean> {
  const env = { ...process.env, KILL_AT_FILE: `${n}`, TEST_MARK: mark };
  return new Promise((resolve, reject) => {
    execFile(process.execPath, ["--import", preload, program, images, verb], { env }, (error, stdout, stderr) => {
      if (error?.signal === "SIGKILL") return resolve(false);
      if (stdout.includes("calls ")) return resolve(true);
      reject(new Error(`${verb}: ${stderr}`));
    });
  });
}

/** The processes that were started with this mark in their environment and still run. */
async function leftRunning(mark: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name))) {
    const read = (name: string) => readFile(join("/proc", pid, name), "utf8").catch(() => "");
    if ((await read("environ")).includes(mark) && (await read("cmdline")).includes("qemu-nbd")) found.push(pid);
  }
  return found;
}

async function bytesOf(name: string): Promise<Buffer | null> {
  if (!(await readdir(images)).includes(name)) return null;
  const raw = join(home, "raw");
  await qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", join(images, name), raw);
  return readFile(raw);
}

const restored = Buffer.concat([zeros(128 * KiB), written.subarray(128 * KiB)]);
/** What there must be when a verb was run again to its end. Null: nothing. */
const results: Record<string, { volume?: Buffer | null; snapshot?: null; new?: [name: string, bytes: Buffer] }> = {
  create: { new: [`volume-${id(2)}`, zeros(sizeBytes)] },
  clone: { new: [`volume-${id(2)}`, written] },
  "clone-snapshot": { new: [`volume-${id(2)}`, old] },
  freeze: { new: [`snapshot-${id(6)}`, written] },
  extend: { volume: Buffer.concat([written, zeros(sizeBytes)]) },
  thaw: { snapshot: null },
  remove: { volume: null },
  restore: { volume: restored },
};

test.each(Object.entries(results))(
  "%s, killed at any call and run again, has done its work once, and leaves nothing",
  { timeout: 600_000 },
  async (verb, { volume = written, snapshot, new: made }) => {
    let kills = 0;
    for (let n = 1; n <= callsMax; n += callStep) {
      const backend = await layOut();
      const mark = randomUUID();
      const ended = await runTo(verb, n, mark);
      await waitFor(async () => (await leftRunning(mark)).length === 0, {
        what: "no qemu-nbd is left",
        timeoutMs: 2_000,
      });
      // Whatever a crash leaves, nothing but the verb's own subject may look different.
      const between = await bytesOf(`snapshot-${id(5)}`);
      if (snapshot !== null) expect(between?.equals(old), `killed at call ${n}`).toBe(true);
      if (volume === written) expect((await bytesOf(`volume-${id(1)}`))?.equals(written), `at call ${n}`).toBe(true);
      if (!ended) await runTo(verb, 0, mark);
      const found = await bytesOf(`volume-${id(1)}`);
      expect(volume === null ? found === null : found?.equals(volume), `killed at call ${n}`).toBe(true);
      if (made) expect((await bytesOf(made[0]))?.equals(made[1]), `killed at call ${n}`).toBe(true);
      for (const each of [1, 2]) await backend.remove(id(each));
      for (const each of [5, 6]) await backend.thaw(id(each));
      for await (const leftover of backend.leftovers()) await backend.removeLeftover(leftover);
      expect((await readdir(images)).filter((name) => !/^\.(?:lock|merging|drafts)$/.test(name))).toEqual([]);
      if (ended) break;
      kills += 1;
    }
    expect(kills).toBeGreaterThan(0);
  },
);
