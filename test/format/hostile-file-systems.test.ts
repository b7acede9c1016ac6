import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type DiskBytes, FileReaders, FilesError, openFileSource, type VolumeSource } from "@tephra/engine";
import { afterAll, beforeAll, expect, it } from "vitest";
import { installFileSystems, makeExt, makeFat, makeTree, makeXfs, run, runWith } from "../kit/file-system-images.ts";
import { times } from "../kit/long.ts";
import { type Random, randomFrom } from "../kit/random.ts";

/** Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const count = times({ usual: 25, long: 1000 });
const pieceBytes = 4096;
const readers = new FileReaders({ timeMs: 30_000 });

/** Bytes of the parts of an image that say what is where, and the image. */
interface Seed {
  name: string;
  source: VolumeSource;
  /** Of 4 KiB, those that were read and have something in them, in order. */
  pieces: { at: number; bytes: Buffer }[];
}

let home: string;
const seeds: Seed[] = [];
const opened = new AsyncDisposableStack();

beforeAll(async () => {
  await installFileSystems();
  home = await mkdtemp(join(tmpdir(), "tephra-hostile-"));
  const dir = join(home, "tree");
  await mkdir(dir);
  await makeTree(dir, 60);
  await rm(join(dir, "sparse/hole"));
  const path = (name: string): string => join(home, name);
  await makeExt(path("ext4"), dir, "24M", "-t", "ext4", "-I", "512", "-O", "inline_data");
  await makeExt(path("ext2"), dir, "24M", "-t", "ext2", "-b", "1024");
  await makeExt(path("journal"), dir, "24M", "-t", "ext4", "-b", "1024");
  const blocks = (await run("debugfs", "-R", "blocks /many", path("journal"))).trim().split(/\s+/);
  await writeFile(path("block"), randomBytes(1024));
  const journal = ["jo", `jw -b ${blocks[0]} ${path("block")}`, "jc", "jo", `jw -r ${blocks.join(",")}`, "jc"];
  await runWith(`${journal.join("\n")}\n`, "debugfs", "-w", "-f", "-", path("journal"));
  await makeXfs(path("xfs"), dir, 320);
  await makeXfs(path("xfs4"), dir, 320, "-m", "crc=0");
  for (const link of ["link-to-folder", "names/short-link", "names/long-link", "names/a b\tc"])
    await rm(join(dir, link));
  await makeFat(path("fat"), dir, 34, 32);
  for (const name of ["ext4", "ext2", "journal", "xfs", "xfs4", "fat"]) {
    const source = opened.use(await openFileSource(path(name)));
    seeds.push({ name, source, pieces: await piecesOf(source) });
  }
}, 300_000);
afterAll(async () => {
  await opened.disposeAsync();
  await rm(home, { recursive: true, force: true });
});

async function piecesOf(source: VolumeSource): Promise<Seed["pieces"]> {
  const seen = new Map<number, Buffer>();
  const noting: DiskBytes = {
    sizeBytes: source.sizeBytes,
    read: async (into, offset) => {
      await source.read(into, offset);
      for (let at = 0; at < into.length; at += pieceBytes) {
        const bytes = Buffer.from(into.subarray(at, at + pieceBytes));
        if (bytes.some((byte) => byte !== 0)) seen.set(offset + at, bytes);
      }
    },
  };
  await walk(noting);
  return [...seen].map(([at, bytes]) => ({ at, bytes })).sort((one, other) => one.at - other.at);
}

/** Some bytes changed, to any or to the worst values, mostly in the first parts, which say the most. */
function mutated({ source, pieces }: Seed, random: Random): DiskBytes {
  const changes = Array.from({ length: 1 + random(40) }, () => {
    const { at, bytes } = pieces[
      random(random(2) === 0 ? Math.min(4, pieces.length) : pieces.length)
    ] as (typeof pieces)[0];
    const worst = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    const byte = random(2) === 0 ? random(256) : (worst[random(worst.length)] ?? 0);
    // Where something is: what was nothing means nothing mostly.
    const start = random(bytes.length);
    const within = bytes.subarray(start).findIndex((each) => each !== 0);
    return { at: at + start + Math.max(0, within), bytes: Buffer.alloc(1 + random(8), byte) };
  });
  return {
    sizeBytes: source.sizeBytes,
    read: async (into, offset) => {
      await source.read(into, offset);
      for (const { at, bytes } of changes) {
        for (const [each, byte] of bytes.entries()) {
          const place = at + each - offset;
          if (place >= 0 && place < into.length) into[place] = byte;
        }
      }
    },
  };
}

/** What a user would do: look at everything, and read a little. @throws whatever is not a refusal */
async function walk(disk: DiskBytes): Promise<{ files: number; refusals: number }> {
  const told = { files: 0, refusals: 0 };
  const refused = (error: unknown): null => {
    if (!(error instanceof FilesError)) throw error;
    told.refusals += 1;
    return null;
  };
  await readers.ask(disk, { kind: "partitions" }).catch(refused);
  const folders = ["/"];
  for (let folder = folders.shift(); folder !== undefined && told.files < 100; folder = folders.shift()) {
    const asked = { kind: "list", path: folder, partition: null, after: 0, limit: 100 } as const;
    const listing = await readers.ask(disk, asked).catch(refused);
    expect(listing?.files.length ?? 0).toBeLessThanOrEqual(100);
    for (const { name, type } of listing?.files ?? []) {
      expect(name).not.toMatch(/[/\0]|^\.\.?$/);
      told.files += 1;
      const path = `${folder === "/" ? "" : folder}/${name}`;
      if (type === "directory" && folders.length < 5) folders.push(path);
      if (type !== "file" || told.files % 6 !== 0) continue;
      const file = await readers.open(disk, { path, partition: null }).catch(refused);
      await file?.read(Buffer.alloc(Math.min(file.sizeBytes, 65_536)), 0).catch(refused);
    }
  }
  return told;
}

it("a damaged or hostile file system is refused, or read as far as it makes sense, with little memory", {
  timeout: 60_000 + count * 30_000,
}, async () => {
  const random = randomFrom(seed);
  for (const each of seeds) expect((await walk(each.source)).files, each.name).toBeGreaterThan(60);
  const before = process.memoryUsage().rss;
  const told = { files: 0, refusals: 0 };
  for (let at = 0; at < count; at++) {
    const which = seeds[at % seeds.length] as Seed;
    try {
      const { files, refusals } = await walk(mutated(which, random));
      told.files += files;
      told.refusals += refusals;
    } catch (cause) {
      throw new Error(`image ${at} (${which.name}) of seed ${seed}`, { cause });
    }
  }
  process.stderr.write(`hostile file systems: seed ${seed}, ${count} images, ${JSON.stringify(told)}\n`);
  expect((process.memoryUsage().rss - before) / 2 ** 20, `seed ${seed}`).toBeLessThan(1024);
});

it("a thread that takes too long is ended, and others go on", async () => {
  const [ext4] = seeds as [Seed];
  const impatient = new FileReaders({ timeMs: 500, threadsMax: 1 });
  const held = Promise.withResolvers<void>();
  const slow: DiskBytes = { sizeBytes: ext4.source.sizeBytes, read: () => held.promise };
  const first = expect(impatient.ask(slow, { kind: "partitions" })).rejects.toMatchObject({
    kind: "damaged",
    message: /it took more than 0.5 s/,
  });
  await first;
  held.resolve();
  const patient = new FileReaders({ threadsMax: 1 });
  const asked = [1, 2, 3].map(() => patient.ask(ext4.source, { kind: "partitions" }));
  expect((await Promise.all(asked)).map(([whole]) => whole?.fileSystem)).toEqual(["ext4", "ext4", "ext4"]);
});

it("what the disk cannot read is told as it is", async () => {
  const [ext4] = seeds as [Seed];
  const broken: DiskBytes = { sizeBytes: ext4.source.sizeBytes, read: () => Promise.reject(new Error("no cable")) };
  await expect(readers.ask(broken, { kind: "partitions" })).rejects.toThrow("no cable");
});
