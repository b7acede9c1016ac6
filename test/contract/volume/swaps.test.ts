import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openRepository, openVolumeBackend, type RunContext, type VolumeBackend } from "@tephra/engine";
import { afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { times } from "../../kit/long.ts";
import { installQemuUtils } from "../../kit/qemu-utils.ts";

const free: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const rounds = 100;
const own = "our own bytes";
const secret = "secret of somebody else";

/** Of rounds that run programs. */
const fewRounds = times({ usual: 15, long: 100 });

let home: string;
let backend: VolumeBackend;
beforeAll(installQemuUtils, 300_000);
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-swaps-"));
  for (const name of ["volumes", "inside", "outside", "inside/folder"]) await mkdir(join(home, name));
  backend = await openVolumeBackend({ driver: "file", path: join(home, "volumes") });
});
afterEach(() => rm(home, { recursive: true, force: true }));

/** Somebody exchanges a folder and a link to `outside` for as long as `work` runs. @returns how often */
async function whileSwapped(folder: string, work: () => Promise<void>): Promise<number> {
  const link = `${folder}-link`;
  await symlink(join(home, "outside"), link);
  const program = fileURLToPath(new URL("../../kit/swap-loop.mjs", import.meta.url));
  const attacker = spawn(process.execPath, [program, folder, link], { stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  attacker.stdout.on("data", (chunk: Buffer) => {
    said += chunk.toString();
  });
  await once(attacker.stdout, "data");
  try {
    await work();
  } finally {
    attacker.kill("SIGTERM");
    await once(attacker, "close");
  }
  return Number(said.split("\n")[1]);
}

/** Runs every round to its end. @returns how many of them succeeded; the others were refused with an error */
async function succeeding(round: (n: number) => Promise<void>, count = rounds): Promise<number> {
  let succeeded = 0;
  for (let n = 0; n < count; n++) {
    await round(n).then(
      () => {
        succeeded += 1;
      },
      (error: unknown) => expect(error).toHaveProperty("code"),
    );
  }
  return succeeded;
}

function tell(what: string, swaps: number, succeeded: number, count = rounds): void {
  process.stdout.write(`${count} ${what} during ${swaps} swaps: ${succeeded} done, the rest refused, 0 outside\n`);
  expect(swaps).toBeGreaterThan(count);
}

test("an import during swaps of its folder reads nothing outside the roots", async () => {
  await writeFile(join(home, "inside/folder/image"), own);
  await writeFile(join(home, "outside/image"), secret);
  const places = { roots: [join(home, "inside")] };
  const got: string[] = [];
  let succeeded = 0;
  const swaps = await whileSwapped(join(home, "inside/folder"), async () => {
    succeeded = await succeeding(async () => {
      await backend.importFile(join(home, "inside/folder/image"), "v1", places, free);
      got.push(await readFile(join(home, "volumes/volume-v1"), "utf8"));
    });
  });
  expect(got.filter((text) => text !== own)).toEqual([]);
  tell("imports", swaps, succeeded);
});

test("an export during swaps of its folder writes nothing outside the roots", async () => {
  await writeFile(join(home, "volumes/volume-v1"), own);
  await writeFile(join(home, "outside/victim"), secret);
  const places = { roots: [join(home, "inside")] };
  let succeeded = 0;
  const swaps = await whileSwapped(join(home, "inside/folder"), async () => {
    succeeded = await succeeding(async (claim) => {
      const run = { operationId: "6a1c2b3d-0000-4000-8000-000000000001", claim };
      const options = { places, run, overwrite: true };
      await backend.exportFile("v1", join(home, "inside/folder/victim"), options, free);
    });
  });
  expect(await readdir(join(home, "outside"))).toEqual(["victim"]);
  expect(await readFile(join(home, "outside/victim"), "utf8")).toBe(secret);
  expect((await readdir(join(home, "inside/folder"))).filter((name) => name !== "victim")).toEqual([]);
  tell("exports", swaps, succeeded);
});

test("a restore during swaps of the folder for drafts writes nothing outside the backend", async () => {
  await mkdir(join(home, "volumes/.drafts"));
  let succeeded = 0;
  const swaps = await whileSwapped(join(home, "volumes/.drafts"), async () => {
    succeeded = await succeeding((n) => backend.beginRestore("v1", `op${n}`, { sizeBytes: 9, keepTail: false }, free));
  });
  expect(await readdir(join(home, "outside"))).toEqual([]);
  tell("restores", swaps, succeeded);
});

test("a repository during swaps of a container reads and writes nothing outside it", async () => {
  await using repository = await openRepository(`posix:${join(home, "repository")}`);
  await repository.initialize();
  await repository.ensureContainer("aa/bb/c");
  await writeFile(join(home, "repository/aa/bb/c/object"), own);
  await mkdir(join(home, "outside/c"));
  await writeFile(join(home, "outside/c/object"), secret);
  const got: string[] = [];
  let succeeded = 0;
  const swaps = await whileSwapped(join(home, "repository/aa/bb"), async () => {
    succeeded = await succeeding(async (n) => {
      const container = "aa/bb/c";
      const chunks = await Array.fromAsync(repository.get({ container, name: "object" }));
      got.push(Buffer.concat(chunks).toString());
      await repository.putIfAbsent({ container, name: `new-${n}` }, Buffer.from(own), free);
      await repository.remove({ container, name: `new-${n}` });
    });
  });
  expect(got.filter((text) => text !== own)).toEqual([]);
  expect(await readdir(join(home, "outside"), { recursive: true })).toEqual(["c", "c/object"]);
  tell("reads, puts and removals", swaps, succeeded);
});

/** A raw image below the roots of a backend has become a volume; outside is another one of its name. */
async function adoptImage(): Promise<VolumeBackend> {
  await writeFile(join(home, "inside/folder/image"), own.padEnd(512));
  await writeFile(join(home, "outside/image"), secret.padEnd(512));
  const images = await openVolumeBackend({
    driver: "qemu",
    path: join(home, "volumes"),
    roots: [join(home, "inside")],
  });
  await images.adoptImage?.(`raw:${join(home, "inside/folder/image")}`, "v1", free);
  return images;
}

test("an image that was adopted, during swaps of its folder, is read from nowhere else", {
  timeout: 120_000,
}, async () => {
  const images = await adoptImage();
  const got: string[] = [];
  let succeeded = 0;
  const swaps = await whileSwapped(join(home, "inside/folder"), async () => {
    succeeded = await succeeding(async () => {
      await using source = await images.openSource({ volumeId: "v1" });
      const bytes = Buffer.alloc(source.sizeBytes);
      await source.read(bytes, 0);
      got.push(bytes.toString("utf8").trimEnd());
    }, fewRounds);
  });
  expect(got.filter((text) => text !== own)).toEqual([]);
  tell("readings of an adopted image", swaps, succeeded, fewRounds);
});

test("a restore of an image that was adopted, during swaps of its folder, writes nothing outside", {
  timeout: 120_000,
}, async () => {
  const images = await adoptImage();
  let succeeded = 0;
  const swaps = await whileSwapped(join(home, "inside/folder"), async () => {
    succeeded = await succeeding(async (n) => {
      await images.beginRestore("v1", `op${n}`, { sizeBytes: 512, keepTail: false }, free);
      await images.publishRestore("v1", `op${n}`, { fresh: false }, free);
    }, fewRounds);
  });
  expect(await readdir(join(home, "outside"))).toEqual(["image"]);
  expect((await readFile(join(home, "outside/image"), "utf8")).trimEnd()).toBe(secret);
  tell("restores of an adopted image", swaps, succeeded, fewRounds);
});
