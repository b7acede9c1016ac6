import { execFile } from "node:child_process";
import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { root } from "../scripts/bootstrap.mjs";
import { type CinderDriver, completed, runCinder } from "../test/format/interop/cinder.ts";
import { uuidOf } from "./house-work.ts";

export const execute = promisify(execFile);
export const GiB = 1024 ** 3;
export const MiB = 1024 ** 2;
/** On both sides; all other settings are each side's own defaults. */
export const objectBytes = 50 * MiB;
const volumeId = uuidOf("bench volume");

/** A way to do one thing; returns its seconds. Everything it leaves behind is in `folder`, which is removed afterwards. */
export interface Contender {
  name: string;
  /** Done before each run and not timed. */
  prepare?: (folder: string) => Promise<unknown>;
  run: (folder: string) => Promise<number>;
}

/** Seconds that some work takes. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return (performance.now() - started) / 1000;
}

/** As a user starts it. */
const engineProgram = join(root, "apps/cli/bin/tephra-engine.mjs");

/** Runs a verb of our command line and returns what it prints. */
export async function engine(args: readonly string[], env: Record<string, string> = {}): Promise<unknown> {
  const options = { maxBuffer: 2 ** 24, env: { ...process.env, ...env } };
  const { stdout } = await execute(engineProgram, [...args, "--json"], options);
  return JSON.parse(stdout);
}

/** The same, with the seconds it took and the most memory it had resident, in MiB. */
export async function engineMeasured(
  args: readonly string[],
): Promise<{ answer: unknown; seconds: number; peakMib: number }> {
  let output = { stdout: "", stderr: "" };
  const seconds = await timed(async () => {
    const timeArgs = ["-f", "%M", engineProgram, ...args, "--json"];
    output = await execute("/usr/bin/time", timeArgs, { maxBuffer: 2 ** 24 });
  });
  const kib = Number(output.stderr.trim().split("\n").at(-1));
  return { answer: JSON.parse(output.stdout), seconds, peakMib: kib / 1024 };
}

export const backupIdOf = (answer: unknown): string => (answer as { backup: { id: string } }).backup.id;

export interface BackupOptions {
  compression: string;
  parent?: string;
  zlibEncoder?: string;
}

export function backupArgs(repository: string, source: string, options: BackupOptions): string[] {
  const args = ["backup", "--repository", repository, "--source", source, "--volume-id", volumeId];
  args.push("--compression", options.compression, "--object-bytes", String(objectBytes));
  if (options.parent !== undefined) args.push("--parent", options.parent);
  if (options.zlibEncoder !== undefined) args.push("--zlib-encoder", options.zlibEncoder);
  return args;
}

/** The whole process, start-up included. */
export async function backUp(
  repository: string,
  source: string,
  options: BackupOptions,
): Promise<{ id: string; seconds: number }> {
  let answer: unknown;
  const seconds = await timed(async () => {
    answer = await engine(backupArgs(repository, source, options));
  });
  return { id: backupIdOf(answer), seconds };
}

export function restore(repository: string, id: string, folder: string): Promise<number> {
  const target = join(folder, "restored");
  return timed(() => engine(["restore", "--repository", repository, "--backup", id, "--target", target]));
}

export type CinderRecord = ReturnType<typeof completed.parse>;
type Step = Parameters<typeof runCinder>[1]["steps"][number];

/** Cinder's posix driver on a folder. */
export async function cinderPosix(folder: string): Promise<CinderDriver> {
  await mkdir(folder, { recursive: true });
  const settings = { backup_posix_path: folder, backup_file_size: objectBytes, backup_sha_block_size_bytes: 32_768 };
  return { driver: "cinder.backup.drivers.posix.PosixBackupDriver", settings };
}

let serial = 0;

function backupStep(volume: string, compression: string, parentId: string | null): Step {
  serial += 1;
  const id = uuidOf(`bench backup ${serial}`);
  const places = { container: null, service_metadata: null };
  const backup = { id, volume_id: volumeId, parent_id: parentId, ...places, size: 1 };
  return { do: "backup", volume, compression, backup };
}

/** Its own work alone: neither the start of Python nor its imports. A chain when several images are given. */
export async function cinderBackUp(
  driver: CinderDriver,
  images: readonly string[],
  { compression, parent }: { compression: string; parent?: CinderRecord },
): Promise<{ seconds: number; records: CinderRecord[] }> {
  const steps: Step[] = [];
  for (const image of images) {
    const last = steps.at(-1);
    const before = last?.do === "backup" ? last.backup.id : (parent?.id ?? null);
    steps.push(backupStep(image, compression, before));
  }
  const answers = await runCinder(driver, { known: parent === undefined ? [] : [parent], steps });
  const seconds = answers.reduce((sum, answer) => sum + Number(answer["seconds"]), 0);
  return { seconds, records: answers.map((answer) => completed.parse(answer)) };
}

export async function cinderRestore(
  driver: CinderDriver,
  records: readonly CinderRecord[],
  folder: string,
): Promise<number> {
  const target = join(folder, "restored");
  await using file = await open(target, "w");
  await file.truncate(GiB);
  const id = records.at(-1)?.id as string;
  const [answer] = await runCinder(driver, { known: records, steps: [{ do: "restore", id, target }] });
  return Number(answer?.["seconds"]);
}

/** What else copies an image: always cp, and the backup tools that are installed. */
export async function copiers(image: string): Promise<Contender[]> {
  const env = { ...process.env, RESTIC_PASSWORD: "bench", BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: "yes" };
  const run = (program: string, args: readonly string[], folder: string) =>
    execute(program, args, { env: { ...env, HOME: folder, XDG_CACHE_HOME: folder, BORG_BASE_DIR: folder } });
  const restic = (folder: string) => ["-r", join(folder, "restic"), "--compression", "off"];
  const all: Contender[] = [
    { name: "cp", run: (folder) => timed(() => run("cp", [image, join(folder, "copy")], folder)) },
    {
      name: "qemu-img convert",
      run: (folder) =>
        timed(() => run("qemu-img", ["convert", "-f", "raw", "-O", "raw", image, join(folder, "copy")], folder)),
    },
    {
      name: "borg, no compression",
      prepare: (folder) => run("borg", ["init", "-e", "none", join(folder, "borg")], folder),
      run: (folder) =>
        timed(() => run("borg", ["create", "-C", "none", `${join(folder, "borg")}::one`, image], folder)),
    },
    {
      name: "restic, no compression",
      prepare: (folder) => run("restic", [...restic(folder), "init"], folder),
      run: (folder) => timed(() => run("restic", [...restic(folder), "backup", image], folder)),
    },
  ];
  const found = await Promise.all(all.map(({ name }) => isInstalled(name.split(/[ ,]/)[0] as string)));
  return all.filter((_, index) => found[index]);
}

function isInstalled(program: string): Promise<boolean> {
  return execute("which", [program]).then(
    () => true,
    () => false,
  );
}
