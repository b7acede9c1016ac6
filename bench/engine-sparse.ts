import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { backUp, backupArgs, backupIdOf, cinderBackUp, cinderPosix, engineMeasured, GiB, MiB } from "./contenders.ts";
import { compare } from "./engine-compare.ts";
import { writeRandomImage } from "./engine-images.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { writeSparseFile } from "./sparse-file.ts";

const volumeBytes = 100 * GiB;
/** Of a Cinder only so much is waited for: it reads and hashes holes, so that its time is linear in the volume's size. */
const cinderBytes = 4 * GiB;
const secondsMax = 20;
const peakMibMax = 300;
const peakRatioMax = 1.15;

/** 100 GiB with 1 GiB of data beside a real Cinder, and the memory that 1 TiB takes beside that of 1 GiB. */
export async function measureSparse(home: string, say: Say): Promise<Measurement[]> {
  return [...(await measureTime(home, say)), ...(await measurePeaks(home, say))];
}

async function measureTime(home: string, say: Say): Promise<Measurement[]> {
  const image = join(home, "sparse.img");
  const part = join(home, "part.img");
  await writeSparseFile(image, { sizeBytes: volumeBytes, dataBytes: GiB, seed: "sparse" });
  const share = cinderBytes / volumeBytes;
  await writeSparseFile(part, { sizeBytes: cinderBytes, dataBytes: Math.round(GiB * share), seed: "sparse" });
  const seconds: number[] = [];
  const results = await compare(
    {
      name: "full, none, 100 GiB sparse with 1 GiB of data",
      goal: null,
      note: "Cinder's extrapolated",
      ours: {
        name: "tephra-engine",
        run: async (folder) => {
          const taken = (await backUp(`posix:${folder}`, image, { compression: "none" })).seconds;
          seconds.push(taken);
          return taken;
        },
      },
      cinder: {
        name: "cinder, 25 times its time for 4 GiB",
        run: async (folder) =>
          (await cinderBackUp(await cinderPosix(folder), [part], { compression: "none" })).seconds / share,
      },
      others: [],
    },
    home,
    say,
  );
  await rm(image);
  await rm(part);
  const time = measured("full, none, 100 GiB sparse: seconds", seconds, { unit: "s", atMost: secondsMax });
  return [...results, time];
}

/** Peak resident memory of the same three verbs on a full volume of 1 GiB and on one of 1 TiB that is mostly holes. */
async function measurePeaks(home: string, say: Say): Promise<Measurement[]> {
  const small = await peaksOf(home, say, "1 GiB", (path) => writeRandomImage(path, GiB));
  const large = await peaksOf(home, say, "1 TiB with 2 GiB of data", (path) =>
    writeSparseFile(path, { sizeBytes: 1024 * GiB, dataBytes: 2 * GiB, seed: "tebibyte" }),
  );
  const ratios = Object.keys(small.peaks).map((verb) => {
    const ratio = (large.peaks[verb] as number) / (small.peaks[verb] as number);
    return measured(`${verb}: memory for 1 TiB over that for 1 GiB`, [ratio], { unit: "×", atMost: peakRatioMax });
  });
  return [...small.results, ...large.results, ...ratios];
}

async function peaksOf(
  home: string,
  say: Say,
  label: string,
  write: (path: string) => Promise<void>,
): Promise<{ results: Measurement[]; peaks: Record<string, number> }> {
  const image = join(home, "volume.img");
  const folder = join(home, "repository");
  const repository = `posix:${folder}`;
  const target = join(home, "restored");
  await write(image);
  const peaks: Record<string, number> = {};
  const results: Measurement[] = [];
  const run = async (verb: string, args: readonly string[]): Promise<unknown> => {
    const { answer, seconds, peakMib } = await engineMeasured(args);
    say(`${verb} of ${label}: ${peakMib.toFixed(0)} MiB, ${seconds.toFixed(1)} s`);
    peaks[verb] = peakMib;
    const note = `${seconds.toFixed(1)} s`;
    results.push(measured(`${verb} of ${label}: memory`, [peakMib], { unit: "MiB", atMost: peakMibMax, note }));
    return answer;
  };
  const id = backupIdOf(await run("backup", backupArgs(repository, image, { compression: "none" })));
  const dataBytes = (await stat(image)).blocks * 512;
  // The image goes before its copy comes: memory holds both folders.
  await rm(image);
  await run("verify", ["verify", "--repository", repository, "--backup", id]);
  await run("restore", ["restore", "--repository", repository, "--backup", id, "--target", target]);
  const restoredBytes = (await stat(target)).blocks * 512;
  if (restoredBytes > dataBytes + MiB) throw new Error("the restored volume has fewer holes than its source");
  await rm(target);
  await rm(folder, { recursive: true });
  return { results, peaks };
}
