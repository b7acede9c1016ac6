import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { constants } from "node:fs";
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { provideQemuUtils } from "../../scripts/qemu-utils-package.ts";
import { freePort } from "../../scripts/spawn-program.ts";
import { type EngineCommand, engineIn, entry, type Run, writeDisk } from "../kit/engine-command.ts";
import { attachLoopDevice } from "../kit/loop-device.ts";
import { waitFor } from "../kit/wait-for.ts";

// Each test runs several programs, one after another.
vi.setConfig({ testTimeout: 120_000 });

const MiB = 1024 * 1024;

let environment: Record<string, string>;
let home: string;
let repository: string[];
let command: EngineCommand;

beforeAll(async () => {
  environment = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
}, 300_000);
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-named-"));
  command = engineIn(home, environment);
  repository = ["--repository", `posix:${join(home, "repository")}`];
});
afterEach(() => rm(home, { recursive: true, force: true }));

const run = (program: string, args: readonly string[]): Promise<Run> => command.run(program, ...args);
const engine = (...args: string[]): Promise<Run> => command.engine(...args);
const qemu = (program: "qemu-img" | "qemu-io", ...args: string[]) => command.mustRun(program, ...args);
const disk = (name: string): Promise<void> => writeDisk(join(home, name));
const backUp = (source: string, ...more: string[]): Promise<string> => command.backUp(source, ...more);
const restore = (backup: string, target: string): Promise<Run> => command.restore(backup, target);

describe("an image of another program", () => {
  const kinds: Record<string, { format: string; make: () => Promise<unknown> }> = {
    "qcow2 with clusters of 64 KiB": {
      format: "qcow2",
      make: () => qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "image"),
    },
    "qcow2 with compressed clusters of 2 MiB": {
      format: "qcow2",
      make: () =>
        qemu("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2M", "disk.raw", "image"),
    },
    "qcow2 with an internal snapshot": {
      format: "qcow2",
      make: async () => {
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", "image", "24M");
        await qemu("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 5M", "image");
        await qemu("qemu-img", "snapshot", "-c", "before", "image");
        await qemu("qemu-io", "-f", "qcow2", "-c", "write -P 8 2M 1M", "-c", "write -z 4M 1M", "image");
      },
    },
    "qcow2 over two others and a raw one": {
      format: "qcow2",
      make: async () => {
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "one");
        await qemu("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 300k", "one");
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "one", "-F", "qcow2", "two");
        await qemu("qemu-io", "-f", "qcow2", "-c", "write -z 17M 64k", "-c", "write -P 7 20M 1M", "two");
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "two", "-F", "qcow2", "image", "32M");
      },
    },
    vmdk: {
      format: "vmdk",
      make: () => qemu("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "disk.raw", "image"),
    },
    vhdx: {
      format: "vhdx",
      make: () => qemu("qemu-img", "convert", "-f", "raw", "-O", "vhdx", "disk.raw", "image"),
    },
    vdi: { format: "vdi", make: () => qemu("qemu-img", "convert", "-f", "raw", "-O", "vdi", "disk.raw", "image") },
  };

  it.each(Object.entries(kinds))(
    "(%s) is backed up and restored exactly, as QEMU reads it",
    async (_, { format, make }) => {
      await disk("disk.raw");
      await make();
      const backup = await backUp(`${format}:image`);
      expect(await restore(backup, "qcow2:restored")).toMatchObject({ status: 0 });
      await qemu("qemu-img", "compare", "-f", format, "-F", "qcow2", "image", "restored");
      expect(await restore(backup, "restored.raw")).toMatchObject({ status: 0 });
      await qemu("qemu-img", "compare", "-f", format, "-F", "raw", "image", "restored.raw");
    },
  );

  it("is restored into a larger one where a size is named, and never over one that exists", async () => {
    await disk("disk.raw");
    const backup = await backUp("disk.raw");
    expect(await restore(backup, `qcow2:larger?size=${64 * MiB}`)).toMatchObject({ status: 0 });
    await qemu("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "disk.raw", "larger");
    const before = await readFile(join(home, "larger"));
    const again = await restore(backup, "qcow2:larger");
    expect(again).toMatchObject({ status: 1, stderr: expect.stringContaining("exists already") });
    expect((await readFile(join(home, "larger"))).equals(before)).toBe(true);
    const short = await restore(backup, `qcow2:short?size=${MiB}`);
    expect(short).toMatchObject({ status: 1, stderr: expect.stringContaining("too short") });
  });

  it("has an incremental that reads as QEMU does", async () => {
    await qemu("qemu-img", "create", "-q", "-f", "qcow2", "image", "24M");
    await qemu("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 5M", "image");
    const full = await backUp("qcow2:image");
    await qemu("qemu-io", "-f", "qcow2", "-c", "write -P 5 3M 64k", "image");
    const next = await backUp("qcow2:image", "--parent", full);
    expect(await restore(next, "qcow2:restored")).toMatchObject({ status: 0 });
    await qemu("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", "image", "restored");
  });
});

describe("an image that would lead elsewhere is refused", () => {
  const patch = async (name: string, at: number, bytes: Buffer): Promise<void> => {
    await using file = await open(join(home, name), "r+");
    await file.write(bytes, 0, bytes.length, at);
  };
  const number = (value: bigint): Buffer => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(value);
    return bytes;
  };
  const empty = (name: string): Promise<string> => qemu("qemu-img", "create", "-q", "-f", "qcow2", name, "24M");
  const over = (backing: string, format: string): Promise<string> =>
    qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", format, "image");
  const kinds: Record<string, { source?: string; make: () => Promise<unknown>; why: string }> = {
    "a backing file outside its folder": {
      make: async () => {
        await mkdir(join(home, "in"));
        await writeFile(join(home, "secret"), "secret".repeat(MiB));
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "../secret", "-F", "raw", "in/image", "24M");
      },
      source: "qcow2:in/image",
      why: "is in none of the folders where backing files may be",
    },
    "a link as a backing file, which leads outside": {
      make: async () => {
        await mkdir(join(home, "in"));
        await writeFile(join(home, "secret"), "secret".repeat(MiB));
        await run("ln", ["-s", "../secret", "in/link"]);
        await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "link", "-F", "raw", "in/image", "24M");
      },
      source: "qcow2:in/image",
      why: "is in none of the folders where backing files may be",
    },
    "a backing file on another host": {
      make: async () => {
        await empty("image");
        await over("nbd://192.0.2.1/x", "raw");
      },
      why: 'is not a file, but "nbd://192.0.2.1/x"',
    },
    "a backing file described by options": {
      make: async () => {
        await empty("image");
        await over('json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}', "raw");
      },
      why: "is not a file, but",
    },
    "a backing file without a format": {
      make: async () => {
        await empty("base");
        await empty("image");
        await over("base", "qcow2");
        await patch("image", 112, Buffer.from([0, 0, 0, 1]));
      },
      why: "the format of its backing file is not named in it",
    },
    "a missing backing file": {
      make: async () => {
        await empty("image");
        await over("missing", "qcow2");
      },
      why: "missing cannot be opened (ENOENT)",
    },
    "a circle of backing files": {
      make: async () => {
        await empty("image");
        await empty("other");
        await over("other", "qcow2");
        await qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "image", "-F", "qcow2", "other");
      },
      why: "its chain of backing files is a circle",
    },
    "data in another file": {
      make: () => qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "image", "24M"),
      why: "its data is in an external file",
    },
    encryption: {
      make: async () => {
        await empty("image");
        await patch("image", 32, Buffer.from([0, 0, 0, 1]));
      },
      why: "it is encrypted",
    },
    "a length of 2^63": {
      make: async () => {
        await empty("image");
        await patch("image", 24, number(2n ** 63n));
      },
      why: "it says that it has 9223372036854775808 bytes",
    },
    "the wrong format": { make: () => disk("image"), why: "it is no qcow2 image" },
    "a vmdk whose data is in other files": {
      make: () => qemu("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "image", "24M"),
      source: "vmdk:image",
      why: "it is no vmdk image of one file",
    },
    "a vmdk over another image": {
      make: async () => {
        await qemu("qemu-img", "create", "-q", "-f", "vmdk", "base", "24M");
        await qemu("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base", "-F", "vmdk", "image");
      },
      source: "vmdk:image",
      why: "it builds on another image",
    },
    "a vmdk over another image, which says that its description is elsewhere": {
      make: async () => {
        await qemu("qemu-img", "create", "-q", "-f", "vmdk", "base", "24M");
        await qemu("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base", "-F", "vmdk", "image");
        await patch("image", 28, Buffer.from([0, 1, 0, 0, 0, 0, 0, 0]));
      },
      source: "vmdk:image",
      why: "it builds on another image",
    },
  };

  it.each(Object.entries(kinds))("(%s)", async (_, { make, source = "qcow2:image", why }) => {
    await make();
    const { status, stderr } = await engine("backup", ...repository, "--source", source);
    expect(stderr).toContain(why);
    expect(status).toBe(1);
  });

  it("unless its backing file is in a folder that was named", async () => {
    await mkdir(join(home, "in"));
    await mkdir(join(home, "templates"));
    await disk("templates/base");
    await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../templates/base", "-F", "raw", "in/image");
    const backup = await backUp("qcow2:in/image", "--backing-root", "templates");
    expect(await restore(backup, "qcow2:restored")).toMatchObject({ status: 0 });
    await qemu("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "templates/base", "restored");
  });

  it("while another program writes to it", async () => {
    await empty("image");
    await using _writer = await serve("-f", "qcow2", "image");
    const { status, stderr } = await engine("backup", ...repository, "--source", "qcow2:image");
    expect(stderr).toMatch(/image cannot be opened: Failed to get shared "write" lock/);
    expect(status).toBe(1);
  });
});

/** A qemu-nbd on a socket in `home`, until it is disposed. */
async function serve(...args: string[]): Promise<AsyncDisposable & { socket: string; child: ChildProcess }> {
  const socket = join(home, "nbd.sock");
  const ready = async (): Promise<boolean> => (await run("test", ["-S", socket])).status === 0;
  return { socket, ...(await serveAt([`--socket=${socket}`], ready, args)) };
}

async function serveAt(
  address: string[],
  ready: () => Promise<boolean>,
  args: string[],
): Promise<AsyncDisposable & { child: ChildProcess }> {
  const child = spawn("qemu-nbd", ["--persistent", "--shared=8", ...address, "--export-name=disk", ...args], {
    cwd: home,
    env: { ...process.env, ...environment },
    stdio: "ignore",
  });
  await waitFor(ready, { what: "qemu-nbd listens" });
  const end = async (): Promise<void> => {
    child.kill("SIGKILL");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  };
  return { child, [Symbol.asyncDispose]: end };
}

describe("an export of NBD", () => {
  it("is backed up, and written in place", async () => {
    await disk("disk.raw");
    await using source = await serve("--read-only", "-f", "raw", "disk.raw");
    const backup = await backUp(`nbd+unix:///disk?socket=${source.socket}`);
    const refused = await restore(backup, `nbd+unix:///disk?socket=${source.socket}`);
    expect(refused).toMatchObject({ status: 1, stderr: expect.stringContaining("is read-only") });
    await source[Symbol.asyncDispose]();
    await writeFile(join(home, "target.raw"), Buffer.alloc(25 * MiB, 9));
    await using target = await serve("-f", "raw", "target.raw");
    expect(await restore(backup, `nbd+unix:///disk?socket=${target.socket}`)).toMatchObject({ status: 0 });
    await target[Symbol.asyncDispose]();
    const [was, is] = await Promise.all([readFile(join(home, "disk.raw")), readFile(join(home, "target.raw"))]);
    expect(is.subarray(0, was.length).equals(was)).toBe(true);
    expect(is.subarray(was.length).every((byte) => byte === 9)).toBe(true);
  });

  // Threads read and write raw data themselves, over as many connections as the server takes.
  const servers: Record<string, string[]> = {
    "a unix socket": [],
    "a unix socket, one connection": ["--shared=1"],
    "a unix socket, two connections": ["--shared=2"],
    TCP: [],
  };
  it.each(Object.entries(servers))("keeps every byte without compression (%s)", async (name, args) => {
    const port = await freePort();
    const listens = async (): Promise<boolean> => (await run("qemu-nbd", ["--list", `--port=${port}`])).status === 0;
    const byTcp = [`--bind=127.0.0.1`, `--port=${port}`];
    const start = (...more: string[]) => (name === "TCP" ? serveAt(byTcp, listens, more) : serve(...args, ...more));
    const url = name === "TCP" ? `nbd://127.0.0.1:${port}/disk` : `nbd+unix:///disk?socket=${join(home, "nbd.sock")}`;
    await disk("disk.raw");
    await writeFile(join(home, "target.raw"), Buffer.alloc(25 * MiB, 9));
    await using source = await start("--read-only", "-f", "raw", "disk.raw");
    const backup = await backUp(url, "--compression", "none", "--object-bytes", String(4 * MiB));
    await source[Symbol.asyncDispose]();
    await using target = await start("-f", "raw", "target.raw");
    expect(await restore(backup, url)).toMatchObject({ status: 0 });
    await target[Symbol.asyncDispose]();
    const [was, is] = await Promise.all([readFile(join(home, "disk.raw")), readFile(join(home, "target.raw"))]);
    expect(is.subarray(0, was.length).equals(was)).toBe(true);
    expect(is.subarray(was.length).every((byte) => byte === 9)).toBe(true);
  });

  it("that is too short, missing or of another name is refused", async () => {
    await disk("disk.raw");
    const backup = await backUp("disk.raw");
    await writeFile(join(home, "short.raw"), Buffer.alloc(MiB));
    await using target = await serve("-f", "raw", "short.raw");
    const url = `nbd+unix:///disk?socket=${target.socket}`;
    expect((await restore(backup, url)).stderr).toContain("has 1048576 bytes, too few for 25165824");
    expect((await restore(backup, url.replace("/disk", "/disc"))).stderr).toContain("has no such export");
    expect((await restore(backup, "nbd+unix:///disk")).stderr).toContain("names no socket");
    expect((await restore(backup, "nbd://127.0.0.1:1/%E0%A4")).stderr).toContain("cannot be decoded");
    expect((await restore(backup, "nbd://127.0.0.1:1/disk")).stderr).toContain("cannot be reached");
  });

  it("that wants TLS is refused in one sentence, and what it is kept from is not read", async () => {
    const port = await freePort();
    await disk("disk.raw");
    await mkdir(join(home, "keys"));
    await writeFile(join(home, "keys", "keys.psk"), `tephra:${randomBytes(32).toString("hex")}\n`, { mode: 0o600 });
    const tls = [`--object=tls-creds-psk,id=tls,endpoint=server,dir=${join(home, "keys")}`, "--tls-creds=tls"];
    const accepts = async (): Promise<boolean> =>
      (await run("bash", ["-c", `exec 3<>/dev/tcp/127.0.0.1/${port}`])).status === 0;
    const byTcp = ["--bind=127.0.0.1", `--port=${port}`];
    await using _served = await serveAt(byTcp, accepts, [...tls, "--read-only", "-f", "raw", "disk.raw"]);
    const refused = await engine("backup", ...repository, "--source", `nbd://127.0.0.1:${port}/disk`);
    expect(refused).toMatchObject({ status: 1, stderr: expect.stringContaining("wants TLS, which is not supported") });
  });

  it("ends the backup with a reason when its server dies", async () => {
    // Zeros that are written are read, unlike holes.
    await writeFile(join(home, "large.raw"), Buffer.alloc(400 * MiB));
    await using source = await serve("--read-only", "-f", "raw", "large.raw");
    const running = engine("backup", ...repository, "--source", `nbd+unix:///disk?socket=${source.socket}`);
    const begun = async (): Promise<boolean> =>
      (await run("find", ["repository", "-name", "volume_*"])).stdout.includes("volume_");
    await waitFor(begun, { what: "something is stored", timeoutMs: 60_000 });
    source.child.kill("SIGKILL");
    expect(await running).toMatchObject({ status: 1, stderr: expect.stringContaining("has closed the connection") });
  });
});

describe("a block device", () => {
  const attach = (name: string): Promise<string | null> => attachLoopDevice(join(home, name));

  it("is backed up, and written in place, while nobody else has it", async (context) => {
    await disk("disk.raw");
    await writeFile(join(home, "target.raw"), Buffer.alloc(25 * MiB, 9));
    await writeFile(join(home, "short.raw"), Buffer.alloc(MiB, 9));
    const [source, target, short] = [await attach("disk.raw"), await attach("target.raw"), await attach("short.raw")];
    if (source === null || target === null || short === null) return context.skip("no loop devices here");
    const backup = await backUp(source);
    expect(await restore(backup, target)).toMatchObject({ status: 0 });
    await qemu("qemu-img", "compare", "-f", "raw", "-F", "raw", source, "disk.raw");
    const written = await readFile(target);
    expect(written.subarray(0, 24 * MiB).equals(await readFile(join(home, "disk.raw")))).toBe(true);
    expect(written.subarray(24 * MiB).every((byte) => byte === 9)).toBe(true);

    const refused = await restore(backup, short);
    expect(refused).toMatchObject({ status: 1, stderr: expect.stringContaining("has 1048576 bytes, too few") });
    expect((await readFile(short)).every((byte) => byte === 9)).toBe(true);
  });

  it("that is mounted or belongs to another device is neither read nor written", async (context) => {
    await disk("disk.raw");
    const device = await attach("disk.raw");
    if (device === null) return context.skip("no loop devices here");
    const backup = await backUp(device);
    // As a mount does.
    await using _claim = await open(device, constants.O_RDONLY | constants.O_EXCL);
    const read = await engine("backup", ...repository, "--source", device);
    expect(read).toMatchObject({ status: 1, stderr: expect.stringContaining("is in use: it is mounted") });
    const written = await restore(backup, device);
    expect(written).toMatchObject({ status: 1, stderr: expect.stringContaining("is in use: it is mounted") });
  });
});

it("leaves no qemu-nbd when it is killed", async () => {
  await promisify(execFile)("truncate", ["-s", "100G", join(home, "disk.raw")]);
  await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "image");
  const child = spawn(process.execPath, [entry, "backup", ...repository, "--source", "qcow2:image"], {
    cwd: home,
    env: { ...process.env, ...environment },
    stdio: "ignore",
  });
  const children = async (): Promise<string[]> =>
    (await run("pgrep", ["-P", String(child.pid), "qemu-nbd"])).stdout.split("\n").filter(Boolean);
  const [served = ""] = await waitFor(async () => ((await children()).length > 0 ? children() : null), {
    what: "it reads",
  });
  child.kill("SIGKILL");
  await once(child, "exit");
  const gone = async (): Promise<boolean> => (await run("kill", ["-0", served])).status !== 0;
  await waitFor(gone, { what: "qemu-nbd has ended", timeoutMs: 5_000 });
});
