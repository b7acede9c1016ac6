import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { freePort } from "../../../scripts/spawn-program.ts";
import { type CephPool, startCephPool } from "../../kit/ceph-pool.ts";
import { type EngineCommand, engineIn, writeDisk } from "../../kit/engine-command.ts";
import { startIscsiTarget } from "../../kit/iscsi-target.ts";
import { times } from "../../kit/long.ts";
import { type Random, randomFrom } from "../../kit/random.ts";
import { waitFor } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;
const sizeBytes = 24 * MiB;
/** Set TEPHRA_TEST_SEED to repeat a run. */
const firstSeed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(3).readUIntLE(0, 3));

/** A volume in some storage. */
interface Place {
  /** Has the bytes of a raw file from now on. @returns its URL */
  fill(raw: string, random: Random): Promise<string>;
  /** A raw file with its bytes, which are not read by code of this project. */
  exported(): Promise<string>;
}

let cluster: CephPool;
let home: string;
let command: EngineCommand;
const places: Record<string, { source: Place; target: Place }> = {};
const stack = new AsyncDisposableStack();

beforeAll(async () => {
  cluster = stack.use(await startCephPool());
  const servers = await mkdtemp(join(tmpdir(), "tephra-doors-"));
  stack.defer(() => rm(servers, { recursive: true, force: true }));
  const files = ["lun-1", "lun-2", "tcp-1", "tcp-2", "unix-1", "unix-2"].map((name) => join(servers, name));
  for (const file of files) await writeFile(file, Buffer.alloc(sizeBytes, 9));
  const [lun1 = "", lun2 = "", tcp1 = "", tcp2 = "", unix1 = "", unix2 = ""] = files;
  const target = stack.use(await startIscsiTarget(servers, [lun1, lun2]));
  const password = join(servers, "password");
  await writeFile(password, target.password, { mode: 0o600 });
  const lun = (number: number): string =>
    `iscsi://${target.user}@127.0.0.1:${target.port}/${target.iqn}/${number}?password-file=${password}`;
  places["iscsi with CHAP"] = { source: inFile(lun1, lun(1)), target: inFile(lun2, lun(2)) };
  places["nbd over TCP"] = {
    source: inFile(tcp1, await servedByTcp(tcp1)),
    target: inFile(tcp2, await servedByTcp(tcp2)),
  };
  places["nbd"] = {
    source: inFile(unix1, await servedByUnix(unix1)),
    target: inFile(unix2, await servedByUnix(unix2)),
  };
  places["rbd"] = { source: inCeph("source"), target: inCeph("target") };
});
afterAll(() => stack.disposeAsync());
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-random-"));
  command = engineIn(home, cluster.environment);
});
afterEach(() => rm(home, { recursive: true, force: true }));

const oneOf = <T>(random: Random, values: readonly T[]): T => values[random(values.length)] as T;

/** What is served from a raw file. */
function inFile(file: string, url: string): Place {
  return {
    fill: async (raw) => {
      await using opened = await open(file, "r+");
      await opened.writeFile(await readFile(join(home, raw)));
      return url;
    },
    exported: async () => file,
  };
}

function inCeph(image: string): Place {
  const { ceph, keyring } = cluster;
  const rbd = (...args: string[]): Promise<string> => ceph.run("rbd", ...args);
  const settings = `conf=${ceph.conf}&user=tephra&keyring=${keyring}`;
  let isThere = false;
  return {
    fill: async (raw, random) => {
      if (isThere) {
        await rbd("snap", "purge", "--no-progress", `volumes/${image}`);
        await rbd("rm", "--no-progress", `volumes/${image}`);
      }
      isThere = true;
      const objects = `--object-size=${oneOf(random, ["1M", "4M", "8M"])}`;
      await rbd("import", "--no-progress", objects, join(home, raw), `volumes/${image}`);
      return `rbd:volumes/${image}?${settings}`;
    },
    exported: async () => {
      const file = join(home, "exported");
      await rm(file, { force: true });
      await rbd("export", "--no-progress", `volumes/${image}`, file);
      return file;
    },
  };
}

async function servedByTcp(file: string): Promise<string> {
  const port = await freePort();
  const listens = async () =>
    (await engineIn("/", cluster.environment).run("qemu-nbd", "--list", `--port=${port}`)).status === 0;
  await serve(["--bind=127.0.0.1", `--port=${port}`, file], listens);
  return `nbd://127.0.0.1:${port}/disk`;
}

async function servedByUnix(file: string): Promise<string> {
  const socket = `${file}.sock`;
  const listens = async () => (await engineIn("/", cluster.environment).run("test", "-S", socket)).status === 0;
  await serve([`--socket=${socket}`, file], listens);
  return `nbd+unix:///disk?socket=${socket}`;
}

/** A qemu-nbd until the end of this file. */
async function serve(args: string[], listens: () => Promise<boolean>): Promise<void> {
  const env = { ...process.env, ...cluster.environment };
  const all = ["--persistent", "--shared=8", "--export-name=disk", "-f", "raw", ...args];
  const child: ChildProcess = spawn("qemu-nbd", all, { env, stdio: "ignore" });
  stack.defer(async () => {
    child.kill("SIGKILL");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  });
  await waitFor(listens, { what: "qemu-nbd listens" });
}

/** Data, zeros and holes of random places and lengths. */
async function write(random: Random, raw: string): Promise<void> {
  const writes = Array.from({ length: 1 + random(6) }, () => {
    const length = 512 * (1 + random(oneOf(random, [8, 300, 4096])));
    const at = 512 * random((sizeBytes - length) / 512);
    return ["-c", `write ${oneOf(random, ["-z", "-P 0", `-P ${1 + random(255)}`])} ${at} ${length}`];
  });
  await command.mustRun("qemu-io", "-f", "raw", ...writes.flat(), raw);
}

/** Another program may have a file open for writing. */
const expectSame = (one: string, other: string): Promise<string> =>
  command.mustRun("qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", one, other);

it.each(Array.from({ length: times({ usual: 8, long: 100 }) }, (_, n) => firstSeed + n))(
  "a volume of a random kind is backed up, incrementally as well, and restored to another kind, byte for byte (seed %i)",
  { timeout: 240_000 },
  async (seed) => {
    const random = randomFrom(seed);
    const kinds = Object.keys(places);
    // Each kind in its turn; what it is restored to is left to chance.
    const from = places[kinds[(seed - firstSeed) % kinds.length] ?? ""]?.source as Place;
    const to = places[oneOf(random, kinds)]?.target as Place;
    await writeDisk(join(home, "disk.raw"), sizeBytes);
    const more = oneOf(random, [[], ["--compression", "none"], ["--compression", "zstd"]]);
    const sizes = ["--object-bytes", String(oneOf(random, [MiB, 4 * MiB, 64 * MiB]))];
    let backup = await command.backUp(await from.fill("disk.raw", random), ...more, ...sizes);
    if (random(2) === 0) {
      await write(random, "disk.raw");
      backup = await command.backUp(await from.fill("disk.raw", random), ...more, ...sizes, "--parent", backup);
    }
    await expectSame(await from.exported(), "disk.raw");
    await writeFile(join(home, "old.raw"), Buffer.alloc(sizeBytes, 9));
    const { status, stderr } = await command.restore(backup, await to.fill("old.raw", random));
    expect(status, stderr).toBe(0);
    await expectSame(await to.exported(), "disk.raw");
  },
);
