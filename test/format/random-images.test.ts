import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { provideQemuUtils } from "../../scripts/qemu-utils-package.ts";
import { type EngineCommand, engineIn, writeDisk } from "../kit/engine-command.ts";
import { times } from "../kit/long.ts";
import { type Random, randomFrom } from "../kit/random.ts";
import { waitFor } from "../kit/wait-for.ts";

/** Set TEPHRA_TEST_SEED to repeat a run. */
const firstSeed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(3).readUIntLE(0, 3));
const seedsOf = (counts: { usual: number; long: number }): number[] =>
  Array.from({ length: times(counts) }, (_, n) => firstSeed + n);

const MiB = 1024 * 1024;
const sizeMiB = 24;

let environment: Record<string, string>;
let home: string;
let command: EngineCommand;

beforeAll(async () => {
  environment = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
}, 300_000);
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-random-"));
  command = engineIn(home, environment);
});
afterEach(() => rm(home, { recursive: true, force: true }));

const oneOf = <T>(random: Random, values: readonly T[]): T => values[random(values.length)] as T;
const qemu = (program: "qemu-img" | "qemu-io", ...args: string[]) => command.mustRun(program, ...args);

/** Writes data, zeros and holes of random places and lengths; none ends beyond 24 MiB. */
async function write(random: Random, format: string, image: string): Promise<void> {
  const writes = Array.from({ length: 1 + random(6) }, () => {
    const length = 512 * (1 + random(oneOf(random, [8, 300, 4096])));
    const at = 512 * random((sizeMiB * MiB - length) / 512);
    return [
      "-c",
      `write ${oneOf(random, ["-z", "-P 0", `-P ${1 + random(255)}`, `-P ${1 + random(255)}`])} ${at} ${length}`,
    ];
  });
  await qemu("qemu-io", "-f", format, ...writes.flat(), image);
}

/** The options of a new qcow2. */
function options(random: Random): string {
  const cluster = oneOf(random, ["64k", "64k", "256k", "2M"]);
  // Subclusters need clusters of at least 16 KiB and a file of version 3, which cannot be of 2 MiB in old readers.
  const subclusters = cluster !== "2M" && random(3) === 0 ? ",extended_l2=on" : "";
  return `cluster_size=${cluster}${subclusters}`;
}

/** Makes `image` from `disk.raw`. @returns its format */
async function makeImage(random: Random): Promise<string> {
  await writeDisk(join(home, "disk.raw"), sizeMiB * MiB);
  const format = oneOf(random, ["qcow2", "qcow2", "qcow2", "qcow2", "raw", "vmdk", "vhdx", "vdi"]);
  if (format !== "qcow2") {
    await qemu("qemu-img", "convert", "-f", "raw", "-O", format, "disk.raw", "image");
    return format;
  }
  const layers = random(4);
  let below = { name: "disk.raw", format: "raw" };
  for (let layer = 0; layer < layers; layer += 1) {
    const name = `layer-${layer}`;
    const backing = ["-b", below.name, "-F", below.format];
    await qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", options(random), ...backing, name);
    await write(random, "qcow2", name);
    below = { name, format: "qcow2" };
  }
  const how = oneOf(random, [[], ["-c"]]);
  const cut = layers > 0 && random(2) === 0 ? ["-B", below.name, "-F", below.format] : [];
  const from = ["-f", below.format, "-O", "qcow2", "-o", options(random)];
  await qemu("qemu-img", "convert", ...how, ...from, ...cut, below.name, "image");
  for (let snapshots = random(3); snapshots > 0; snapshots -= 1) {
    await qemu("qemu-img", "snapshot", "-c", `before-${snapshots}`, "image");
    await write(random, "qcow2", "image");
  }
  return "qcow2";
}

it.each(seedsOf({ usual: 3, long: 200 }))(
  "an image of a random kind is restored as QEMU reads it, from a full backup and an incremental (seed %i)",
  { timeout: 240_000 },
  async (seed) => {
    const random = randomFrom(seed);
    const format = await makeImage(random);
    const source = format === "raw" ? "image" : `${format}:image`;
    const more = oneOf(random, [
      [],
      ["--compression", "none"],
      ["--compression", "zstd"],
      ["--object-bytes", String(4 * MiB)],
    ]);
    let backup = await command.backUp(source, ...more);
    // What QEMU writes itself: the others are read only.
    if (format === "qcow2" || format === "raw") {
      await write(random, format, "image");
      backup = await command.backUp(source, ...more, "--parent", backup);
    }
    const [target, written] = oneOf(random, [
      ["qcow2:restored", "qcow2"],
      ["restored", "raw"],
    ] as const);
    expect(await command.restore(backup, target)).toMatchObject({ status: 0 });
    await qemu("qemu-img", "compare", "-f", format, "-F", written, "image", "restored");
  },
);

it.each(seedsOf({ usual: 1, long: 60 }))(
  "a backup and a restore that are killed anywhere leave no qemu-nbd, and the next ones are exact (seed %i)",
  { timeout: 240_000 },
  async (seed) => {
    const random = randomFrom(seed);
    await writeDisk(join(home, "disk.raw"), sizeMiB * MiB);
    await qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "image");
    const killed = async (...args: string[]): Promise<void> => {
      const { child } = command.start(...args);
      const ended = once(child, "exit");
      const began = performance.now();
      const life = random(1500);
      const served = new Set<number>();
      while (performance.now() - began < life) {
        const pid = await command.childOf(child, "qemu-nbd");
        if (pid !== null) served.add(pid);
      }
      child.kill("SIGKILL");
      await ended;
      const areGone = async (): Promise<boolean> => {
        const lives = await Promise.all([...served].map((pid) => command.run("kill", "-0", String(pid))));
        return lives.every(({ status }) => status !== 0);
      };
      await waitFor(areGone, { what: "qemu-nbd has ended", timeoutMs: 2_000 });
    };
    await killed("backup", "--source", "qcow2:image");
    const backup = await command.backUp("qcow2:image");
    await killed("restore", "--backup", backup, "--target", "qcow2:restored");
    await rm(join(home, "restored"), { force: true });
    expect(await command.restore(backup, "qcow2:restored")).toMatchObject({ status: 0 });
    await qemu("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "disk.raw", "restored");
  },
);
