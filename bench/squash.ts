import { randomUUID } from "node:crypto";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type BackupLayout,
  type BackupReference,
  type Engine,
  openEngine,
  openFileSource,
  openRepository,
  type Repository,
} from "@tephra/engine";
import { backUp, freeContext, layoutFor } from "../test/format/backup-fixture.ts";
import { randomBytesOf } from "../test/kit/bytes.ts";
import { randomFrom } from "../test/kit/random.ts";
import { startSwift } from "../test/kit/swift.ts";
import { GiB, MiB } from "./contenders.ts";
import { writeRandomImage } from "./engine-images.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";

const members = 30;
/** 1 % of the volume, each in one piece, in the first tenth of it: what changes every night is mostly where something changed before. */
const changedBytes = Math.floor(GiB / 100);
const changingBytes = GiB / 10;
const wide = { objectBytes: 52_428_800, blockBytes: 32_768 };
const ratioMin = 3;
/** Of a GiB: the windows that have changed, and what has changed in them. */
const readMibMax = 250;

/** Bytes that go through this process. */
interface Moved {
  read: number;
  written: number;
}

/** The same repository, with what is read from it and written to it counted. */
function counting(repository: Repository, moved: Moved): Repository {
  const get: Repository["get"] = async function* (key, options) {
    for await (const chunk of repository.get(key, options)) {
      moved.read += chunk.length;
      yield chunk;
    }
  };
  const putIfAbsent: Repository["putIfAbsent"] = (key, body, ctx) => {
    async function* counted(): AsyncGenerator<Uint8Array> {
      for await (const chunk of body instanceof Uint8Array ? [body] : body) {
        moved.written += chunk.length;
        yield chunk;
      }
    }
    return repository.putIfAbsent(key, counted(), ctx);
  };
  return new Proxy(repository, {
    get(target, name) {
      if (name === "get") return get;
      if (name === "putIfAbsent") return putIfAbsent;
      // Threads would read behind its back.
      if (name === "openFile" || name === "filePath") return undefined;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

async function secondsOf(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return (performance.now() - began) / 1000;
}

/** A full backup of 1 GiB and 30 incrementals of 1 % are squashed, beside a new full backup of the same volume. */
export async function measureSquash(say: Say): Promise<Measurement[]> {
  const home = await mkdtemp(join(tmpdir(), "tephra-bench-squash-"));
  try {
    const posix = await openRepository(`posix:${join(home, "repository")}`);
    const results = await measureIn("posix", posix, { home, rounds: 3, say });
    await using server = await startSwift();
    const keys = { accessKey: server.user, secretKey: server.key };
    const s3 = await openRepository(`s3://b-${randomUUID()}?endpoint=${server.url}`, keys);
    return [...results, ...(await measureIn("S3", s3, { home, rounds: 1, say }))];
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

async function measureIn(
  where: string,
  opened: Repository,
  { home, rounds, say }: { home: string; rounds: number; say: Say },
): Promise<Measurement[]> {
  await using engine = openEngine();
  await using repository = opened;
  await repository.initialize();
  const path = join(home, `${where}.img`);
  await writeRandomImage(path, GiB);
  const chain = await makeChain(engine, repository, path);
  say(`${where}: a chain of ${chain.length}`);
  const [full, squash]: [number[], number[]] = [[], []];
  const moved: Moved = { read: 0, written: 0 };
  let takenBytes = 0;
  for (let round = 0; round < rounds; round += 1) {
    const layout = await planned(engine, chain, repository, round);
    Object.assign(moved, { read: 0, written: 0 });
    const counted = counting(repository, moved);
    const references = chain.map((reference) => ({ ...reference, repository: counted }));
    squash.push(
      await secondsOf(async () => {
        const input = { chain: references, repository: counted, layout };
        ({ takenBytes } = await engine.squashWhole(input, freeContext()));
      }),
    );
    await engine.removeBackup({ repository, ...layout }, freeContext());
    const again = layoutFor(repository, GiB, wide);
    full.push(
      await secondsOf(async () => {
        await using source = await openFileSource(path);
        await engine.backupWhole({ source, repository, layout: again, parent: null }, freeContext());
      }),
    );
    await engine.removeBackup({ repository, ...again }, freeContext());
    say(`${where}: squash ${squash.at(-1)?.toFixed(1)} s, full backup ${full.at(-1)?.toFixed(1)} s`);
  }
  await rm(path);
  const note = `read ${(moved.read / MiB).toFixed(0)} MiB, wrote ${(moved.written / MiB).toFixed(0)} MiB, ${(takenBytes / MiB).toFixed(0)} MiB of the volume were copied by the store`;
  const name = `${where}: 1 GiB and ${members} incrementals of 1 %`;
  return [
    measured(`${name}: squash`, squash, { unit: "s", note }),
    measured(`${name}: backing up again`, full, { unit: "s" }),
    // A server on the same cores copies as slowly as it takes in.
    measured(`${name}: backing up again over squash`, [median(full) / median(squash)], {
      unit: "×",
      ...(where === "posix" ? { atLeast: ratioMin } : {}),
    }),
    measured(`${name}: read by the client`, [moved.read / MiB], { unit: "MiB", atMost: readMibMax }),
  ];
}

async function makeChain(engine: Engine, repository: Repository, path: string): Promise<BackupReference[]> {
  const random = randomFrom(1);
  const volumeId = randomUUID();
  const chain = [await backUp(engine, { repository, path, layout: { volumeId, ...wide } })];
  for (let member = 1; member <= members; member += 1) {
    await using file = await open(path, "r+");
    const data = randomBytesOf(`change ${member}`, changedBytes);
    await file.write(data, 0, data.length, random(changingBytes - changedBytes));
    const parent = chain[0] as BackupReference;
    chain.unshift(await backUp(engine, { repository, path, parent, layout: { volumeId, ...wide } }));
  }
  return chain;
}

async function planned(
  engine: Engine,
  chain: readonly BackupReference[],
  repository: Repository,
  round: number,
): Promise<BackupLayout> {
  const { backupId, container } = chain[0] as BackupReference;
  const { objectBytes } = wide;
  const shape = await engine.planSquash({ chain, objectBytes }, new AbortController().signal);
  const volumeId = shape.header.volumeId ?? "";
  const at = new Date(Date.now() + 60_000 * (round + 1));
  return layoutFor(repository, shape.volumeBytes, {
    ...{ backupId, container, volumeId, prefix: repository.defaultPrefix({ volumeId, backupId, at }) },
    ...{ objectBytes: shape.objectBytes, blockBytes: shape.blockBytes },
  });
}
