import { once } from "node:events";
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { provideQemuBlock } from "../../scripts/qemu-block-package.ts";
import { type EngineCommand, engineIn, writeDisk } from "../kit/engine-command.ts";
import { type IscsiTarget, startIscsiTarget } from "../kit/iscsi-target.ts";
import { isLong } from "../kit/long.ts";
import { waitFor } from "../kit/wait-for.ts";

// Each test runs several programs, one after another.
vi.setConfig({ testTimeout: 120_000 });

const MiB = 1024 * 1024;

let environment: Record<string, string>;
let disks: string;
let target: IscsiTarget;
let home: string;
let command: EngineCommand;

beforeAll(async () => {
  environment = await provideQemuBlock(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  disks = await mkdtemp(join(tmpdir(), "tephra-luns-"));
  await writeDisk(join(disks, "disk"));
  await writeFile(join(disks, "blank"), Buffer.alloc(25 * MiB, 9));
  await writeFile(join(disks, "short"), Buffer.alloc(MiB));
  // Zeros that are written: a file of this size is read completely.
  await writeFile(join(disks, "large"), Buffer.alloc(300 * MiB));
  target = await startIscsiTarget(
    disks,
    ["disk", "blank", "short", "large"].map((name) => join(disks, name)),
  );
}, 300_000);
afterAll(async () => {
  await target?.[Symbol.asyncDispose]();
  await rm(disks, { recursive: true, force: true });
});
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-iscsi-"));
  command = engineIn(home, environment);
  await writeFile(join(home, "password"), `${target.password}\n`, { mode: 0o600 });
});
afterEach(() => rm(home, { recursive: true, force: true }));

const url = (lun: number, { iqn = target.iqn, port = target.port, more = "?password-file=password" } = {}): string =>
  `iscsi://${more === "" ? "" : `${target.user}@`}127.0.0.1:${port}/${iqn}/${lun}${more}`;

/** Where an operator, another user or a later reader could find a password. */
async function placesWithPassword(pid: number): Promise<string[]> {
  const found: string[] = [];
  for (const name of ["cmdline", "environ"]) {
    if ((await readFile(`/proc/${pid}/${name}`, "latin1")).includes(target.password)) found.push(name);
  }
  for (const name of await readdir(tmpdir(), { recursive: true }).catch(() => [])) {
    if (!name.startsWith("tephra-nbd-")) continue;
    const text = await readFile(join(tmpdir(), name), "latin1").catch(() => "");
    if (text.includes(target.password)) found.push(name);
  }
  return found;
}

/** Settles when a command has stored something. */
const begun = async (): Promise<void> => {
  const stored = async (): Promise<boolean> =>
    (await command.run("find", "repository", "-name", "volume_*")).stdout.includes("volume_");
  await waitFor(stored, { what: "something is stored", timeoutMs: 60_000 });
};

describe("a LUN of iSCSI", () => {
  it("is backed up, and written in place, with a password that shows nowhere", async () => {
    const running = command.start("backup", "--source", url(1), "--json");
    const child = await waitFor(() => command.childOf(running.child, "qemu-nbd"), { what: "it reads" });
    expect(await placesWithPassword(child)).toEqual([]);
    const { status, stdout, stderr } = await running.done;
    expect(status, stdout + stderr).toBe(0);
    expect(stdout + stderr).not.toContain(target.password);
    const restored = await command.restore(JSON.parse(stdout).backup.id, url(2));
    expect(restored).toMatchObject({ status: 0 });
    const [was, is] = await Promise.all(["disk", "blank"].map((name) => readFile(join(disks, name))));
    expect(is?.subarray(0, was?.length).equals(was as Buffer)).toBe(true);
    expect(is?.subarray(was?.length).every((byte) => byte === 9)).toBe(true);
  });

  it.each<[string, () => string, string]>([
    ["by a wrong password", () => url(1, { more: "?password-file=wrong" }), "Authentication failure"],
    ["without a password", () => url(1, { more: "" }), "Authentication failure"],
    ["that is not there", () => url(9), "LOGICAL_UNIT_NOT_SUPPORTED"],
    ["of another target", () => url(1, { iqn: "iqn.2026-11.test.tephra:other" }), "Target not found"],
    ["that is the target's controller", () => url(0), "is not a disk: it has no bytes"],
    ["where nobody listens", () => url(1, { port: 1 }), "cannot be opened: iSCSI: Failed to connect to LUN"],
    ["with a password file that everybody can read", () => url(1, { more: "?password-file=open" }), "every user"],
    ["with a missing password file", () => url(1, { more: "?password-file=none" }), "cannot be read (ENOENT)"],
    ["without a name", () => "iscsi://127.0.0.1/1", "names no target and LUN"],
    ["with a setting of QEMU", () => url(1, { more: "?password-file=password&timeout=1" }), "are unknown"],
  ])("(%s) is refused", async (_, source, why) => {
    await writeFile(join(home, "wrong"), "wrong-password-1", { mode: 0o600 });
    await writeFile(join(home, "open"), target.password);
    await chmod(join(home, "open"), 0o644);
    const { status, stdout } = await command.tryBackUp(source());
    expect(JSON.parse(stdout).error.message).toContain(why);
    expect(status).toBe(1);
  });

  it("with a password in its URL is refused without repeating it", async () => {
    for (const user of ["reader:canary-secret-1", "reader%25canary-secret-1"]) {
      const { stdout, stderr } = await command.tryBackUp(`iscsi://${user}@127.0.0.1/${target.iqn}/1`);
      expect(stdout).toContain("A password does not belong into a URL");
      expect(stdout + stderr).not.toContain("canary");
    }
  });

  it("that is too short for a restore is left alone", async () => {
    await writeDisk(join(home, "disk.raw"));
    const backup = await command.backUp("disk.raw");
    const { status, stderr } = await command.restore(backup, url(3));
    expect(stderr).toContain("has 1048576 bytes, too few for 25165824");
    expect(status).toBe(1);
    expect((await readFile(join(disks, "short"))).every((byte) => byte === 0)).toBe(true);
  });
});

describe("a target that stops in the middle", () => {
  it("and comes back is read on", async () => {
    const running = command.start("backup", "--source", url(4), "--object-bytes", String(MiB), "--json");
    await begun();
    await target.kill();
    await target.restart();
    const { status, stdout, stderr } = await running.done;
    expect(status, stdout + stderr).toBe(0);
    expect(JSON.parse(stdout).backup.volume_bytes).toBe(300 * MiB);
  });

  it.runIf(isLong)(
    "and stays away ends the backup with a reason, and qemu-nbd",
    async () => {
      const running = command.start("backup", "--source", url(4), "--object-bytes", String(MiB), "--json");
      await begun();
      const child = await command.childOf(running.child, "qemu-nbd");
      await target.kill();
      const { status, stdout } = await running.done;
      await target.restart();
      expect(JSON.parse(stdout).error).toMatchObject({ message: expect.stringContaining("did not answer for 60 s") });
      expect(status).toBe(1);
      expect((await command.run("kill", "-0", String(child))).status).not.toBe(0);
    },
    180_000,
  );
});

it("leaves no qemu-nbd when it is killed before the target has answered", async () => {
  const server = createServer(() => {}).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const { port } = server.address() as { port: number };
    const { child, done } = command.start("backup", "--source", url(1, { port }));
    const served = await waitFor(() => command.childOf(child, "qemu-nbd"), { what: "qemu-nbd connects" });
    child.kill("SIGKILL");
    await done;
    const gone = async (): Promise<boolean> => (await command.run("kill", "-0", String(served))).status !== 0;
    await waitFor(gone, { what: "qemu-nbd has ended", timeoutMs: 2_000 });
  } finally {
    server.close();
  }
});
