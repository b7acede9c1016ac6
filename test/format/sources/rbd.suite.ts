import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Ceph } from "../../kit/ceph.ts";
import { type CephPool, startCephPool } from "../../kit/ceph-pool.ts";
import { type EngineCommand, engineIn, writeDisk } from "../../kit/engine-command.ts";
import { waitFor } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;

let cluster: CephPool;
let ceph: Ceph;
let home: string;
let command: EngineCommand;
let settings: string;

beforeAll(async () => {
  cluster = await startCephPool();
  ceph = cluster.ceph;
  settings = `conf=${ceph.conf}&user=tephra&keyring=${cluster.keyring}`;
});
afterAll(() => cluster?.[Symbol.asyncDispose]());
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-rbd-"));
  command = engineIn(home, cluster.environment);
});
afterEach(async () => {
  for (const image of JSON.parse(await rbd("ls", "--format", "json", "volumes")) as string[]) {
    await rbd("snap", "purge", `volumes/${image}`);
    await rbd("rm", `volumes/${image}`);
  }
  await rm(home, { recursive: true, force: true });
});

const rbd = (...args: string[]): Promise<string> => ceph.run("rbd", ...args);
const named = (place: string, more = settings): string => `rbd:${place}?${more}`;

/** Made by Ceph's own tool from a raw disk. */
async function importDisk(name: string): Promise<void> {
  await writeDisk(join(home, "disk.raw"));
  await rbd("import", join(home, "disk.raw"), `volumes/${name}`);
}

/** What Ceph itself says an image contains, beside a raw file. */
async function expectSame(image: string, raw: string): Promise<void> {
  await rm(join(home, "exported"), { force: true });
  await rbd("export", `volumes/${image}`, join(home, "exported"));
  await command.mustRun("qemu-img", "compare", "-f", "raw", "-F", "raw", "exported", raw);
}

describe("an image of Ceph", () => {
  it("is backed up, and an image that exists is written in place", async () => {
    await importDisk("disk");
    const backup = await command.backUp(named("volumes/disk"));
    expect(await command.restore(backup, "restored.raw")).toMatchObject({ status: 0 });
    await expectSame("disk", "restored.raw");
    await writeFile(join(home, "old.raw"), Buffer.alloc(24 * MiB, 9));
    await rbd("import", join(home, "old.raw"), "volumes/target");
    const { status, stderr } = await command.restore(backup, named("volumes/target"));
    expect(status, stderr).toBe(0);
    await expectSame("target", "disk.raw");
  });

  it("is backed up as its snapshot while a machine uses it, and incrementally", async () => {
    await importDisk("disk");
    await rbd("snap", "create", "volumes/disk@first");
    const full = await command.backUp(named("volumes/disk@first"));
    const image = `json:${JSON.stringify({ driver: "raw", file: { driver: "rbd", pool: "volumes", image: "disk", conf: ceph.conf } })}`;
    await command.mustRun("qemu-io", "-c", "write -P 7 3M 100k", "-c", "discard 17M 1M", image);
    await rbd("snap", "create", "volumes/disk@second");
    const machine = command.mustRun("qemu-io", "-c", "write -P 5 0 1M", "-c", "sleep 20000", image);
    const watched = async () => (await rbd("status", "volumes/disk")).includes("watcher=");
    await waitFor(watched, { what: "the machine has opened it" });
    const inUse = await command.tryBackUp(named("volumes/disk"));
    expect(JSON.parse(inUse.stdout).error).toMatchObject({ message: expect.stringMatching(/is in use by client\./) });
    const overwritten = await command.restore(full, named("volumes/disk"));
    expect(overwritten).toMatchObject({ status: 1, stderr: expect.stringMatching(/is in use by client\./) });
    const next = await command.backUp(named("volumes/disk@second"), "--parent", full);
    expect(await command.restore(full, "full.raw")).toMatchObject({ status: 0 });
    expect(await command.restore(next, "next.raw")).toMatchObject({ status: 0 });
    await expectSame("disk@first", "full.raw");
    await expectSame("disk@second", "next.raw");
    await machine;
  });

  it("that is a clone, in a namespace or has a name of unusual letters is read exactly", async () => {
    await importDisk("disk");
    await rbd("snap", "create", "volumes/disk@base");
    await rbd("snap", "protect", "volumes/disk@base");
    await rbd("clone", "volumes/disk@base", "volumes/a clone, 50%");
    const backup = await command.backUp(named("volumes/a%20clone,%2050%25"));
    expect(await command.restore(backup, "restored.raw")).toMatchObject({ status: 0 });
    await command.mustRun("qemu-img", "compare", "-f", "raw", "-F", "raw", "disk.raw", "restored.raw");
    await rbd("rm", "volumes/a clone, 50%");
    await rbd("snap", "unprotect", "volumes/disk@base");
    await rbd("namespace", "create", "volumes/inner");
    await rbd("import", join(home, "disk.raw"), "volumes/inner/disk");
    const inner = await command.backUp(named("volumes/inner/disk"));
    expect(await command.restore(inner, "inner.raw")).toMatchObject({ status: 0 });
    await command.mustRun("qemu-img", "compare", "-f", "raw", "-F", "raw", "disk.raw", "inner.raw");
    await rbd("rm", "volumes/inner/disk");
  });

  it("is refused without rights, without a key, and when it, its pool or its snapshot is missing", async () => {
    await importDisk("disk");
    const none = await ceph.user("none", "mon", "allow r");
    const reader = await ceph.user(
      "reader",
      "mon",
      "profile rbd-read-only",
      "osd",
      "profile rbd-read-only pool=volumes",
    );
    const cases: [string, string][] = [
      [named("volumes/disk", `conf=${ceph.conf}&user=none&keyring=${none}`), "(1) Operation not permitted"],
      [named("volumes/disk", `conf=${ceph.conf}&user=reader&keyring=${reader}`), "Operation not permitted"],
      [named("volumes/disk", `conf=${ceph.conf}&user=nobody&keyring=${none}`), "couldn't connect to the cluster"],
      [named("volumes/disk", `conf=${ceph.conf}&user=none`), "couldn't connect to the cluster"],
      [named("volumes/disk", "conf=/missing.conf"), "unable to open config file"],
      [named("volumes/disc"), "error opening image disc: (2) No such file or directory"],
      [named("volumez/disk"), "error opening pool 'volumez': (2) No such file or directory"],
      [named("volumes/disk@none"), "the image has no such snapshot"],
      [named("disk"), "names no image"],
      [named("volumes/disk", "conf=a&key=AQ=="), "unknown"],
    ];
    for (const [source, why] of cases) {
      const { status, stdout } = await command.tryBackUp(source);
      expect(JSON.parse(stdout).error.message).toContain(why);
      expect(status).toBe(1);
    }
  });

  it("that is too short, or a snapshot, is not overwritten", async () => {
    await importDisk("disk");
    await rbd("snap", "create", "volumes/disk@first");
    const backup = await command.backUp("disk.raw");
    await rbd("create", "--size", "1M", "volumes/short");
    const short = await command.restore(backup, named("volumes/short"));
    expect(short).toMatchObject({ status: 1, stderr: expect.stringContaining("has 1048576 bytes, too few") });
    const snapshot = await command.restore(backup, named("volumes/disk@first"));
    expect(snapshot).toMatchObject({ status: 1, stderr: expect.stringContaining("it is a snapshot") });
  });

  it("that a machine opens meanwhile is not backed up as one point in time", async () => {
    await rbd("create", "--size", "300M", "volumes/disk");
    await rbd("bench", "--io-type", "write", "--io-size", "1M", "--io-total", "300M", "volumes/disk");
    const sizes = ["--object-bytes", "1048576", "--json"];
    const running = command.start("backup", "--source", named("volumes/disk"), ...sizes);
    await begun();
    const image = `json:${JSON.stringify({ driver: "raw", file: { driver: "rbd", pool: "volumes", image: "disk", conf: ceph.conf } })}`;
    const machine = command.mustRun("qemu-io", "-c", "write -P 5 0 1M", "-c", "sleep 60000", image);
    const { status, stdout } = await running.done;
    expect(status, stdout).toBe(1);
    expect(JSON.parse(stdout).error).toMatchObject({ message: expect.stringMatching(/was opened by client\.\d+ at/) });
    await machine;
  });

  it("whose snapshot is removed meanwhile ends the backup", async () => {
    await rbd("create", "--size", "300M", "volumes/disk");
    await rbd("bench", "--io-type", "write", "--io-size", "1M", "--io-total", "300M", "volumes/disk");
    await rbd("snap", "create", "volumes/disk@first");
    const running = command.start(
      "backup",
      "--source",
      named("volumes/disk@first"),
      "--object-bytes",
      "1048576",
      "--json",
    );
    await begun();
    await rbd("snap", "rm", "volumes/disk@first");
    const { status, stdout } = await running.done;
    expect(status, stdout).toBe(1);
    expect(["source_missing", "volume_storage"]).toContain(JSON.parse(stdout).error.code);
  });
});

/** Settles when a command has stored something. */
async function begun(): Promise<void> {
  const stored = async (): Promise<boolean> =>
    (await command.run("find", "repository", "-name", "volume_*")).stdout.includes("volume_");
  await waitFor(stored, { what: "something is stored", timeoutMs: 60_000 });
}

describe("an OSD that stops in the middle", () => {
  it("and comes back lets the backup go on", async () => {
    await rbd("create", "--size", "300M", "volumes/disk");
    await rbd("bench", "--io-type", "write", "--io-size", "1M", "--io-total", "300M", "volumes/disk");
    const running = command.start("backup", "--source", named("volumes/disk"), "--object-bytes", "1048576", "--json");
    await begun();
    await ceph.stopOsd();
    await ceph.startOsd();
    const { status, stdout, stderr } = await running.done;
    expect(status, stdout + stderr).toBe(0);
    expect(await command.restore(JSON.parse(stdout).backup.id, "restored.raw")).toMatchObject({ status: 0 });
    await expectSame("disk", "restored.raw");
  });

  it("and stays away ends the backup with a reason, and qemu-nbd", async () => {
    await rbd("create", "--size", "300M", "volumes/disk");
    await rbd("bench", "--io-type", "write", "--io-size", "1M", "--io-total", "300M", "volumes/disk");
    const running = command.start("backup", "--source", named("volumes/disk"), "--object-bytes", "1048576", "--json");
    await begun();
    const child = await command.childOf(running.child, "qemu-nbd");
    await ceph.stopOsd();
    try {
      const { status, stdout } = await running.done;
      expect(status).toBe(1);
      expect(JSON.parse(stdout).error.message).toContain("did not answer for 60 s");
      expect((await command.run("kill", "-0", String(child))).status).not.toBe(0);
      const again = await command.tryBackUp(named("volumes/disk"));
      expect(JSON.parse(again.stdout).error.message).toMatch(/did not answer for 30 s|nothing happened for 30 s/);
    } finally {
      await ceph.startOsd();
    }
  });
});
