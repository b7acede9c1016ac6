import { execFile, execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdir, readdir, readFile, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type BackupReference, levelDefault, openEngine, openRepository } from "@tephra/engine";
import { expect, test } from "vitest";
import { backUp, freeContext, restoreToMemory, small, temporaryFolder } from "./backup-fixture.ts";

const entry = join(import.meta.dirname, "../../apps/cli/dist/bundle/tephra-engine.js");
const hasCompiler = spawnSync("cc", ["--version"]).status === 0;
const byIsal = { compression: "zlib", level: levelDefault("zlib", "isal"), zlibEncoder: "isal" } as const;

interface Outcome {
  status: number;
  error: { code: string; message: string } | null;
}

function backUpByCommand(home: string, args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  const command = [entry, "backup", "--source", "volume", "--json", "--object-bytes", "65536", "--block-bytes", "4096"];
  const options = { cwd: home, env: { ...process.env, ...environment } };
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [...command, ...args], options, (_, stdout) =>
      resolve({ status: child.exitCode ?? -1, error: JSON.parse(stdout).error ?? null }),
    );
  });
}

/** The stored bytes of every data object, in order of their numbers. */
async function objectsIn(folder: string): Promise<Buffer[]> {
  const names = (await readdir(folder, { recursive: true })).filter((name) => /_backup_.*-\d{5}$/.test(name));
  return Promise.all(names.sort().map((name) => readFile(join(folder, name))));
}

/** Text, zeros that are no hole, noise, and a hole at the end; several windows of each. */
function imageOf(): Buffer<ArrayBuffer> {
  const text = Buffer.alloc(200_000, "lines that repeat ");
  return Buffer.concat([text, Buffer.alloc(200_000), randomBytes(200_000), text, Buffer.alloc(300_001)]);
}

test("a chain by ISA-L is restored and verified as any other, beside objects by zlib", async () => {
  await using folder = await temporaryFolder();
  await using engine = openEngine({ threads: 2 });
  const repository = await openRepository(`posix:${join(folder.path, "repository")}`);
  await repository.initialize();
  const path = join(folder.path, "volume");
  const image = imageOf();
  const chain: BackupReference[] = [];
  for (const layout of [byIsal, { ...byIsal, compression: "gzip" as const }, { compression: "zlib" as const }]) {
    image.write("changed", 100_000 + chain.length * 150_000);
    await writeFile(path, image);
    const parent = chain[0];
    chain.unshift(await backUp(engine, { repository, path, layout, ...(parent ? { parent } : {}) }));
    expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
    expect(await engine.verifyBackup({ chain, mode: "deep" }, freeContext())).toMatchObject({ damaged: [] });
  }
  const [full] = chain.slice(-1);
  const stored = await objectsIn(join(folder.path, "repository", full?.container ?? ""));
  const raw = stored.filter((object) => object.length === small.objectBytes);
  expect(raw.length).toBeGreaterThan(0);
  expect(stored.filter((object) => object.length < small.objectBytes / 2).length).toBeGreaterThan(5);
  for (const object of stored) expect(object.readUInt16BE() === 0x7801 || raw.includes(object)).toBe(true);
});

test("zeros are remembered per encoder", async () => {
  await using folder = await temporaryFolder();
  const path = join(folder.path, "volume");
  await writeFile(path, "");
  await truncate(path, small.objectBytes);
  const objectBy = async (using: ReturnType<typeof openEngine>, zlibEncoder: "zlib" | "isal"): Promise<Buffer> => {
    await using each = await temporaryFolder();
    const repository = await openRepository(`posix:${each.path}`);
    await repository.initialize();
    await backUp(using, { repository, path, layout: { compression: "zlib", level: 1, zlibEncoder } });
    return (await objectsIn(each.path))[0] as Buffer;
  };
  await using engine = openEngine({ threads: 1 });
  const byZlib = await objectBy(engine, "zlib");
  await using other = openEngine({ threads: 1 });
  const expected = await objectBy(other, "isal");
  expect(expected.equals(byZlib)).toBe(false);
  expect((await objectBy(engine, "isal")).equals(expected)).toBe(true);
});

test("two processes make the same objects, and not those of zlib", async () => {
  await using folder = await temporaryFolder();
  await writeFile(join(folder.path, "volume"), imageOf());
  for (const [repository, encoder] of Object.entries({ one: "isal", two: "isal", three: "zlib" })) {
    const args = ["--repository", `posix:${repository}`, "--zlib-encoder", encoder];
    expect(await backUpByCommand(folder.path, args)).toEqual({ status: 0, error: null });
  }
  const [one, two, three] = await Promise.all(
    ["one", "two", "three"].map((name) => objectsIn(join(folder.path, name))),
  );
  expect(one?.length).toBeGreaterThan(10);
  expect(two).toEqual(one);
  expect(three).toHaveLength(one?.length ?? 0);
  expect(three).not.toEqual(one);
});

test("a machine without ISA-L refuses before it has stored anything", async () => {
  await using folder = await temporaryFolder();
  await writeFile(join(folder.path, "volume"), imageOf());
  await mkdir(join(folder.path, "lib"));
  // Found before one that is installed, and a library of something else.
  const { sharedObjects } = process.report.getReport() as unknown as { sharedObjects: string[] };
  const another = sharedObjects.find((path) => path.includes("libm.so")) as string;
  await symlink(another, join(folder.path, "lib/libisal.so.2"));
  const args = ["--repository", "posix:repo", "--zlib-encoder", "isal"];
  const refused = await backUpByCommand(folder.path, args, { LD_LIBRARY_PATH: join(folder.path, "lib") });
  expect(refused).toMatchObject({ status: 1, error: { code: "codec_unavailable" } });
  expect(refused.error?.message).toContain("libisal.so.2 cannot be used");
  expect(await objectsIn(join(folder.path, "repo"))).toEqual([]);
});

test.skipIf(!hasCompiler)("an ISA-L that makes other bytes than elsewhere is refused", async () => {
  await using folder = await temporaryFolder();
  await writeFile(join(folder.path, "volume"), imageOf());
  await mkdir(join(folder.path, "lib"));
  const source = `#include <isa-l/igzip_lib.h>
    void isal_deflate_init(struct isal_zstream *s) {}
    int isal_deflate(struct isal_zstream *s) {
      s->next_in += s->avail_in;
      s->avail_in = 0;
      if (s->end_of_stream) { *s->next_out = 3; s->avail_out--; s->internal_state.state = ZSTATE_END; }
      return COMP_OK;
    }`;
  await writeFile(join(folder.path, "other.c"), source);
  execFileSync("cc", ["-shared", "-fPIC", "other.c", "-o", "lib/libisal.so.2"], { cwd: folder.path });
  const args = ["--repository", "posix:repo", "--zlib-encoder", "isal"];
  const refused = await backUpByCommand(folder.path, args, { LD_LIBRARY_PATH: join(folder.path, "lib") });
  expect(refused).toMatchObject({ status: 1, error: { code: "codec_unavailable" } });
  expect(refused.error?.message).toContain("other bytes");
  expect(await objectsIn(join(folder.path, "repo"))).toEqual([]);
});

test.each([
  { wrong: ["--compression", "none", "--zlib-encoder", "isal"] },
  { wrong: ["--compression", "zstd", "--zlib-encoder", "isal"] },
  { wrong: ["--zlib-encoder", "pigz"] },
])("wrong usage: $wrong", async ({ wrong }) => {
  await using folder = await temporaryFolder();
  await writeFile(join(folder.path, "volume"), "abc");
  const refused = await backUpByCommand(folder.path, ["--repository", "posix:repo", ...wrong]);
  expect(refused).toMatchObject({ status: 2, error: { code: "usage" } });
});
