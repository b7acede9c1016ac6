import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, open, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Disk,
  type Hypervisor,
  HypervisorRefusedError,
  HypervisorUnavailableError,
  openHypervisor,
  openVolumeBackend,
  PathNotAllowedError,
  type RunContext,
} from "@tephra/engine";
import { afterEach, beforeEach, expect, test } from "vitest";
import { root } from "../../../scripts/bootstrap.mjs";
import { type Program, spawnProgram } from "../../../scripts/spawn-program.ts";
import { needsGuest, startGuestAgent } from "../../kit/guest-agent.ts";
import { times } from "../../kit/long.ts";
import { type StorageDaemon, startNbdWriter, startStorageDaemon } from "../../kit/qemu.ts";
import { waitFor } from "../../kit/wait-for.ts";

const free: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const mebibyte = 1024 * 1024;
const names = ["a", "b", "c"];
const options = {
  freezeLimitMs: 10_000,
  requireConsistency: false,
  operationId: "0b2d9f0e-3c52-4f4e-9b5f-6d7a1c9e8f10",
};

let home: string;
let disks: Disk[];
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-qmp-"));
  await mkdir(join(home, "v"));
  const backend = await openVolumeBackend({ driver: "file", path: join(home, "v") });
  disks = names.map((id) => ({ ...backend.snapshotPaths(id, `s-${id}`), device: `/dev/vd${id}` }));
  for (const [index, { volumePath }] of disks.entries()) {
    await backend.create(names[index] ?? "", 8 * mebibyte);
    const file = await open(volumePath, "r+");
    await file.write(randomBytes(mebibyte), 0, mebibyte, 6 * mebibyte);
    await file.close();
  }
});
afterEach(() => rm(home, { recursive: true, force: true }));

const served = () => disks.map(({ volumePath }, index) => ({ name: names[index] ?? "", path: volumePath }));
const settings = { driver: "qmp", agentSocket: null, freezeMountpoints: null, powerState: "SHUTOFF" } as const;
const hypervisor = (socket: string): Hypervisor => openHypervisor({ ...settings, socket, socketRoots: [home] });
const rest = async () => (await readdir(join(home, "v"))).filter((name) => name !== ".drafts").sort();

async function counterOf(path: string): Promise<number> {
  const file = await open(path, "r");
  try {
    const block = Buffer.alloc(8);
    await file.read(block, 0, 8, 0);
    return Number(block.readBigUInt64BE());
  } finally {
    await file.close();
  }
}

const counters = (): Promise<number[]> => Promise.all(disks.map(({ snapshotPath }) => counterOf(snapshotPath)));
const isOneMoment = ([a = 0, b = 0, c = 0]: number[]): boolean => a >= b && b >= c && c >= a - 1;

const rounds = times({ usual: 12, long: 50 });

test("snapshots under a running writer are of one moment in every round; taken one by one they are not", async () => {
  await using daemon = await startStorageDaemon(home, served());
  const writer = await startNbdWriter(daemon.nbdSocket, names);
  await using machine = hypervisor(daemon.qmpSocket);
  expect(await machine.powerState(free.signal)).toBe("ACTIVE");
  const states: number[][] = [];
  for (let round = 0; round < rounds; round++) {
    const taken = await machine.snapshotTogether(disks, options, free);
    expect(taken).toMatchObject({ frozenMs: null, consistency: "crash", sizesBytes: disks.map(() => 8 * mebibyte) });
    states.push(await counters());
  }
  expect(states.filter((state) => !isOneMoment(state))).toEqual([]);
  // The writer did write all the time: no two rounds saw the same, and it was not always found between two counters.
  expect(new Set(states.map(([a]) => a)).size).toBe(rounds);
  let apart = 0;
  for (let round = 0; round < 5; round++) {
    for (const disk of disks) await machine.snapshotTogether([disk], options, free);
    if (!isOneMoment(await counters())) apart++;
  }
  expect(apart).toBeGreaterThan(0);
  const last = await writer.stop();
  await daemon.program.stop();
  for (const { volumePath } of disks) expect(await counterOf(volumePath)).toBe(last);
  expect(await rest()).toEqual(["snapshot-s-a", "snapshot-s-b", "snapshot-s-c", "volume-a", "volume-b", "volume-c"]);
}, 300_000);

/** Another process begins; with `killAt` it kills itself the moment it asks its lease for the n-th time. */
async function begin(daemon: StorageDaemon, killAt: number | null): Promise<Program> {
  const input = { socket: daemon.qmpSocket, roots: [home], disks, operationId: options.operationId, killAt };
  return await spawnProgram({
    name: "snapshot-together",
    command: process.execPath,
    args: [join(root, "test/kit/snapshot-together.ts"), JSON.stringify(input)],
    env: { PATH: process.env["PATH"] },
  });
}

async function breakOff(daemon: StorageDaemon, killAt: number): Promise<void> {
  const program = await begin(daemon, killAt);
  const { signal } = await program.exited;
  if (signal !== "SIGKILL") throw new Error(`It was not killed:\n${program.tail()}`);
}

/** Killed while the writes are brought back: when the first overlay has gone, as far as that can be seen from outside. */
async function breakOffAtEnd(daemon: StorageDaemon): Promise<void> {
  const program = await begin(daemon, null);
  await waitFor(async () => (await overlays()).length === 3, { what: "three overlays", timeoutMs: 60_000, everyMs: 5 });
  await waitFor(async () => (await overlays()).length < 3, { what: "one has gone", timeoutMs: 60_000, everyMs: 1 });
  program.kill("SIGKILL");
  await program.exited;
}

const overlays = async (): Promise<string[]> => (await rest()).filter((name) => name.includes(".overlay-"));

test("a run killed at any step is taken back by the next, and no write is lost", async () => {
  await using daemon = await startStorageDaemon(home, served());
  const writer = await startNbdWriter(daemon.nbdSocket, names);
  await using machine = hypervisor(daemon.qmpSocket);
  // Before anything; before the transaction; in the first copy; in the last; before the snapshots get their names.
  for (const [killAt, inUse] of [
    [1, 0],
    [2, 3],
    [4, 3],
    [10, 3],
  ] as const) {
    await breakOff(daemon, killAt);
    expect(await overlays(), `killed at ${killAt}`).toHaveLength(inUse);
    await machine.snapshotTogether(disks, options, free);
    expect(isOneMoment(await counters()), `killed at ${killAt}`).toBe(true);
    expect(await overlays()).toEqual([]);
  }
  for (let time = 0; time < 2; time++) {
    await breakOffAtEnd(daemon);
    await machine.snapshotTogether(disks, options, free);
    expect(isOneMoment(await counters()), "killed at the end").toBe(true);
  }
  await breakOff(daemon, 5);
  await machine.recover(disks, free);
  await machine.recover(disks, free);
  expect(await overlays()).toEqual([]);
  const last = await writer.stop();
  await daemon.program.stop();
  for (const { volumePath } of disks) expect(await counterOf(volumePath)).toBe(last);
}, 180_000);

test("writes that a dead QEMU has left beside a disk are never passed over", async () => {
  await using daemon = await startStorageDaemon(home, served());
  await breakOff(daemon, 2);
  expect(await overlays()).toHaveLength(3);
  await daemon.program.stop({ signal: "SIGKILL" });
  await hypervisor(daemon.qmpSocket).recover(disks, free);
  expect(await overlays()).toEqual([]); // They were empty.
  await using second = await startStorageDaemon(home, served());
  const writer = await startNbdWriter(second.nbdSocket, names);
  await breakOff(second, 4);
  await writer.stop();
  await second.program.stop({ signal: "SIGKILL" });
  await using machine = hypervisor(second.qmpSocket);
  const before = await overlays();
  const attempts = [() => machine.recover(disks, free), () => machine.snapshotTogether(disks, options, free)];
  for (const attempt of attempts) {
    const outcome: unknown = await attempt().catch((error: unknown) => error);
    expect(outcome).toBeInstanceOf(HypervisorRefusedError);
    expect(String(outcome)).toMatch(/holds what the machine wrote last.*qemu-img commit/);
  }
  expect(await overlays()).toEqual(before);
}, 120_000);

test("of a machine whose monitor is gone the record is believed, and its disks are copied as they are", async () => {
  await using daemon = await startStorageDaemon(home, served());
  await daemon.program.stop();
  await using machine = hypervisor(daemon.qmpSocket);
  expect(await machine.powerState(free.signal)).toBe("SHUTOFF");
  const taken = await machine.snapshotTogether(disks, { ...options, requireConsistency: true }, free);
  expect(taken).toMatchObject({ frozenMs: null, consistency: "application" });
  await using running = openHypervisor({
    ...settings,
    socket: daemon.qmpSocket,
    socketRoots: [home],
    powerState: "ACTIVE",
  });
  expect(await running.powerState(free.signal)).toBe("ACTIVE");
  expect((await running.snapshotTogether(disks, options, free)).consistency).toBe("crash");
  for (const { volumePath, snapshotPath } of disks) {
    expect((await readFile(snapshotPath)).equals(await readFile(volumePath))).toBe(true);
  }
});

test("what cannot be done leaves the machine as it was: a foreign disk, a lost lease, an abort, no guest to freeze", async () => {
  await using daemon = await startStorageDaemon(home, served());
  await using machine = hypervisor(daemon.qmpSocket);
  const foreign = {
    volumePath: join(home, "v/volume-d"),
    snapshotPath: join(home, "v/snapshot-d"),
    device: "/dev/vdd",
  };
  await writeFile(foreign.volumePath, "");
  const withForeign = machine.snapshotTogether([...disks, foreign], options, free);
  await expect(withForeign).rejects.toThrow(`does not have ${foreign.volumePath} open`);
  const strict = machine.snapshotTogether(disks, { ...options, requireConsistency: true }, free);
  await expect(strict).rejects.toThrow(
    "The guest was not frozen while its snapshots were taken: no guest agent answers.",
  );
  for (const at of [1, 2, 3]) {
    let asked = 0;
    const fence = (): void => {
      if (++asked === at) throw new Error("lease lost");
    };
    await expect(machine.snapshotTogether(disks, options, { ...free, fence })).rejects.toThrow("lease lost");
    const controller = new AbortController();
    const abort = (): void => controller.abort(new Error("cancelled"));
    const cancelled = machine.snapshotTogether(disks, options, { ...free, signal: controller.signal, fence: abort });
    await expect(cancelled).rejects.toThrow("cancelled");
  }
  expect(await rest()).toEqual(["volume-a", "volume-b", "volume-c", "volume-d"]);
  await machine.snapshotTogether(disks, options, free);
});

test("only a socket beneath the configured folders is spoken to, and what is no monitor is left in time", async () => {
  const inside = join(home, "inside");
  await mkdir(inside);
  const answers: Record<string, string> = { text: "hello\n", json: '{"QMP":1}\n', endless: "x".repeat(5 * mebibyte) };
  await using stack = new AsyncDisposableStack();
  for (const [name, answer] of Object.entries(answers)) {
    for (const folder of [inside, home]) {
      const server = createServer((socket) => void socket.on("error", () => {}).write(answer)).listen(
        join(folder, name),
      );
      stack.defer(() => void server.close());
    }
  }
  await writeFile(join(inside, "file"), "");
  await symlink(join(home, "text"), join(inside, "link"));
  const open = (socket: string): Promise<string> =>
    openHypervisor({ ...settings, socket, socketRoots: [inside] }).powerState(free.signal);
  for (const name of ["text", "json", "endless"]) {
    await expect(open(join(inside, name)), name).rejects.toBeInstanceOf(HypervisorUnavailableError);
    await expect(open(join(home, name)), name).rejects.toBeInstanceOf(PathNotAllowedError);
    await expect(open(`${inside}/../${name}`), name).rejects.toBeInstanceOf(PathNotAllowedError);
  }
  for (const name of ["file", "link"])
    await expect(open(join(inside, name))).rejects.toBeInstanceOf(PathNotAllowedError);
  expect(await open(join(inside, "missing"))).toBe("SHUTOFF");
});

test("with its agent a machine is frozen for the transaction alone", async (context) => {
  needsGuest(context);
  await using daemon = await startStorageDaemon(home, served());
  await using guest = await startGuestAgent(home);
  await using machine = openHypervisor({
    ...settings,
    socket: daemon.qmpSocket,
    agentSocket: guest.agentSocket,
    freezeMountpoints: [guest.mountpoint],
    socketRoots: [home],
  });
  const strict = { ...options, requireConsistency: true };
  const taken = await machine.snapshotTogether(disks, strict, free);
  expect(taken.consistency).toBe("application");
  expect(taken.frozenMs).toBeLessThan(10_000);
  // The second question to the lease comes with the guest frozen, before the transaction.
  let asked = 0;
  const fence = (): void => {
    if (++asked === 2) throw new Error("lease lost");
  };
  await expect(machine.snapshotTogether(disks, strict, { ...free, fence })).rejects.toThrow("lease lost");
  await writeFile(join(guest.folder, "written"), "not frozen");
  expect(await rest()).toEqual(["snapshot-s-a", "snapshot-s-b", "snapshot-s-c", "volume-a", "volume-b", "volume-c"]);
});
