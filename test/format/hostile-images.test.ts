import { execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { root } from "../../scripts/bootstrap.mjs";
import { provideQemuUtils } from "../../scripts/qemu-utils-package.ts";
import { provideStrace } from "../../scripts/strace-package.ts";
import { times } from "../kit/long.ts";
import type { OpenedImage } from "../kit/open-images.ts";
import { Random } from "../reliability/fuzz/random.ts";
import { hostileImage, type SeedImage } from "./hostile-images.ts";

/** Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const count = times({ usual: 100, long: 1000 });
const MiB = 1024 * 1024;

let home: string;
let environment: Record<string, string>;
let strace: { command: string; environment: Record<string, string> };

beforeAll(async () => {
  const say = (line: string) => process.stderr.write(`${line}\n`);
  environment = await provideQemuUtils(process.env["PATH"] ?? "", say);
  strace = await provideStrace(say);
  home = await realpath(await mkdtemp(join(tmpdir(), "tephra-hostile-")));
  for (const name of ["images", "outside", "empty"]) await mkdir(join(home, name));
}, 300_000);
afterAll(() => rm(home, { recursive: true, force: true }));

/** Made by QEMU's own tool: plain, compressed and with a snapshot. */
async function seedImages(): Promise<SeedImage[]> {
  const options = { cwd: join(home, "empty"), env: { ...process.env, ...environment } };
  const img = (...args: string[]) => promisify(execFile)("qemu-img", args, options);
  await writeFile(join(home, "empty/raw"), Buffer.concat([Buffer.alloc(MiB, 1), Buffer.alloc(3 * MiB)]));
  const seeds: SeedImage[] = [];
  const make = async (format: SeedImage["format"], ...more: string[]): Promise<void> => {
    await img("convert", "-f", "raw", "-O", format, ...more, "raw", "image");
    seeds.push({ format, bytes: await readFile(join(home, "empty/image")) });
    await rm(join(home, "empty/image"));
  };
  await make("qcow2");
  await make("qcow2", "-c", "-o", "cluster_size=4096");
  await make("qcow2", "-o", "compat=0.10");
  await make("vmdk");
  await make("vmdk", "-o", "subformat=streamOptimized");
  await make("vhdx");
  await make("vdi");
  await rm(join(home, "empty/raw"));
  return seeds;
}

/** Opens images in a program whose calls are traced. @returns what came of each, and every path that it or its children opened */
async function openTraced(
  images: readonly string[],
): Promise<{ opened: OpenedImage[]; paths: string[]; hosts: string[] }> {
  const log = join(home, "trace");
  const program = [process.execPath, join(root, "test/kit/open-images.ts")];
  const args = [
    "-f",
    "--seccomp-bpf",
    "-qq",
    "-s",
    "4096",
    "-e",
    "trace=open,openat,openat2,connect",
    "-o",
    log,
    ...program,
  ];
  const env = { ...process.env, ...environment, TMPDIR: home };
  const library = [environment["LD_LIBRARY_PATH"], strace.environment["LD_LIBRARY_PATH"]].filter(Boolean).join(":");
  const child = spawn(strace.command, args, {
    cwd: join(home, "empty"),
    env: { ...env, LD_LIBRARY_PATH: library },
    stdio: ["pipe", "pipe", "inherit"],
  });
  child.stdin.end(`${images.join("\n")}\n`);
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (said += text));
  await once(child, "close");
  const calls = (await readFile(log, "utf8")).split("\n");
  const paths = calls.flatMap((call) => /\bopen(?:at2?)?\((?:AT_FDCWD, |\d+, )?"([^"]*)"/.exec(call)?.[1] ?? []);
  const hosts = calls.filter((call) => /connect\(.*sa_family=AF_INET/.test(call));
  const opened = said
    .trim()
    .split("\n")
    .map((line): OpenedImage => JSON.parse(line));
  return { opened, paths, hosts };
}

it("an image by whoever leads to no other file or host, hangs nothing and takes little memory", async () => {
  const random = new Random(seed);
  const seeds = await seedImages();
  const secret = join(home, "outside/secret");
  await writeFile(secret, Buffer.alloc(4 * MiB, 7));
  const lures = [
    secret,
    "../outside/secret",
    "nbd://127.0.0.1:9/x",
    `file:${secret}`,
    `json:{"driver":"file","filename":"${secret}"}`,
    "/etc/passwd",
    "image-0",
  ];
  const images: string[] = [];
  for (let index = 0; index < count; index++) {
    const from = seeds[random.below(seeds.length)] as SeedImage;
    const path = join(home, `images/image-${index}`);
    await writeFile(path, hostileImage(from, lures, random));
    images.push(`${from.format} ${path}`);
  }
  const { opened, paths, hosts } = await openTraced(images);
  const why = `seed ${seed}`;
  expect(opened.length, why).toBe(count);
  expect(
    opened.filter(({ outcome }) => outcome === "crash"),
    why,
  ).toEqual([]);
  expect(
    opened.filter(({ ms }) => ms > 30_000),
    why,
  ).toEqual([]);
  expect(
    opened.filter(({ serverBytes }) => serverBytes > 400 * MiB),
    why,
  ).toEqual([]);
  expect(hosts, why).toEqual([]);
  const programs = [root, resolve(process.execPath, "../.."), process.env["TEPHRA_CACHE_DIR"] ?? root];
  const allowed = [
    ...programs,
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/dev",
    "/etc/ld.so",
    "/etc/ssl",
    "/etc/nsswitch",
    join(home, "images"),
    join(home, "tephra-nbd-"),
  ];
  const elsewhere = paths.filter((path) => !allowed.some((place) => path.startsWith(place)));
  expect([...new Set(elsewhere)], why).toEqual([]);
  const read = opened.filter(({ outcome }) => outcome === "read").length;
  process.stderr.write(`hostile images: seed ${seed}, ${read} of ${count} could be read\n`);
  expect(read, why).toBeGreaterThan(0);
}, 600_000);
