import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { provideQemuBlock } from "../../scripts/qemu-block-package.ts";
import { crashAt } from "../kit/crash-at.ts";
import type { Instance } from "../kit/instance.ts";
import { type IscsiServer, startIscsiServer } from "../kit/iscsi-target.ts";
import { firstOf, isLong } from "../kit/long.ts";
import {
  accept,
  asking,
  atRest,
  attachToGuest,
  type BesideWorld,
  backedUp,
  briskConfig,
  childOf,
  detached,
  ended,
  onHost,
  restoredTo,
  restoreManyTimes,
  restoreTo,
  same,
  snapshotOf,
  startWorld,
  write,
} from "./beside-world.ts";
import { startLyingCinder } from "./editing-proxy.ts";

const MiB = 2 ** 20;
const GiB = 2 ** 30;

let home: string;
let server: IscsiServer;
let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-beside-iscsi-"));
  await mkdir(join(home, "volumes"));
  server = await startIscsiServer(home);
  const { environment } = server;
  const say = (line: string): unknown => process.stderr.write(`${line}\n`);
  const qemu = await provideQemuBlock(environment["PATH"] ?? "", say);
  const libraries = [qemu["LD_LIBRARY_PATH"], environment["LD_LIBRARY_PATH"]].join(":");
  world = await startWorld({
    section: [
      "volume_driver = cinder_iscsi.TgtVolumeDriver",
      `files_path = ${join(home, "volumes")}`,
      `tgt_portal = 127.0.0.1:${server.port}`,
    ].join("\n"),
    environment: { ...environment, ...qemu, LD_LIBRARY_PATH: libraries },
    backend: { iscsi_portals: ["192.0.2.1", "127.0.0.0/8"] },
  });
  instance = await world.start({
    workers: 0,
    config: briskConfig,
  });
  ask = asking(instance, world.user);
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
  await rm(home, { recursive: true, force: true });
});

/** What tgtd exports as that volume. */
const file = (id: string): string => join(home, "volumes", `volume-${id}`);

async function keep(id: string, name: string): Promise<string> {
  await promisify(execFile)("cp", ["--sparse=always", file(id), join(home, name)]);
  return join(home, name);
}

/** What there is in Cinder, and what tgtd exports. */
async function objects(): Promise<string[]> {
  const volumes = (await world.service.volumes()).map(({ id, status }) => `${id} ${status}`);
  const targets = (await server.admin("--op", "show", "--mode", "target")).stdout;
  return [...volumes, ...(targets.match(/^Target .*$/gm) ?? [])].sort();
}

/** Command lines of this machine with a CHAP password, but those of the target's own tools. */
function argumentsWithSecret(): string[] {
  return readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .flatMap((name) => {
      try {
        return [readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ")];
      } catch {
        return [];
      }
    })
    .filter((line) => line.includes("canary-") && !line.startsWith("tgtadm"));
}

/** Everything that an installation has written down. */
async function written(of: Instance): Promise<string> {
  const rows = await of.sql("SELECT o, t, b FROM operations o JOIN tasks t ON t.operation_id = o.id, backups b");
  const jobs: string[] = [];
  for (const key of await of.redis.keys("*")) jobs.push((await of.redis.dumpBuffer(key))?.toString("latin1") ?? "");
  return `${JSON.stringify(rows)}${of.logs()}${jobs.join("")}`;
}

it("LUNs behind CHAP: full, incremental and of a snapshot, in use, restored to new and existing volumes, the password nowhere", async () => {
  const { user } = world;
  const mine = { instance, ask, user };
  const workers = [await instance.startWorker(), await instance.startWorker({}, onHost("other"))];
  const { id } = await user.createVolume({ name: "data" });
  const before = await objects();
  write(file(id), 5 * MiB, 3 * MiB, "one");
  const first = await keep(id, "first");
  const full = await accept(ask, { volume_id: id });
  const seen: string[] = [];
  await instance.waitFor(
    async () => {
      seen.push(...argumentsWithSecret());
      return (await ask("GET", `/backups/${full}`)).body.backup.status !== "creating";
    },
    { what: "the backup has ended", timeoutMs: 60_000 },
  );
  await ended(instance, ask, full);
  await atRest(instance);
  expect(seen).toEqual([]);
  write(file(id), 700 * MiB, MiB, "two");
  const snapshot = await snapshotOf(user, id);
  const second = await keep(id, "second");
  write(file(id), 100 * MiB, MiB, "three");
  const third = await keep(id, "third");
  const ofSnapshot = await backedUp(instance, ask, id, { snapshot_id: snapshot, incremental: true });
  const { attachment } = await user.must("POST", "/attachments", { attachment: { volume_uuid: id } });
  const inUse = await backedUp(instance, ask, id, { force: true, incremental: true }).catch((error) => error.message);
  expect(inUse).toContain('current status is \\"reserved\\"');
  await user.must("DELETE", `/attachments/${attachment.id}`);
  const guest = await attachToGuest(user, id, { ip: "127.0.0.1", initiator: "iqn.2026-11.test:guest" });
  const running = await backedUp(instance, ask, id, { force: true, incremental: true });
  await detached(user, id, guest);
  expect(await objects()).toEqual(before);
  for (const [backup, expected] of [
    [full, first],
    [ofSnapshot, second],
    [running, third],
  ] as const) {
    expect(same(expected, file(await restoredTo(mine, backup, null)))).toBe(true);
  }
  const { id: existing } = await user.createVolume({ size: 2, name: "existing" });
  write(file(existing), 0, 4 * MiB, "old");
  write(file(existing), GiB + MiB, MiB, "tail");
  const whole = await keep(existing, "existing");
  await restoredTo(mine, running, existing);
  expect(same(third, file(existing))).toBe(true);
  expect(same(whole, file(existing), 2 * GiB, GiB)).toBe(true);
  expect(await written(instance)).not.toContain("canary-");
  expect((await objects()).filter((each) => each.startsWith("Target"))).toEqual([]);
  for (const worker of workers) await worker.stop({ signal: "SIGKILL" });
});

it.runIf(isLong)(
  "40 restores of random edits are exact",
  async () => {
    const worker = await instance.startWorker();
    const kind = {
      write: (id: string, ...more: [number, number, string]) => write(file(id), ...more),
      keep,
      isSame: (id: string, expected: string) => same(expected, file(id)),
    };
    await restoreManyTimes({ instance, ask, user: world.user }, kind, 40);
    await worker.stop({ signal: "SIGKILL" });
  },
  3_600_000,
);

/** A backup of a volume with these bytes, and a volume to restore it to. */
async function prepared(seed: string): Promise<{ backup: string; id: string; target: string }> {
  const { user } = world;
  const { id } = await user.createVolume({ name: "data" });
  write(file(id), 0, 8 * MiB, seed);
  const worker = await instance.startWorker();
  const backup = await backedUp(instance, ask, id);
  await worker.stop({ signal: "SIGKILL" });
  const { id: target } = await user.createVolume({ name: "target" });
  write(file(target), 0, 2 * MiB, "old");
  return { backup, id, target };
}

describe("a worker is lost during a restore", () => {
  const points = ["cinder.set-metadata.answered:2", "cinder.detach:1", "cinder.connect.answered:1"];
  it.each(firstOf(2, points))("at %s: another one on the same host goes on", async (point) => {
    const { user } = world;
    const { backup, id, target } = await prepared(point);
    const mortal = await instance.startWorker(crashAt(point));
    await restoreTo(ask, backup, target);
    await instance.waitFor(() => !mortal.running(), { what: `the worker died at ${point}`, timeoutMs: 30_000 });
    const heir = await instance.startWorker();
    await user.volumeIn(target, "available");
    await atRest(instance);
    expect(same(file(id), file(target))).toBe(true);
    expect((await user.must("GET", `/volumes/${target}`)).volume.metadata).toEqual({ src_backup_id: backup });
    await heir.stop({ signal: "SIGKILL" });
  });

  it("on another host, nobody goes on: the volume is in error_restoring, and released", async () => {
    const { user } = world;
    const { backup, target } = await prepared("elsewhere");
    const mortal = await instance.startWorker(crashAt("cinder.set-metadata.answered:2"));
    await restoreTo(ask, backup, target);
    await instance.waitFor(() => !mortal.running(), { what: "the worker died", timeoutMs: 30_000 });
    const heir = await instance.startWorker({}, onHost("other"));
    const { attachments } = await user.volumeIn(target, "error_restoring");
    await atRest(instance);
    expect(attachments).toEqual([]);
    const [row] = await instance.sql("SELECT fail_reason FROM operations WHERE volume_id = $1", [target]);
    expect(row.fail_reason).toMatch(/^A worker on host .* was lost while it was writing; make sure that it is gone/);
    await heir.stop({ signal: "SIGKILL" });
  });

  it("and is only late: nobody writes beside it, and what it still sends after the release comes to nothing", async () => {
    const { user, service } = world;
    const { backup, target } = await prepared("late");
    const limit = "/ops/limits/repositories/repository/main";
    const asAdmin = { "x-auth-token": service.token };
    const set = await instance.request("PUT", limit, { bytes_per_second: 256 * 1024 }, asAdmin);
    expect(set.status, set.text).toBe(200);
    const late = await instance.startWorker();
    await restoreTo(ask, backup, target);
    const nbd = await instance.waitFor(
      async () => {
        const { metadata } = (await user.must("GET", `/volumes/${target}`)).volume;
        return metadata.tephra_restore?.includes("writer") && childOf(late.pid, "qemu-nbd");
      },
      { what: "it writes", timeoutMs: 30_000 },
    );
    process.kill(nbd, "SIGSTOP");
    late.kill("SIGSTOP");
    expect((await instance.request("DELETE", limit, undefined, asAdmin)).status).toBe(204);
    const heir = await instance.startWorker();
    await user.volumeIn(target, "error_restoring");
    await atRest(instance);
    const [row] = await instance.sql("SELECT fail_reason FROM operations WHERE volume_id = $1", [target]);
    expect(row.fail_reason).toMatch(/^A restore that was given up has not let go of the volume yet/);
    write(file(target), 0, 9 * MiB, "owner");
    const owners = await keep(target, "owner");
    process.kill(nbd, "SIGCONT");
    late.kill("SIGCONT");
    await instance.waitFor(() => childOf(late.pid, "qemu-nbd") === null, {
      what: "the late one has given up",
      timeoutMs: 90_000,
    });
    expect(same(owners, file(target))).toBe(true);
    await late.stop({ signal: "SIGKILL" });
    await heir.stop({ signal: "SIGKILL" });
  });
});

it("what Cinder says that is of no configured portal, or of no form, opens nothing and shows no secret", async () => {
  const { user, cinder } = world;
  const cases: [object, RegExp][] = [
    [{ target_portal: "198.51.100.7:3260" }, /target_portal is none of those that are configured/],
    [{ target_portal: "localhost:3260" }, /target_portal is not of the form ADDRESS:PORT/],
    [{ target_portal: "127.0.0.1:99999" }, /target_portal is not of the form/],
    [{ target_portal: "[::1]:3260" }, /target_portal is none of those/],
    [{ target_iqn: "iqn.x canary-1,file=/etc/passwd" }, /target_iqn is missing or not of its form/],
    [{ target_lun: -1 }, /target_lun is missing or not of its form/],
    [{ target_lun: "1" }, /target_lun is missing or not of its form/],
    [{ auth_username: null }, /one of auth_username and auth_password without the other/],
    [{ auth_password: "canary-\n" }, /auth_password is missing or not of its form/],
    [{ auth_method: "canary-kerberos" }, /auth_method is missing or not of its form/],
    [{ auth_password: "canary-wrong-one" }, /Authentication failure/],
    [{ target_lun: 7 }, /LOGICAL_UNIT_NOT_SUPPORTED/],
  ];
  const lies = cases.map(([lie]) => lie);
  await using proxy = await startLyingCinder(cinder.url, lies);
  const config = { tasks: { backoff_ms: 50 }, quotas: { backups: -1, backup_gigabytes: -1 } };
  await using hostile = await world.start({ backend: { url: proxy.url }, config });
  const there = asking(hostile, user);
  const { id } = await user.createVolume({ name: "data" });
  const before = await objects();
  const reasons: string[] = [];
  for (const _ of cases) {
    const backup = await accept(there, { volume_id: id });
    reasons.push((await ended(hostile, there, backup, "error")).fail_reason);
    await atRest(hostile);
  }
  expect(reasons).toEqual(cases.map(([, reason]) => expect.stringMatching(reason)));
  expect(await objects()).toEqual(before);
  expect(await written(hostile)).not.toContain("canary-");
});
