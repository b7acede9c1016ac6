import { randomUUID } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Config,
  type Database,
  finalizeImageTransfer,
  getImageTransfer,
  type Principal,
  requestImageTransfer,
} from "@tephra/control";
import { loadConfig, openDatabase } from "@tephra/control/process";
import { provideNbdcopy } from "../scripts/nbdcopy-package.ts";
import { provideQemuUtils } from "../scripts/qemu-utils-package.ts";
import { freePort, spawnProgram } from "../scripts/spawn-program.ts";
import { openHouse } from "../test/kit/house.ts";
import { waitFor } from "../test/kit/wait-for.ts";
import { execute, MiB } from "./contenders.ts";
import { writeMixedImage } from "./engine-images.ts";
import { peakMib } from "./house-work.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";

const imageBytes = 1024 * MiB;
const rounds = 5;
const connections = 8;
/** Of one request, at most: a client asks for each part with data by itself. */
const pieceBytes = 32 * MiB;
/** Against nbdcopy, which reads the same image from a qemu-nbd of its own. */
const ratioMax = 1.5;
const memoryMaxMib = 400;

const owner: Principal = { userId: "u", projectId: "p1", roles: ["member"], isAdmin: false, requestId: "req-bench" };

/** A disk of 1 GiB in a qcow2 image, downloaded by eight connections, beside nbdcopy; and what the server of images needs for it. */
export async function measureTransfer(say: Say): Promise<Measurement[]> {
  await using stack = new AsyncDisposableStack();
  const qemu = await provideQemuUtils(process.env["PATH"] ?? "", say);
  const nbdcopy = await provideNbdcopy(say);
  const home = await mkdtemp(join(tmpdir(), "tephra-transfer-"));
  stack.defer(() => rm(home, { recursive: true, force: true }));
  const images = join(home, "images");
  await mkdir(images);
  const volume_backends = [{ name: "images", driver: "qemu", path: images }];
  const config = { volume_backends, image_transfers: { port: await freePort() } };
  const house = stack.use(await openHouse({ workers: 0, config, say, env: qemu }));
  const server = await house.startTransfer();
  const idle = peakMib(server);
  const database = openDatabase(house.services.databaseUrl);
  stack.defer(() => database.$disconnect());
  const service = {
    database,
    config: loadConfig({
      DATABASE_URL: house.services.databaseUrl,
      REDIS_URL: house.services.redisUrl,
      TEPHRA_DATA_DIR: house.dir,
      TEPHRA_CONFIG: house.configPath,
    }),
  };
  say("writing the image");
  Object.assign(process.env, qemu);
  const volumeId = await addVolume(database, images, home);
  const image = join(images, `volume-${volumeId}`);
  const uri = await serve(image, join(home, "nbd"), qemu, stack);
  const copy = async (): Promise<number> => {
    const began = performance.now();
    await execute(nbdcopy.command, [uri, "null:"], { env: { ...process.env, ...nbdcopy.environment } });
    return (performance.now() - began) / 1_000;
  };
  const ways = {
    nbdcopy: copy,
    raw: () => download(service, volumeId, "raw", home),
    cow: () => download(service, volumeId, "cow", home),
  };
  const taken: Record<keyof typeof ways, number[]> = { nbdcopy: [], raw: [], cow: [] };
  for (let round = 0; round < rounds; round += 1) {
    say(`round ${round + 1} of ${rounds}`);
    for (const way of ["nbdcopy", "raw", "cow"] as const) taken[way].push(await ways[way]());
  }
  const ratio = (way: "raw" | "cow"): Measurement =>
    measured(`download as ${way} against nbdcopy`, [median(taken[way]) / median(taken.nbdcopy)], {
      unit: "×",
      atMost: ratioMax,
      note: "medians",
    });
  return [
    measured("nbdcopy from qemu-nbd", taken.nbdcopy, { unit: "s" }),
    measured("download as raw", taken.raw, { unit: "s", note: "8 connections" }),
    measured("download as cow", taken.cow, { unit: "s", note: "8 connections" }),
    ratio("raw"),
    ratio("cow"),
    measured("server of images, memory, idle", [idle], { unit: "MiB" }),
    measured("server of images, memory, 8 connections", [peakMib(server)], { unit: "MiB", atMost: memoryMaxMib }),
  ];
}

/** A volume of mixed contents, a third of it zeros. */
async function addVolume(database: Database, folder: string, home: string): Promise<string> {
  const id = randomUUID();
  const raw = join(home, "raw");
  await writeMixedImage(raw, imageBytes);
  await execute("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, join(folder, `volume-${id}`)]);
  await rm(raw);
  const place = { sizeGib: 1, sizeBytes: BigInt(imageBytes), backend: "images", availabilityZone: "nova" };
  await database.volume.create({ data: { id, projectId: "p1", userId: "u", status: "available", ...place } });
  return id;
}

/** The image, as another client of QEMU's reads it. @returns its address */
async function serve(
  image: string,
  socket: string,
  environment: Record<string, string>,
  stack: AsyncDisposableStack,
): Promise<string> {
  const access = ["--persistent", "--read-only", `--shared=${connections}`, `--socket=${socket}`];
  const env = { ...process.env, ...environment } as Record<string, string>;
  const args = [...access, "-f", "qcow2", image];
  const server = await spawnProgram({ name: "qemu-nbd", command: "qemu-nbd", args, env });
  stack.defer(async () => void (await server.stop()));
  await waitFor(async () => (await execute("test", ["-S", socket]).catch(() => null)) !== null, {
    what: "qemu-nbd listens",
  });
  return `nbd+unix:///?socket=${socket}`;
}

interface Service {
  database: Database;
  config: Config;
}

/** Seconds in which all data of the image is read. The transfer itself is begun and ended outside of them. */
async function download(service: Service, volumeId: string, format: "raw" | "cow", home: string): Promise<number> {
  const { database, config } = service;
  const { id } = await requestImageTransfer(database, config, owner, {
    subject: { volumeId },
    direction: "download",
    format,
    timeoutPolicy: "cancel",
    inactivityTimeout: null,
    host: null,
  });
  const reach = (phase: string) =>
    waitFor(
      async () => {
        const seen = await getImageTransfer(database, config, owner, id);
        return seen.status === phase ? seen : null;
      },
      { what: `the transfer is ${phase}` },
    );
  const url = (await reach("transferring")).url ?? "";
  const began = performance.now();
  const extents = (await (await fetch(`${url}/extents`)).json()) as { start: number; length: number; zero: boolean }[];
  const pieces = extents.filter(({ zero }) => !zero).flatMap(({ start, length }) => cut(start, length));
  const lanes = Array.from({ length: connections }, (_, lane) => pieces.filter((__, at) => at % connections === lane));
  await Promise.all(lanes.map((lane, index) => fetchAll(url, lane, join(home, `lane-${index}`))));
  const seconds = (performance.now() - began) / 1_000;
  await finalizeImageTransfer(database, owner, id);
  await reach("finished_success");
  return seconds;
}

function cut(start: number, length: number): { from: number; to: number }[] {
  return Array.from({ length: Math.ceil(length / pieceBytes) }, (_, at) => {
    const from = start + at * pieceBytes;
    return { from, to: Math.min(from + pieceBytes, start + length) - 1 };
  });
}

/** One connection, by curl: what a client in this process costs would be measured with it. */
async function fetchAll(url: string, pieces: readonly { from: number; to: number }[], file: string): Promise<void> {
  if (pieces.length === 0) return;
  const wanted = pieces.map(({ from, to }) => `url = ${url}\nrange = ${from}-${to}\noutput = /dev/null\nfail`);
  await writeFile(file, `silent\nshow-error\n${wanted.join("\nnext\n")}\n`);
  await execute("curl", ["--disable", "--config", file]);
}
