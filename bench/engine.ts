import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { provideIsal } from "../scripts/isal-package.ts";
import {
  type BackupOptions,
  backUp,
  type CinderRecord,
  cinderBackUp,
  cinderPosix,
  cinderRestore,
  copiers,
  execute,
  GiB,
  restore,
} from "./contenders.ts";
import { type Case, compare } from "./engine-compare.ts";
import { measureDelayedS3 } from "./engine-delay.ts";
import { writeChangedImage, writeMixedImage, writeRandomImage } from "./engine-images.ts";
import { bound, hashingHere, type Limits, limitsOf } from "./engine-limits.ts";
import { measureSparse } from "./engine-sparse.ts";
import type { Measurement, Say } from "./measurement.ts";
import { measureTwoWorkers } from "./two-workers.ts";

const incrementals = 5;
/** Repositories and images in memory, so that no disk is measured. */
const memoryFolder = "/dev/shm";

/** Our command line beside a real Cinder's drivers: 1 GiB images, objects of 50 MiB, defaults only, everything in memory. */
export async function measureEngine(say: Say): Promise<Measurement[]> {
  // The command line finds the library as on a machine that has its package.
  Object.assign(process.env, await provideIsal(say));
  const { sha256, md5 } = hashingHere();
  say(
    `digests here: SHA-256 by ${sha256}, MD5 by ${md5}; the goals stand for a processor with AVX-512 and no SHA extensions`,
  );
  const parts = [measureAgainstCinder, measureDelayedS3, measureSparse, measureTwoWorkers];
  const results: Measurement[] = [];
  // One after another, each in a folder that is gone before the next: together they would not fit into memory.
  for (const part of parts) {
    const home = await mkdtemp(join(memoryFolder, "tephra-bench-"));
    try {
      results.push(...(await part(home, say)));
    } finally {
      await rm(home, { recursive: true, force: true });
    }
  }
  return results;
}

async function measureAgainstCinder(home: string, say: Say): Promise<Measurement[]> {
  say("writing images");
  const images = await writeImages(home);
  const limits = { random: await limitsOf(images.random, home), mixed: await limitsOf(images.mixed, home) };
  const results: Measurement[] = [];
  const kept = await keep(home, images);
  for (const each of await casesOf(images, kept, limits)) results.push(...(await compare(each, home, say)));
  return results;
}

interface Images {
  random: string;
  mixed: string;
  /** Of the mixed image, 1 % changed. */
  changed: string;
  /** Each with 5 % of the one before changed; the first is the mixed image. */
  chain: string[];
}

async function writeImages(home: string): Promise<Images> {
  const at = (name: string): string => join(home, `${name}.img`);
  await writeRandomImage(at("random"), GiB);
  await writeMixedImage(at("mixed"), GiB);
  await writeChangedImage(at("mixed"), at("changed"), { percent: 1, seed: "1" });
  const chain = [at("mixed")];
  for (let step = 1; step <= incrementals; step++) {
    await writeChangedImage(chain.at(-1) as string, at(`chain-${step}`), { percent: 5, seed: `chain ${step}` });
    chain.push(at(`chain-${step}`));
  }
  return { random: at("random"), mixed: at("mixed"), changed: at("changed"), chain };
}

/** The repositories that incrementals and restores start from. */
interface Kept {
  /** The full backup of the mixed image alone. */
  full: { ours: string; cinder: string; id: string; record: CinderRecord };
  /** The same with all incrementals. */
  chain: { ours: string; cinder: string; id: string; records: CinderRecord[] };
}

async function keep(home: string, images: Images): Promise<Kept> {
  const at = (name: string): string => join(home, name);
  const none = { compression: "none" };
  const { id } = await backUp(`posix:${at("full-ours")}`, images.mixed, none);
  const { records } = await cinderBackUp(await cinderPosix(at("full-cinder")), [images.mixed], none);
  const [record] = records as [CinderRecord];
  await linkCopy(at("full-ours"), at("chain-ours"));
  await linkCopy(at("full-cinder"), at("chain-cinder"));
  const later = images.chain.slice(1);
  let newest = id;
  for (const image of later) {
    newest = (await backUp(`posix:${at("chain-ours")}`, image, { ...none, parent: newest })).id;
  }
  const added = await cinderBackUp(await cinderPosix(at("chain-cinder")), later, { ...none, parent: record });
  return {
    full: { ours: at("full-ours"), cinder: at("full-cinder"), id, record },
    chain: { ours: at("chain-ours"), cinder: at("chain-cinder"), id: newest, records: [record, ...added.records] },
  };
}

/** Objects never change once they are there: names of the same files make a repository of their own. */
const linkCopy = (from: string, to: string): Promise<unknown> => execute("cp", ["-al", from, to]);

async function casesOf(images: Images, kept: Kept, limits: { random: Limits; mixed: Limits }): Promise<Case[]> {
  const { random, mixed } = limits;
  const full = (image: string, options: BackupOptions, texts: { label: string; note: string }, goal: number): Case => ({
    name: `full, ${texts.label}`,
    goal,
    note: texts.note,
    ours: { name: "tephra-engine", run: async (folder) => (await backUp(`posix:${folder}`, image, options)).seconds },
    cinder: {
      name: "cinder",
      run: async (folder) =>
        (await cinderBackUp(await cinderPosix(folder), [image], { compression: options.compression })).seconds,
    },
    others: [],
  });
  const restoring = (
    label: string,
    goal: number,
    from: { ours: string; cinder: string; id: string },
    records: CinderRecord[],
  ): Case => ({
    name: label,
    goal,
    note: `${bound(mixed.copy, mixed.sha256, mixed.md5Lanes)}, all of it verified`,
    ours: { name: "tephra-engine", run: (folder) => restore(`posix:${from.ours}`, from.id, folder) },
    cinder: {
      name: "cinder (verifies nothing)",
      run: async (folder) => cinderRestore(await cinderPosix(from.cinder), records, folder),
    },
    others: [],
  });
  const repositoryIn = (folder: string): string => join(folder, "repository");
  return [
    {
      ...full(
        images.random,
        { compression: "none" },
        { label: "none, random", note: bound(random.copy, random.sha256, random.md5Lanes) },
        6,
      ),
      others: await copiers(images.random),
    },
    full(
      images.mixed,
      { compression: "zstd" },
      { label: "zstd level 3, mixed", note: bound(mixed.sha256, mixed.md5Single, mixed.zstd3) },
      2.2,
    ),
    full(
      images.mixed,
      { compression: "zlib" },
      { label: "zlib level 6, mixed", note: bound(mixed.sha256, mixed.md5Single, mixed.zlib6) },
      1.8,
    ),
    full(
      images.mixed,
      { compression: "zlib", zlibEncoder: "isal" },
      { label: "zlib by ISA-L level 1, mixed", note: "Cinder at level 6" },
      6,
    ),
    {
      name: "incremental, 1 % changed, none, mixed",
      goal: 6,
      note: bound(mixed.copy / 2, mixed.sha256),
      ours: {
        name: "tephra-engine",
        prepare: (folder) => linkCopy(kept.full.ours, repositoryIn(folder)),
        run: async (folder) => {
          const options = { compression: "none", parent: kept.full.id };
          return (await backUp(`posix:${repositoryIn(folder)}`, images.changed, options)).seconds;
        },
      },
      cinder: {
        name: "cinder",
        prepare: (folder) => linkCopy(kept.full.cinder, repositoryIn(folder)),
        run: async (folder) => {
          const options = { compression: "none", parent: kept.full.record };
          const driver = await cinderPosix(repositoryIn(folder));
          return (await cinderBackUp(driver, [images.changed], options)).seconds;
        },
      },
      others: [],
    },
    restoring("restore, none, mixed", 1.5, kept.full, [kept.full.record]),
    restoring(`restore of full + ${incrementals} of 5 %, none, mixed`, 2, kept.chain, kept.chain.records),
  ];
}
