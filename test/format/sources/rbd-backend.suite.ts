import { execFile, spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import {
  BackendUnavailableError,
  openVolumeBackend,
  SourceMissingError,
  type VolumeBackend,
  type VolumeBackendSettings,
  VolumeConflictError,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { describeVolumeBackend } from "../../contract/volume/volume-contract.ts";
import { describeHistories, type JudgedPlace } from "../../contract/volume/volume-histories.ts";
import { type CephPool, startCephPool } from "../../kit/ceph-pool.ts";
import { childrenOf } from "../../kit/children-of.ts";
import { times } from "../../kit/long.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { freeContext, temporaryFolder } from "../backup-fixture.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const free = freeContext();

let cluster: CephPool;
beforeAll(async () => {
  cluster = await startCephPool();
  Object.assign(process.env, cluster.environment);
});
afterAll(() => cluster?.[Symbol.asyncDispose]());

interface CephPlace extends JudgedPlace {
  settings: VolumeBackendSettings;
  /** Runs `rbd` as admin with an image of this place. */
  rbd(verb: string[], image: string, ...more: string[]): Promise<string>;
  list(): Promise<string[]>;
  /** An image as QEMU's tools name it. */
  node(image: string): string;
}

/** A namespace of its own, which nobody cleans up but the end of the cluster. */
async function open(): Promise<CephPlace> {
  const { ceph, keyring } = cluster;
  const namespace = randomUUID();
  await ceph.run("rbd", "namespace", "create", `volumes/${namespace}`);
  const settings = { driver: "rbd", pool: "volumes", namespace, conf: ceph.conf, user: "tephra", keyring } as const;
  const home = await mkdtemp(join(tmpdir(), "tephra-rbd-"));
  const rbd: CephPlace["rbd"] = (verb, image, ...more) =>
    ceph.run("rbd", ...verb, "--pool=volumes", `--namespace=${namespace}`, `--image=${image}`, ...more);
  const inPlace = async (...args: string[]) =>
    JSON.parse(await ceph.run("rbd", ...args, "--format=json", "--pool=volumes", `--namespace=${namespace}`));
  const list = (): Promise<string[]> => inPlace("ls");
  const node: CephPlace["node"] = (image) => {
    const file = { driver: "rbd", pool: "volumes", namespace, image, conf: ceph.conf };
    return `json:${JSON.stringify({ driver: "raw", file })}`;
  };
  return {
    settings,
    rbd,
    list,
    node,
    backend: await openVolumeBackend(settings),
    again: () => openVolumeBackend(settings),
    write: async (id, bytes, offset) => {
      await writeFile(join(home, "bytes"), bytes);
      const command = `write -s ${join(home, "bytes")} ${offset} ${bytes.length}`;
      const said = (await promisify(execFile)("qemu-io", ["-c", command, node(`volume-${id}`)])).stdout;
      if (!said.startsWith("wrote ")) throw new Error(said);
    },
    readElsewhere: async (source) => {
      await rm(join(home, "exported"), { force: true });
      if ("volumeId" in source) await rbd(["export"], `volume-${source.volumeId}`, `--path=${join(home, "exported")}`);
      else {
        const name = `snapshot-${source.snapshotId}`;
        const all = (await inPlace("ls", "--long")) as { image: string; snapshot?: string }[];
        const image = all.find(({ snapshot }) => snapshot === name)?.image ?? "";
        await rbd(["export"], image, `--snap=${name}`, `--path=${join(home, "exported")}`);
      }
      return readFile(join(home, "exported"));
    },
    names: async () => {
      const images = await list();
      const notes = images.includes("tephra-snapshots") ? await rbd(["image-meta", "list"], "tephra-snapshots") : "";
      return [...images.filter((name) => name !== "tephra-snapshots"), ...(notes.includes("snapshot-") ? [notes] : [])];
    },
    [Symbol.asyncDispose]: () => rm(home, { recursive: true, force: true }),
  };
}

describeVolumeBackend({ name: "rbd", restores: "aside", open });
describeHistories("rbd", open);

async function readAll(backend: VolumeBackend, volumeId: string): Promise<Buffer> {
  await using source = await backend.openSource({ volumeId });
  const bytes = Buffer.alloc(source.sizeBytes);
  await source.read(bytes, 0);
  return bytes;
}

async function removeLeftovers(backend: VolumeBackend): Promise<void> {
  for await (const leftover of backend.leftovers()) {
    if (leftover.kind === "private") await backend.removeLeftover(leftover);
  }
}

describe("volumes in Ceph", () => {
  test("a clone shares with its source, and outlives it, its snapshot and whatever is between, in any order", async () => {
    await using place = await open();
    const { backend } = place;
    const bytes = randomBytes(64 * KiB);
    for (const order of [
      ["source", "snapshot", "between"],
      ["between", "snapshot", "source"],
      ["snapshot", "between", "source"],
    ]) {
      const [source, snapshot, between, last] = [randomUUID(), randomUUID(), randomUUID(), randomUUID()];
      await backend.create(source, bytes.length);
      await place.write(source, bytes, 0);
      await backend.freeze(source, snapshot, free);
      await backend.clone({ snapshotId: snapshot }, between, 1, free);
      await backend.clone({ volumeId: between }, last, 1, free);
      expect(JSON.parse(await place.rbd(["info", "--format=json"], `volume-${last}`)).parent).toBeDefined();
      const removals: Record<string, () => Promise<void>> = {
        source: () => backend.remove(source),
        snapshot: () => backend.thaw(snapshot),
        between: () => backend.remove(between),
      };
      for (const which of order) {
        await removals[which]?.();
        expect((await place.readElsewhere({ volumeId: last })).equals(bytes), order.join()).toBe(true);
      }
      await backend.remove(last);
      expect(await place.names(), order.join()).toEqual([]);
    }
  });

  test("clones of clones do not become ever deeper, and a snapshot is protected only while it has any", async () => {
    await using place = await open();
    const { backend } = place;
    const ids = Array.from({ length: 7 }, () => randomUUID());
    const [first = ""] = ids;
    const bytes = randomBytes(8 * KiB);
    await backend.create(first, bytes.length);
    await place.write(first, bytes, 0);
    for (const [n, id] of ids.entries()) {
      if (n > 0) await backend.clone({ volumeId: ids[n - 1] ?? "" }, id, 1, free);
    }
    let depth = 0;
    for (let at = `volume-${ids.at(-1)}`; ; depth++) {
      const { parent } = JSON.parse(await place.rbd(["info", "--format=json"], at)) as { parent?: { image: string } };
      if (parent === undefined) break;
      at = parent.image;
    }
    expect(depth).toBeGreaterThan(0);
    expect(depth).toBeLessThanOrEqual(4);
    expect((await place.readElsewhere({ volumeId: ids.at(-1) ?? "" })).equals(bytes)).toBe(true);
    const snapshotId = randomUUID();
    await backend.freeze(first, snapshotId, free);
    const isProtected = async (): Promise<boolean> => {
      const all = JSON.parse(await place.rbd(["snap", "ls", "--format=json"], `volume-${first}`));
      return all.find(({ name }: { name: string }) => name === `snapshot-${snapshotId}`).protected === "true";
    };
    const clone = randomUUID();
    await backend.clone({ snapshotId }, clone, 1, free);
    expect(await isProtected()).toBe(true);
    await backend.remove(clone);
    expect(await isProtected()).toBe(false);
    for (const id of ids) await backend.remove(id);
    await backend.thaw(snapshotId);
    expect(await place.names()).toEqual([]);
  });

  test("who had a volume open when it was restored writes to what it was, which goes when nobody has it open", async () => {
    await using place = await open();
    const { backend } = place;
    const id = randomUUID();
    await backend.create(id, 256 * KiB);
    await backend.beginRestore(id, `${randomUUID()}-0`, { sizeBytes: 256 * KiB, keepTail: false }, free);
    const [restored = ""] = (await place.list()).filter((name) => name.startsWith("restore-"));
    const restoreId = restored.slice("restore-".length);
    const args = ["-c", "write -P 5 0 64k", "-c", "sleep 8000", "-c", "write -P 6 0 64k", place.node(`volume-${id}`)];
    const machine = promisify(execFile)("qemu-io", args);
    const watched = async () => (await place.rbd(["status"], `volume-${id}`)).includes("watcher=");
    await waitFor(watched, { what: "the machine has opened it", timeoutMs: 20_000 });
    {
      await using target = await backend.openRestoreTarget(id, restoreId);
      await target.write(Buffer.alloc(256 * KiB, 9), 0);
      await target.flush();
    }
    await backend.publishRestore(id, restoreId, { fresh: false }, free);
    await machine;
    expect((await place.readElsewhere({ volumeId: id })).equals(Buffer.alloc(256 * KiB, 9))).toBe(true);
    await removeLeftovers(backend);
    expect(await place.names()).toEqual([`volume-${id}`]);
  });

  test("an incremental is told of little more than what was written, and nothing of a clone is believed", async () => {
    await using place = await open();
    const { backend } = place;
    const [id, clone] = [randomUUID(), randomUUID()];
    const sizeBytes = 4096 * MiB;
    await backend.create(id, sizeBytes);
    await place.write(id, randomBytes(8 * MiB), 100 * MiB);
    await backend.clone({ volumeId: id }, clone, 1, free);
    const changed = async (volumeId: string): Promise<number> => {
      const [since, now] = [randomUUID(), randomUUID()];
      await backend.freeze(volumeId, since, free);
      await place.write(volumeId, randomBytes(4 * MiB), 102 * MiB);
      await backend.freeze(volumeId, now, free);
      const range = { offset: 0, length: sizeBytes };
      const extents = await Array.fromAsync(backend.changedExtents({ snapshotId: now }, since, range));
      return extents.reduce((sum, { length }) => sum + length, 0);
    };
    expect(await changed(id)).toBe(4 * MiB);
    expect(await changed(clone)).toBe(sizeBytes);
  });

  test("a snapshot that a command has made after it was given up is found and removed, whatever its image is by then", async () => {
    await using place = await open();
    const { backend } = place;
    const snapshotsFound = async () => {
      const all = await Array.fromAsync(backend.leftovers());
      return all.filter(({ kind }) => kind === "snapshot");
    };
    for (const fate of ["stays", "is removed before", "is removed after"]) {
      const [id, wanted, late] = [randomUUID(), randomUUID(), randomUUID()];
      await backend.create(id, 64 * KiB);
      await backend.freeze(id, wanted, free);
      await place.rbd(["snap", "create"], `volume-${id}`, `--snap=snapshot-${late}`);
      if (fate === "is removed before") await backend.remove(id);
      const found = await snapshotsFound();
      expect(found.map(({ ids }) => ids).sort(), fate).toEqual([[wanted], [late]].sort());
      if (fate === "is removed after") await backend.remove(id);
      const leftover = found.find(({ ids }) => ids.includes(late));
      expect(leftover?.modifiedAt.getTime(), fate).toBeGreaterThan(Date.now() - 120_000);
      if (leftover) await backend.removeLeftover(leftover);
      expect(
        (await snapshotsFound()).map(({ ids }) => ids),
        fate,
      ).toEqual([[wanted]]);
      expect((await place.readElsewhere({ snapshotId: wanted })).length, fate).toBe(64 * KiB);
      await backend.remove(id);
      await backend.thaw(wanted);
      expect(await place.names(), fate).toEqual([]);
    }
  });

  test("a file is imported and exported raw, in whole sectors", async () => {
    await using place = await open();
    const { backend } = place;
    await using users = await temporaryFolder();
    const places = { roots: [users.path] };
    const [from, to] = [join(users.path, "in"), join(users.path, "out")];
    const bytes = randomBytes(5000);
    await writeFile(from, bytes);
    const id = randomUUID();
    expect(await backend.importFile(from, id, places, free)).toEqual({ sizeBytes: 5120 });
    await backend.importIfAbsent(from, id, places, free);
    const run = { operationId: randomUUID(), claim: 0 };
    await backend.exportFile(id, to, { places, run, overwrite: false }, free);
    expect((await readFile(to)).equals(Buffer.concat([bytes, Buffer.alloc(120)]))).toBe(true);
    await writeFile(from, randomBytes(5000));
    await expect(backend.importIfAbsent(from, id, places, free)).rejects.toBeInstanceOf(VolumeConflictError);
    expect(await place.names()).toEqual([`volume-${id}`]);
  });

  test("without rights, a pool or a keyring it says what is missing, and no image is taken for one that is gone", async () => {
    const { ceph } = cluster;
    const reader = await ceph.user("reader", "mon", "profile rbd", "osd", "profile rbd-read-only pool=volumes");
    const place = { driver: "rbd", pool: "volumes", conf: ceph.conf } as const;
    const readOnly = await openVolumeBackend({ ...place, user: "reader", keyring: reader });
    const id = randomUUID();
    await expect(readOnly.create(id, MiB)).rejects.toMatchObject({
      code: "volume_storage",
      retryable: false,
      message: expect.stringMatching(
        /Operation not permitted.*client\.reader needs mon 'profile rbd' osd 'profile rbd pool=volumes'/,
      ),
    });
    await expect(readOnly.measure(id)).rejects.toBeInstanceOf(SourceMissingError);
    const cases: [VolumeBackendSettings, RegExp][] = [
      [{ ...place, pool: "volumez", user: "tephra", keyring: cluster.keyring }, /error opening pool 'volumez'/],
      [{ ...place, user: "tephra", keyring: "/missing" }, /couldn't connect to the cluster/],
      [{ ...place, user: "nobody", keyring: cluster.keyring }, /couldn't connect to the cluster/],
      [{ ...place, conf: "/missing.conf" }, /config file/],
    ];
    for (const [settings, why] of cases) {
      const opening = openVolumeBackend(settings);
      await expect(opening, String(why)).rejects.toMatchObject({ message: expect.stringMatching(why) });
      await expect(opening, String(why)).rejects.toBeInstanceOf(BackendUnavailableError);
    }
  });
});

test("an image that a machine died renaming gets its name, and no other name leads to it", async () => {
  await using place = await open();
  const { backend } = place;
  const alias = async (from: string, to: string): Promise<void> => {
    const { namespace = "" } = place.settings as { namespace?: string };
    await using home = await temporaryFolder();
    const object = join(home.path, "id");
    const rados = (...args: string[]) =>
      cluster.ceph.run("rados", "-c", cluster.ceph.conf, "--pool=volumes", `--namespace=${namespace}`, ...args);
    await rados("get", `rbd_id.${from}`, object);
    await rados("put", `rbd_id.${to}`, object);
  };
  for (const half of ["before", "after"]) {
    const id = randomUUID();
    const restoreId = `${randomUUID()}-0`;
    await backend.create(id, 64 * KiB);
    await backend.beginRestore(id, restoreId, { sizeBytes: 64 * KiB, keepTail: false }, free);
    {
      await using target = await backend.openRestoreTarget(id, restoreId);
      await target.write(Buffer.alloc(64 * KiB, 7), 0);
      await target.flush();
    }
    if (half === "before") {
      // As the second rename does it: the volume has given its name away, and the new name is there, but not in the directory.
      await place.rbd(
        ["rename"],
        `volume-${id}`,
        "--dest-pool=volumes",
        ...destOf(place, `replaced-${id}-${restoreId}`),
      );
      await alias(`restore-${restoreId}`, `volume-${id}`);
    } else {
      await backend.publishRestore(id, restoreId, { fresh: false }, free);
      await alias(`volume-${id}`, `restore-${restoreId}`);
    }
    await backend.publishRestore(id, restoreId, { fresh: false }, free);
    await backend.abandonRestore(restoreId);
    expect((await place.readElsewhere({ volumeId: id })).equals(Buffer.alloc(64 * KiB, 7)), half).toBe(true);
    await removeLeftovers(backend);
    expect(await place.names(), half).toEqual([`volume-${id}`]);
    await expect(backend.openRestoreTarget(id, restoreId)).rejects.toBeInstanceOf(VolumeConflictError);
    await backend.remove(id);
  }
});

const destOf = (place: CephPlace, image: string): string[] => {
  const { namespace = "" } = place.settings as { namespace?: string };
  return [`--dest-namespace=${namespace}`, `--dest=${image}`];
};

const program = fileURLToPath(new URL("../../kit/rbd-verbs.ts", import.meta.url));
const uuid = (n: number): string => `00000000-0000-4000-8000-00000000000${n}`;
const old = Buffer.alloc(256 * KiB, 1);
const written = Buffer.concat([Buffer.alloc(64 * KiB, 2), old.subarray(64 * KiB)]);
const zeros = (bytes: number): Buffer => Buffer.alloc(bytes);
/** More commands than any verb runs. */
const commandsMax = 60;

/** Starts a verb in a process of its own, whose n-th command of `rbd` is run by these lines of a shell, as `"$rbd" "$@"`. */
async function startVerb(
  place: CephPlace,
  { verb, n, lines }: { verb: string; n: number; lines: string },
  folder: string,
): Promise<{ pid: number; ended: Promise<"success" | "killed" | Error> }> {
  const real = join((cluster.ceph.environment["PATH"] ?? "").split(":")[0] ?? "", "rbd");
  const script = `#!/bin/sh
rbd='${real}'
cd '${folder}'
[ "$1" = --version ] && exec "$rbd" "$@"
echo >> count
[ "$(wc -l < count)" -ne ${n} ] && exec "$rbd" "$@"
${lines}
`;
  await writeFile(join(folder, "rbd"), script);
  await chmod(join(folder, "rbd"), 0o755);
  const env = { ...process.env, PATH: `${folder}:${process.env["PATH"]}` };
  const args = [program, JSON.stringify(place.settings), verb, join(folder, "late")];
  const { promise: ended, resolve } = Promise.withResolvers<"success" | "killed" | Error>();
  const child = execFile(process.execPath, args, { env }, (error, _, stderr) => {
    if (error === null) resolve("success");
    else resolve(error.signal === "SIGKILL" ? "killed" : new Error(`${verb}: ${stderr}`));
  });
  return { pid: child.pid ?? 0, ended };
}

/** Runs a verb in a process of its own, which is killed right after its n-th command of `rbd`. @returns whether it came to its end */
async function runTo(place: CephPlace, verb: string, n: number): Promise<boolean> {
  await using home = await temporaryFolder();
  const end = await (await startVerb(place, { verb, n, lines: `"$rbd" "$@"\nkill -9 $PPID` }, home.path)).ended;
  if (end instanceof Error) throw end;
  return end === "success";
}

/** What there must be when a verb was run again to its end; null: nothing. */
const results: Record<string, { volume?: Buffer | null; snapshot?: null; made?: Buffer; frozen?: Buffer }> = {
  create: { made: zeros(256 * KiB) },
  clone: { made: Buffer.concat([written, zeros(256 * KiB)]) },
  "clone-snapshot": { made: old },
  freeze: { frozen: written },
  extend: { volume: Buffer.concat([written, zeros(256 * KiB)]) },
  thaw: { snapshot: null },
  remove: { volume: null },
  restore: { volume: zeros(128 * KiB) },
};

test.each(Object.entries(results))(
  "%s, killed after any command and run again, has done its work once, and leaves nothing",
  { timeout: 900_000 },
  async (verb, { volume = written, snapshot, made, frozen }) => {
    let kills = 0;
    for (let n = 2; n <= commandsMax; n += times({ usual: 4, long: 1 })) {
      await using place = await open();
      const { backend } = place;
      await backend.create(uuid(1), old.length);
      await place.write(uuid(1), old, 0);
      await backend.freeze(uuid(1), uuid(5), free);
      await place.write(uuid(1), written.subarray(0, 64 * KiB), 0);
      // What a thaw or a removal must not take away with it.
      await backend.clone({ snapshotId: uuid(5) }, uuid(3), 1, free);
      const ended = await runTo(place, verb, n);
      if (!ended) expect(await runTo(place, verb, commandsMax), verb).toBe(true);
      const told = `killed after command ${n}`;
      const has = async (source: { volumeId: string } | { snapshotId: string }, bytes: Buffer): Promise<void> =>
        expect((await place.readElsewhere(source)).equals(bytes), `${JSON.stringify(source)}, ${told}`).toBe(true);
      if (volume === null) expect(await place.list(), told).not.toContain(`volume-${uuid(1)}`);
      else await has({ volumeId: uuid(1) }, volume);
      if (snapshot === null)
        await expect(backend.openSource({ snapshotId: uuid(5) }), told).rejects.toBeInstanceOf(SourceMissingError);
      else await has({ snapshotId: uuid(5) }, old);
      await has({ volumeId: uuid(3) }, old);
      if (made) await has({ volumeId: uuid(2) }, made);
      if (frozen) await has({ snapshotId: uuid(6) }, frozen);
      for (const each of [1, 2, 3]) await backend.remove(uuid(each));
      for (const each of [5, 6]) await backend.thaw(uuid(each));
      // A client that was killed is watched for another 30 s.
      const isEmpty = async (): Promise<boolean> => {
        await removeLeftovers(backend);
        return (await place.names()).length === 0;
      };
      await waitFor(isEmpty, { what: `nothing is left, ${told}`, timeoutMs: 60_000 });
      if (ended) break;
      kills += 1;
    }
    expect(kills).toBeGreaterThan(0);
  },
);

/**
 * A run publishes a restore of its own or one that several have written, is stopped with one command on its way, and another takes over.
 * Then the command is run and the late run goes on.
 */
test.each(["its own", "a common"])(
  "no command of a late run takes the volume's name from what another has restored meanwhile: %s target",
  { timeout: 1_800_000 },
  async (whose) => {
    const [id, late, next] = [uuid(1), `${uuid(2)}-0`, whose === "its own" ? `${uuid(2)}-1` : `${uuid(2)}-0`];
    let rounds = 0;
    for (let n = 2; ; n++) {
      await using place = await open();
      await using home = await temporaryFolder();
      const { backend } = place;
      const prepare = async (restoreId: string): Promise<void> => {
        await backend.beginRestore(id, restoreId, { sizeBytes: 64 * KiB, keepTail: false }, free);
        await using target = await backend.openRestoreTarget(id, restoreId);
        await target.write(Buffer.alloc(64 * KiB, 3), 0);
        await target.flush();
      };
      await backend.create(id, 64 * KiB);
      await prepare(late);
      const lines = `kill -STOP $PPID\necho > stopped\nwhile [ ! -e late ]; do sleep 0.1; done\nexec "$rbd" "$@"`;
      const run = await startVerb(place, { verb: "publish", n, lines }, home.path);
      let isOver = false;
      void run.ended.then(() => {
        isOver = true;
      });
      const isStopped = (): boolean => isOver || existsSync(join(home.path, "stopped"));
      await waitFor(isStopped, { what: `it is stopped at ${n}`, timeoutMs: 120_000 });
      if (isOver) break;
      rounds += 1;
      if (next !== late) await prepare(next);
      await backend.publishRestore(id, next, { fresh: next === late }, free);
      const told = `stopped at command ${n}`;
      expect((await place.readElsewhere({ volumeId: id })).equals(Buffer.alloc(64 * KiB, 3)), told).toBe(true);
      await place.write(id, Buffer.alloc(64 * KiB, 4), 0);
      await writeFile(join(home.path, "late"), "");
      process.kill(run.pid, "SIGCONT");
      await run.ended;
      for (const restoreId of [late, next]) await backend.abandonRestore(restoreId);
      expect((await place.readElsewhere({ volumeId: id })).equals(Buffer.alloc(64 * KiB, 4)), told).toBe(true);
      await removeLeftovers(backend);
      expect(await place.names(), told).toEqual([`volume-${id}`]);
    }
    expect(rounds).toBeGreaterThan(5);
  },
);

test("a volume reads as it was when it was opened, whoever writes to it", async () => {
  await using place = await open();
  const id = randomUUID();
  await place.backend.create(id, 64 * KiB);
  await place.write(id, Buffer.alloc(64 * KiB, 1), 0);
  await using source = await place.backend.openSource({ volumeId: id });
  await place.write(id, Buffer.alloc(4 * KiB, 2), 0);
  const bytes = Buffer.alloc(64 * KiB);
  await source.read(bytes, 0);
  expect(bytes.equals(Buffer.alloc(64 * KiB, 1))).toBe(true);
  expect((await readAll(place.backend, id))[0]).toBe(2);
});

const lateWriter = fileURLToPath(new URL("../../kit/late-writer.ts", import.meta.url));

test("what a writer still writes that was given up reaches no volume", { timeout: 1_800_000 }, async () => {
  await using place = await open();
  const { backend } = place;
  const sizeBytes = 256 * KiB;
  const id = randomUUID();
  await backend.create(id, sizeBytes);
  const rounds = times({ usual: 6, long: 50 });
  for (let round = 0; round < rounds; round++) {
    const [operation, isCommon] = [randomUUID(), round % 2 === 0];
    const [late, next] = [`${operation}-0`, isCommon ? `${operation}-0` : `${operation}-1`];
    const args = [lateWriter, JSON.stringify(place.settings), id, late];
    const writer = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "ignore"] });
    const gone = once(writer, "exit");
    let pieces = 0;
    writer.stdout.on("data", () => pieces++);
    try {
      await waitFor(() => pieces > 0, { what: `the writer of round ${round} writes`, timeoutMs: 60_000 });
      // It goes on all the time; or it is paused, alone or with its qemu-nbd.
      const paused = [writer.pid ?? 0, ...childrenOf(writer.pid ?? 0, "qemu-nbd")].slice(0, round % 3);
      for (const pid of paused) process.kill(pid, "SIGSTOP");
      if (!isCommon) await backend.beginRestore(id, next, { sizeBytes, keepTail: false }, free);
      {
        await using target = await backend.openRestoreTarget(id, next);
        await target.write(Buffer.alloc(sizeBytes, 0xaa), 0);
        await target.flush();
      }
      await backend.publishRestore(id, next, { fresh: isCommon }, free);
      const told = `round ${round}, ${isCommon ? "a common" : "its own"} target`;
      expect((await place.readElsewhere({ volumeId: id })).equals(Buffer.alloc(sizeBytes, 0xaa)), told).toBe(true);
      const owners = randomBytes(sizeBytes);
      await place.write(id, owners, 0);
      const before = pieces;
      for (const pid of paused.toReversed()) process.kill(pid, "SIGCONT");
      const isDone = (): boolean => pieces > before + 2 || writer.exitCode !== null;
      await waitFor(isDone, { what: `the writer of round ${round} has gone on`, timeoutMs: 60_000 });
      expect((await place.readElsewhere({ volumeId: id })).equals(owners), told).toBe(true);
    } finally {
      writer.kill("SIGKILL");
      await gone;
    }
  }
  process.stderr.write(`${rounds} late writers, no byte of theirs in the volume\n`);
});
