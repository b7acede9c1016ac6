import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { root } from "../scripts/bootstrap.mjs";
import { openHouse } from "../test/kit/house.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { noiseOf } from "./sparse-file.ts";

const rounds = 15;
const volumeBytes = 1024 * 1024;
const firstByteMsMax = 120;
const listMsMax = 250;

/** In every thread of the program: writes down when it first reads from the source. */
const hook = (source: string, note: string): string => `
  import fs from "node:fs";
  import { syncBuiltinESMExports } from "node:module";
  const read = fs.readSync;
  fs.readSync = (file, ...rest) => {
    if (fs.readlinkSync("/proc/self/fd/" + file) === ${JSON.stringify(source)}) {
      fs.writeFileSync(${JSON.stringify(note)}, String(Date.now()));
      fs.readSync = read;
      syncBuiltinESMExports();
    }
    return read(file, ...rest);
  };
  syncBuiltinESMExports();
`;

/** The command lines as a user types them, from the shell's start of them on. */
export async function measureStartup(say: Say): Promise<Measurement[]> {
  const home = await mkdtemp("/dev/shm/tephra-bench-");
  try {
    return [...(await measureEngineStart(home, say)), await measureListing(say)];
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

async function measureEngineStart(home: string, say: Say): Promise<Measurement[]> {
  const [source, note, hookFile] = [join(home, "source.img"), join(home, "note"), join(home, "hook.mjs")];
  await writeFile(source, noiseOf("start-up")(volumeBytes));
  await writeFile(hookFile, hook(source, note));
  const args = ["--repository", `posix:${join(home, "repository")}`];
  const backup = ["backup", ...args, "--source", source, "--compression", "none"];
  timeOf("tephra-engine", backup);
  say(`a backup of 1 MiB, ${rounds} rounds`);
  const [first, whole, list]: [number[], number[], number[]] = [[], [], []];
  for (let round = 0; round < rounds; round += 1) {
    await rm(note, { force: true });
    const began = Date.now();
    timeOf("tephra-engine", backup, { NODE_OPTIONS: `--import=${hookFile}` });
    first.push(existsSync(note) ? Number(readFileSync(note, "utf8")) - began : Number.NaN);
    whole.push(timeOf("tephra-engine", backup));
    list.push(timeOf("tephra-engine", ["list", ...args]));
  }
  const name = "tephra-engine backup, until the first byte of the source is read";
  return [
    measured(name, first, { unit: "ms", atMost: firstByteMsMax }),
    measured("tephra-engine backup of 1 MiB, the whole process", whole, { unit: "ms" }),
    measured(`tephra-engine list of up to ${rounds * 2} backups, the whole process`, list, { unit: "ms" }),
  ];
}

async function measureListing(say: Say): Promise<Measurement> {
  await using house = await openHouse({ workers: 1, config: {}, say });
  const list = (): number => timeOf("tephra", ["backup", "list"], { TEPHRA_URL: house.url });
  list();
  say(`tephra backup list, ${rounds} rounds`);
  const times = Array.from({ length: rounds }, list);
  return measured("tephra backup list, the whole process", times, { unit: "ms", atMost: listMsMax });
}

function timeOf(program: string, args: readonly string[], env: Record<string, string> = {}): number {
  const began = performance.now();
  const command = join(root, "node_modules/.bin", program);
  const { status, stderr } = spawnSync(command, args, { env: { ...process.env, ...env }, encoding: "utf8" });
  if (status !== 0) throw new Error(`${program} failed: ${stderr}`);
  return performance.now() - began;
}
