import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { provideQemuBlock } from "../../scripts/qemu-block-package.ts";
import { randomBytesOf } from "../kit/bytes.ts";
import type { Instance } from "../kit/instance.ts";
import { isLong } from "../kit/long.ts";
import {
  accept,
  asking,
  atRest,
  type BesideWorld,
  backedUp,
  ended,
  restoredTo,
  restoreManyTimes,
  snapshotOf,
  startWorld,
} from "./beside-world.ts";
import { startLyingCinder } from "./editing-proxy.ts";

const MiB = 2 ** 20;
const namespaces = spawnSync("unshare", ["-Urm", "true"]).status === 0;
const share = "127.0.0.1:/srv/cinder";
const md5 = createHash("md5").update(share).digest("hex");

/* No NFS is needed: Cinder and workers run where the folder of the share is mounted on itself, in a namespace of their own. */
describe.skipIf(!namespaces).each(["raw", "qcow2"] as const)("files of Cinder's own NFS driver, %s", (format) => {
  let home: string;
  let files: string;
  let tools: Record<string, string>;
  let mounted: string[];
  let world: BesideWorld;
  let instance: Instance;
  let ask: ReturnType<typeof asking>;

  beforeAll(async () => {
    home = await mkdtemp(join(tmpdir(), "tephra-beside-nfs-"));
    const base = join(home, "mnt");
    files = join(base, md5);
    mkdirSync(files, { recursive: true });
    mkdirSync(join(home, "bin"));
    writeFileSync(join(home, "bin/mount.nfs"), "#!/bin/sh\n");
    chmodSync(join(home, "bin/mount.nfs"), 0o755);
    writeFileSync(join(home, "shares"), `${share}\n`);
    mounted = ["unshare", "-Urm", "sh", "-c", 'mount --bind "$0" "$0" && exec "$@"', files];
    const say = (line: string): unknown => process.stderr.write(`${line}\n`);
    tools = await provideQemuBlock(`${join(home, "bin")}:${process.env["PATH"]}`, say);
    world = await startWorld({
      section: [
        "volume_driver = cinder.volume.drivers.nfs.NfsDriver",
        `nfs_shares_config = ${join(home, "shares")}`,
        `nfs_mount_point_base = ${base}`,
        "nfs_snapshot_support = true",
        `nfs_qcow2_volumes = ${format === "qcow2"}`,
        "nas_secure_file_operations = false",
        "nas_secure_file_permissions = false",
      ].join("\n"),
      environment: tools,
      prefix: mounted,
      backend: { nfs_mount_base: base },
    });
    instance = await world.start({ workers: 0 });
    ask = asking(instance, world.user);
    await instance.startWorker({}, mounted);
  });
  afterAll(async () => {
    await instance?.[Symbol.asyncDispose]();
    await world?.[Symbol.asyncDispose]();
    await rm(home, { recursive: true, force: true });
  });

  function run(program: string, ...args: string[]): string {
    const { status, stdout, stderr } = spawnSync(program, args, {
      env: { ...process.env, ...tools },
      encoding: "utf8",
    });
    if (status !== 0) throw new Error(`${program} ${args.join(" ")}: ${stderr}`);
    return stdout;
  }

  /** Where a volume's bytes are now: its newest image. */
  function active(id: string): { path: string; format: string } {
    const all = readdirSync(files).filter((name) => name.startsWith(`volume-${id}`) && !name.endsWith(".info"));
    const overlay = all.find((name) => name !== `volume-${id}`);
    return { path: join(files, overlay ?? `volume-${id}`), format: overlay === undefined ? format : "qcow2" };
  }

  /** Writes random bytes of that seed, as a machine would that has the volume. */
  function write(id: string, offset: number, length: number, seed: string): void {
    const bytes = join(home, "bytes");
    writeFileSync(bytes, randomBytesOf(seed, length));
    const { path, format: of } = active(id);
    run("qemu-io", "-f", of, "-c", `write -s ${bytes} ${offset} ${length}`, path);
  }

  /** What a volume holds, as one raw file. */
  function keep(id: string, name: string): string {
    const { path, format: of } = active(id);
    run("qemu-img", "convert", "-f", of, "-O", "raw", path, join(home, name));
    return join(home, name);
  }

  const expectSame = (id: string, expected: string): unknown => {
    const { path, format: of } = active(id);
    return run("qemu-img", "compare", "-f", "raw", "-F", of, expected, path);
  };

  it("are backed up and restored exactly, to new volumes and to one that builds on its snapshots", async () => {
    const { user } = world;
    const mine = { instance, ask, user };
    const { id } = await user.createVolume({ name: "data" });
    write(id, 5 * MiB, 3 * MiB, "one");
    const first = keep(id, "first");
    // Beside a volume's image, Cinder's driver keeps notes about those that it builds on.
    const images = () =>
      readdirSync(files)
        .filter((name) => !name.endsWith(".info"))
        .sort();
    const before = images();
    const full = await backedUp(instance, ask, id);
    write(id, 700 * MiB, MiB, "two");
    const second = keep(id, "second");
    const next = await backedUp(instance, ask, id, { incremental: true });
    expect(images()).toEqual(before);
    expectSame(await restoredTo(mine, full, null), first);
    expectSame(await restoredTo(mine, next, null), second);
    const { id: target } = await user.createVolume({ name: "target" });
    write(target, 0, 8 * MiB, "old");
    await snapshotOf(user, target);
    const base = join(files, `volume-${target}`);
    copyFileSync(base, join(home, "base"));
    expect(active(target).path).not.toBe(base);
    await restoredTo(mine, full, target);
    expectSame(target, first);
    run("cmp", base, join(home, "base"));
  });

  it.runIf(isLong)(
    "40 restores of random edits are exact",
    () =>
      restoreManyTimes(
        { instance, ask, user: world.user },
        {
          write,
          keep,
          isSame: (id, expected) => expectSame(id, expected) !== null,
        },
        40,
      ),
    3_600_000,
  );

  it("what Cinder says of an image that leads out of the share, or of no share, opens nothing", async () => {
    const { user, cinder } = world;
    const outside = join(home, "outside");
    writeFileSync(outside, Buffer.alloc(MiB, 7));
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", outside, "-F", "raw", join(files, "leads-out"), "1G");
    run("qemu-img", "create", "-q", "-f", "qcow2", outside.concat(".qcow2"), "1G");
    symlinkSync(outside.concat(".qcow2"), join(files, "link"));
    symlinkSync(outside, join(files, "raw-link"));
    const cases: [object, RegExp][] = [
      [{ name: "leads-out", format: "qcow2" }, /is in none of the folders where backing files may be/],
      [{ name: "link", format: "qcow2" }, /name is a link/],
      [{ name: "raw-link", format: "raw" }, /is not a regular file inside an allowed folder/],
      [{ name: "../../outside" }, /name is missing or not of its form/],
      [{ format: "vmdk" }, /format is missing or not of its form/],
      [{ export: "127.0.0.1:/etc", format: "raw" }, /the share is not mounted there/],
    ];
    const lies = cases.map(([lie]) => lie);
    await using proxy = await startLyingCinder(cinder.url, lies);
    await using hostile = await world.start({
      workers: 0,
      backend: { url: proxy.url },
      config: { tasks: { backoff_ms: 50 } },
    });
    await hostile.startWorker({}, mounted);
    const there = asking(hostile, user);
    const reasons: string[] = [];
    for (const _ of cases) {
      const { id } = await user.createVolume({ name: "data" });
      const backup = await accept(there, { volume_id: id });
      reasons.push((await ended(hostile, there, backup, "error")).fail_reason);
      await atRest(hostile);
    }
    expect(reasons).toEqual(cases.map(([, reason]) => expect.stringMatching(reason)));
    expect(existsSync(outside)).toBe(true);
  });
});
