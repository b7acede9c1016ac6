import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { nodeFlags, projectNode, root } from "../scripts/bootstrap.mjs";
import { provideNbdcopy } from "../scripts/nbdcopy-package.ts";
import { provideQemuBlock } from "../scripts/qemu-block-package.ts";
import { spawnProgram } from "../scripts/spawn-program.ts";
import { type Ceph, startCeph } from "../test/kit/ceph.ts";
import { startIscsiTarget } from "../test/kit/iscsi-target.ts";
import { waitFor } from "../test/kit/wait-for.ts";
import { execute, GiB, MiB } from "./contenders.ts";
import { writeMixedImage } from "./engine-images.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";

const imageBytes = 512 * MiB;
const rounds = 2;
const memoryFolder = "/dev/shm";
const entry = join(root, "apps/cli/dist/bundle/tephra-engine.js");

/** What one run took, in seconds per GiB of the volume; `cpu` includes its children, such as qemu-nbd. */
interface Cost {
  seconds: number;
  cpu: number;
}

interface Door {
  name: string;
  note: string;
  /** The arguments of a program that reads the whole volume; `folder` is new and empty. */
  command(folder: string): string[];
}

/** Reading a volume by each of its doors, uncompressed, beside the copies that QEMU, libnbd and Ceph make themselves; everything in memory, but for Ceph's OSD. */
export async function measureSources(say: Say): Promise<Measurement[]> {
  await using stack = new AsyncDisposableStack();
  const home = await mkdtemp(join(memoryFolder, "tephra-sources-"));
  stack.defer(() => rm(home, { recursive: true, force: true }));
  const ceph = stack.use(await startCeph(await newFolder(home, "ceph"), process.env["PATH"] ?? ""));
  const qemu = await provideQemuBlock(ceph.environment["PATH"] ?? "", say);
  const libraries = `${qemu["LD_LIBRARY_PATH"]}:${ceph.environment["LD_LIBRARY_PATH"]}`;
  const env = { ...process.env, ...ceph.environment, ...qemu, LD_LIBRARY_PATH: libraries };
  const raw = join(home, "raw");
  say("writing images");
  await writeMixedImage(raw, imageBytes);
  await execute("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, join(home, "qcow2")], { env });
  const nbdcopy = await provideNbdcopy(say);
  const ofNbdcopy = Object.entries(nbdcopy.environment).map(([name, value]) => `${name}=${value}`);
  const doors = [
    ...(await fileDoors(home, raw, stack, env)),
    copy("nbdcopy", ["env", ...ofNbdcopy, nbdcopy.command, exportIn(home)]),
    ...(await cephDoors(raw, ceph)),
  ];
  const results: Measurement[] = [];
  for (const door of doors) {
    say(door.name);
    const costs: Cost[] = [];
    for (let round = 0; round < rounds; round++) costs.push(await costOf(door, await newFolder(home, "out"), env));
    results.push(
      measured(
        `${door.name}: seconds`,
        costs.map(({ seconds }) => seconds),
        { unit: "s/GiB", note: door.note },
      ),
      measured(
        `${door.name}: processor`,
        costs.map(({ cpu }) => cpu),
        { unit: "s/GiB" },
      ),
    );
  }
  return results;
}

const socketIn = (home: string): string => join(home, "nbd");
const exportIn = (home: string): string => `nbd+unix:///disk?socket=${socketIn(home)}`;

async function fileDoors(
  home: string,
  raw: string,
  stack: AsyncDisposableStack,
  env: NodeJS.ProcessEnv,
): Promise<Door[]> {
  const socket = socketIn(home);
  const args = [
    "--persistent",
    "--read-only",
    "--shared=8",
    `--socket=${socket}`,
    "--export-name=disk",
    "-f",
    "raw",
    raw,
  ];
  const server = await spawnProgram({ name: "qemu-nbd", command: "qemu-nbd", args, env });
  stack.defer(async () => void (await server.stop()));
  await waitFor(async () => (await execute("test", ["-S", socket])) !== null, { what: "qemu-nbd listens" });
  const target = stack.use(await startIscsiTarget(await newFolder(home, "tgt"), [raw]));
  const password = join(home, "password");
  await execute("sh", ["-c", `umask 077; printf %s ${target.password} > ${password}`]);
  const lun = `iscsi://${target.user}@127.0.0.1:${target.port}/${target.iqn}/1?password-file=${password}`;
  return [
    engine("PATH", raw, "threads read the file"),
    engine("nbd+unix", exportIn(home), "without the server's processor time"),
    engine("qcow2", `qcow2:${join(home, "qcow2")}`, "with qemu-nbd"),
    engine("iscsi", lun, "with qemu-nbd, without the target"),
    copy("qemu-img convert of the file", ["qemu-img", "convert", "-f", "raw", "-O", "raw", raw]),
    copy("qemu-img convert of the qcow2", ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", join(home, "qcow2")]),
  ];
}

async function cephDoors(raw: string, ceph: Ceph): Promise<Door[]> {
  await ceph.run("ceph", "osd", "pool", "create", "volumes", "8");
  await ceph.run("rbd", "pool", "init", "volumes");
  await ceph.run("rbd", "import", raw, "volumes/disk");
  const access = ["-c", ceph.conf, "--keyring", ceph.keyring];
  return [
    engine("rbd", `rbd:volumes/disk?conf=${ceph.conf}&keyring=${ceph.keyring}`, "with qemu-nbd, without the OSD"),
    copy("rbd export", ["rbd", ...access, "export", "volumes/disk"]),
  ];
}

const engine = (name: string, source: string, note: string): Door => ({
  name: `tephra-engine, ${name}`,
  note,
  command: (folder) => [
    ...[projectNode(), ...nodeFlags, entry, "backup", "--repository", `posix:${join(folder, "repository")}`],
    ...["--source", source, "--compression", "none"],
  ],
});

const copy = (name: string, command: string[]): Door => ({
  name,
  note: "verifies and hashes nothing",
  command: (folder) => [...command, join(folder, "copy")],
});

async function costOf(door: Door, folder: string, env: NodeJS.ProcessEnv): Promise<Cost> {
  const script = 'TIMEFORMAT="%R %U %S"; time "$@" >/dev/null 2>&1';
  const { stderr } = await execute("bash", ["-c", script, "bash", ...door.command(folder)], { env });
  await rm(folder, { recursive: true, force: true });
  const [seconds = Number.NaN, user = Number.NaN, system = Number.NaN] = stderr.trim().split(" ").map(Number);
  const perGib = GiB / imageBytes;
  return { seconds: seconds * perGib, cpu: (user + system) * perGib };
}

async function newFolder(home: string, name: string): Promise<string> {
  return mkdtemp(join(home, `${name}-`));
}
