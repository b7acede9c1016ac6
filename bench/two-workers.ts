import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type House, openHouse } from "../test/kit/house.ts";
import { startSwift } from "../test/kit/swift.ts";
import { engine, GiB } from "./contenders.ts";
import { writeRandomImage } from "./engine-images.ts";
import { importVolume, liftQuotas, requestBackup } from "./house-work.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";

const rounds = 5;
/** Of each worker's connections to the store together. */
const bytesPerSecond = 20e6;
const speedUpMin = 1.8;

/** One volume through the whole service, copied by one worker and by two whose way to the store is narrow. */
export async function measureTwoWorkers(home: string, say: Say): Promise<Measurement[]> {
  await using server = await startSwift();
  await using first = await startNarrowWay(server.port);
  await using second = await startNarrowWay(server.port);
  const bucket = `bench-${randomUUID()}`;
  const secrets = `access_key=${encodeURIComponent(server.user)}&secret_key=${encodeURIComponent(server.key)}`;
  const urlThrough = (port: number): string => `s3://${bucket}?endpoint=http://127.0.0.1:${port}&${secrets}`;
  await engine(["init", "--repository", urlThrough(server.port)]);
  const repository = { url: urlThrough(first.port), compression: "none" };
  await using house = await openHouse({ workers: 1, config: { repository }, importRoots: [home], say });
  await liftQuotas(house);
  const image = join(home, "volume.img");
  await writeRandomImage(image, GiB);
  const volumeId = await importVolume(house, image);
  const seconds: { one: number[]; two: number[] } = { one: [], two: [] };
  for (let round = 1; round <= rounds; round++) {
    say(`one volume of 1 GiB through 20 MB/s per worker, round ${round} of ${rounds}`);
    seconds.one.push(await backUpThrough(house, volumeId));
    const helper = await startWorkerWith(house, urlThrough(second.port));
    seconds.two.push(await backUpThrough(house, volumeId));
    await helper.stop();
  }
  const ratios = seconds.one.map((one, round) => one / (seconds.two[round] as number));
  const note = `medians ${median(seconds.one).toFixed(1)} s and ${median(seconds.two).toFixed(1)} s`;
  return [
    measured("two workers with 20 MB/s each: times the speed of one", ratios, { unit: "×", atLeast: speedUpMin, note }),
  ];
}

async function backUpThrough(house: House, volumeId: string): Promise<number> {
  const started = performance.now();
  const backupId = await requestBackup(house, volumeId);
  await house.finished({ kind: "backup-create", backupId });
  return (performance.now() - started) / 1000;
}

/** A worker that knows the same repository by another way. */
async function startWorkerWith(house: House, url: string) {
  const config = JSON.parse(await readFile(house.configPath, "utf8"));
  config.repositories[0].url = url;
  const path = join(house.dir, "second-worker.yml");
  await writeFile(path, JSON.stringify(config));
  const worker = await house.startWorker({ TEPHRA_CONFIG: path });
  // Dispatchers look once a second who is there.
  await sleep(2000);
  return worker;
}

interface NarrowWay extends AsyncDisposable {
  readonly port: number;
}

/** A TCP proxy to a port of this machine that lets so many bytes pass towards it per second, over all connections. */
async function startNarrowWay(port: number): Promise<NarrowWay> {
  const sockets = new Set<Socket>();
  let freeAt = 0;
  const server = createServer((client) => {
    const target = connect(port, "127.0.0.1");
    for (const socket of [client, target]) {
      sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        sockets.delete(socket);
        client.destroy();
        target.destroy();
      });
    }
    target.pipe(client);
    client.on("data", async (chunk) => {
      client.pause();
      target.write(chunk);
      const now = performance.now();
      freeAt = Math.max(now, freeAt) + (chunk.length / bytesPerSecond) * 1000;
      await sleep(freeAt - now);
      client.resume();
    });
    client.on("end", () => target.end());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port was given");
  return {
    port: address.port,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
