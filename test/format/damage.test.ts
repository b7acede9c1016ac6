import { createHash, randomBytes } from "node:crypto";
import { cp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { deflateSync } from "node:zlib";
import {
  type BackupReference,
  DamagedObjectError,
  type Engine,
  openEngine,
  openRepository,
  type Repository,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { backUp, freeContext, MemoryTarget, restoreToMemory, small, temporaryFolder } from "./backup-fixture.ts";
import { type Damage, damagesOf, filesOf, forms, kinds, makeChain, tryRestore } from "./damages.ts";

/** Where bits are flipped. Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const damages = damagesOf(seed);

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

describe.each(forms)(`a chain stored with %s (seed ${seed})`, (form) => {
  test.each(Object.keys(damages))("is never restored wrongly when an object is %s", async (name) => {
    await using folder = await temporaryFolder();
    const { root, chain, volume } = await makeChain(engine, folder.path, form);
    expect((await tryRestore(engine, chain, volume)).outcome).toBe("exact");
    const whole = join(folder.path, "whole");
    await cp(root, whole, { recursive: true });
    for (const [kind, pattern] of Object.entries(kinds)) {
      const files = await filesOf(root, chain, pattern);
      for (const [index, file] of files.entries()) {
        const other = files[(index + 1) % files.length] as string;
        const compressed = (await readFile(file)).subarray(0, 2).toString("hex") === "789c";
        await (damages[name] as Damage)(file, other);
        const { outcome } = await tryRestore(engine, chain, volume);
        // Hash lists of parents are not needed to restore; of the backup itself every line is.
        const needed = kind !== "hashes" || file.includes((chain[0] as BackupReference).container);
        // A bit may lie in a name that nobody reads, or in the padding of a zlib stream: then the bytes are right.
        const harmless = name === "one flipped bit" && outcome === "exact" && (kind !== "data" || compressed);
        // A bit of a label or version makes it an unknown one, which is refused in its own words.
        const refused = name === "one flipped bit" && kind === "metadata" && outcome === "refused";
        // A list that is not there at all is no damage: everything else is still checked, and the restore says so.
        const without = name === "deleted" && kind === "hashes";
        if (needed && !harmless && !refused && !without)
          expect(`${kind} ${file}: ${outcome}`).toBe(`${kind} ${file}: damaged`);
        await rm(root, { recursive: true });
        await cp(whole, root, { recursive: true });
      }
    }
  });
});

test("damage names the backup and the object", async () => {
  await using folder = await temporaryFolder();
  const { root, chain } = await makeChain(engine, folder.path, "none");
  const [file] = await filesOf(root, chain.slice(2), kinds["data"] as RegExp);
  await (damages["one flipped bit"] as Damage)(file as string, "");
  const error = await restoreToMemory(engine, chain).catch((caught: unknown) => caught);
  const full = chain[2] as BackupReference;
  expect(error).toMatchObject({
    backupId: full.backupId,
    object: `${full.prefix}-00001`,
    reason: "the MD5 does not match",
  });
});

test("a restore of a damaged backup writes nothing of the damaged object", async () => {
  await using folder = await temporaryFolder();
  const { root, chain } = await makeChain(engine, folder.path, "none");
  const full = chain.slice(2);
  const [, second] = await filesOf(root, full, kinds["data"] as RegExp);
  await (damages["one flipped bit"] as Damage)(second as string, "");
  const target = new MemoryTarget(330_123);
  await expect(engine.restoreWhole({ chain: full, target }, freeContext())).rejects.toBeInstanceOf(DamagedObjectError);
  expect(target.bytes.subarray(small.objectBytes, 2 * small.objectBytes).every((byte) => byte === 0xee)).toBe(true);
});

test("an older generation of an object that fits its own metadata is still found", async () => {
  await using folder = await temporaryFolder();
  const { root, chain } = await makeChain(engine, folder.path, "none");
  const full = chain[2] as BackupReference;
  const file = join(root, full.container, `${full.prefix}-00002`);
  const metadataFile = join(root, full.container, `${full.prefix}_metadata`);
  const bytes = await readFile(file);
  const md5 = (data: Buffer): string => createHash("md5").update(data).digest("hex");
  const before = md5(bytes);
  bytes[0] = (bytes[0] as number) ^ 1;
  await writeFile(file, bytes);
  await writeFile(metadataFile, (await readFile(metadataFile, "utf8")).replace(before, md5(bytes)));
  const error = await restoreToMemory(engine, [full]).catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(DamagedObjectError);
  expect((error as DamagedObjectError).object).toBe(`${full.prefix}_sha256file`);
  expect((error as DamagedObjectError).reason).toContain(`${full.prefix}-00002`);
});

describe("a repository written by an attacker", () => {
  type Document = { objects: Record<string, Record<string, unknown>>[]; [key: string]: unknown };

  /** Restores a full backup after its metadata was rewritten; gives the error. */
  async function restoreAfter(change: (document: Document, prefix: string, root: string) => unknown): Promise<unknown> {
    await using folder = await temporaryFolder();
    const { root, chain } = await makeChain(engine, folder.path, "none");
    const full = chain[2] as BackupReference;
    const file = join(root, full.container, `${full.prefix}_metadata`);
    const document: Document = JSON.parse(await readFile(file, "utf8"));
    const text = (await change(document, full.prefix, join(root, full.container))) ?? document;
    await writeFile(file, typeof text === "string" ? text : JSON.stringify(text));
    return await restoreToMemory(engine, [full]).catch((caught: unknown) => caught);
  }

  const entry = (document: Document, index: number): Record<string, unknown> =>
    Object.values(document.objects[index] as object)[0] as Record<string, unknown>;

  const changes: Record<string, (document: Document, prefix: string, root: string) => unknown> = {
    "a name that leads out of the container": (document) => {
      document.objects[0] = { "../../../etc/passwd": entry(document, 0) };
    },
    "a name of another backup": (document, prefix) => {
      document.objects[0] = { [`${prefix.slice(0, -1)}x-00001`]: entry(document, 0) };
    },
    "the name of the metadata itself": (document, prefix) => {
      document.objects[0] = { [`${prefix}_metadata`]: entry(document, 0) };
    },
    "two names in one entry": (document, prefix) => {
      document.objects[0] = { ...document.objects[0], [`${prefix}-00009`]: entry(document, 0) };
    },
    "__proto__ as a name": (document) => {
      document.objects[0] = JSON.parse(`{"__proto__": ${JSON.stringify(entry(document, 0))}}`);
    },
    "a negative offset": (document) => {
      entry(document, 0)["offset"] = -1;
    },
    "a fractional offset": (document) => {
      entry(document, 1)["offset"] = 65536.5;
    },
    "an offset beyond 2^53": (document) => {
      entry(document, 1)["offset"] = 2 ** 60;
    },
    "a length of zero": (document) => {
      entry(document, 0)["length"] = 0;
    },
    "a huge length": (document) => {
      entry(document, 0)["length"] = 2 ** 41;
    },
    "an offset in the middle of a block": (document) => {
      entry(document, 1)["offset"] = 65537;
    },
    "overlapping objects": (document) => {
      entry(document, 1)["offset"] = 4096;
    },
    "a gap": (document) => void document.objects.splice(1, 1),
    "objects out of order": (document) => void document.objects.reverse(),
    "the same object twice": (document) => void document.objects.push(document.objects.at(-1) as never),
    "no end of the volume": (document) => void document.objects.pop(),
    "no objects": (document) => {
      document.objects = [];
    },
    "another MD5": (document) => {
      entry(document, 0)["md5"] = "0".repeat(32);
    },
    "an MD5 that is none": (document) => {
      entry(document, 0)["md5"] = null;
    },
    "a wrong label": (document) => {
      entry(document, 0)["compression"] = "zlib";
    },
    "another version": (document) => {
      document["version"] = "2.0.0";
    },
    "a parent that is not there": (document) => {
      document["parent_id"] = "x";
    },
    "text that is no JSON": () => "nonsense",
    "an array": () => "[]",
    "two documents": (document) => JSON.stringify(document).repeat(2),
    "deep nesting": (document) => JSON.stringify(document).replace("{", `{"deep":${"[".repeat(2_000_000)}`),
    "one very long string": (document) => {
      document["backup_name"] = "x".repeat(3_000_000);
    },
    "a key that occurs twice": (document) => JSON.stringify(document).replace("{", '{"version":"1.0.0",'),
  };

  test.each(Object.keys(changes))("with %s is refused", async (name) => {
    const error = await restoreAfter(changes[name] as never);
    expect(error).toBeInstanceOf(DamagedObjectError);
  });

  test.each(["bz2", "bzip2", "zstd", "gzip"])("with the wrong label %s is refused", async (label) => {
    const error = await restoreAfter((document) => {
      entry(document, 0)["compression"] = label;
    });
    expect(error).toBeInstanceOf(DamagedObjectError);
  });

  test.each(["lzma", "", "../../x", "zlib\0", "constructor"])(
    "with the label %s is refused in Cinder's words",
    async (label) => {
      const error = await restoreAfter((document) => {
        entry(document, 0)["compression"] = label;
      });
      expect(error).toMatchObject({ message: `unsupported compression algorithm: ${label}` });
    },
  );

  test("with a compression bomb is refused at the declared length", async () => {
    const error = await restoreAfter(async (document, prefix, root) => {
      entry(document, 0)["compression"] = "zlib";
      await writeFile(join(root, `${prefix}-00001`), deflateSync(Buffer.alloc(60_000_000)));
    });
    expect(error).toBeInstanceOf(DamagedObjectError);
    expect((error as Error).message).toContain(`${small.objectBytes} bytes`);
  });
});

/** The repository, but that what it stores under such names has one bit flipped. */
function flippingPuts(repository: Repository, names: RegExp): Repository {
  const putIfAbsent: Repository["putIfAbsent"] = async (key, body, ctx) => {
    if (!names.test(key.name)) return repository.putIfAbsent(key, body, ctx);
    const bytes = Buffer.concat(await Array.fromAsync(body instanceof Uint8Array ? [body] : body));
    const at = bytes.length >> 1;
    bytes[at] = (bytes[at] as number) ^ 1;
    return repository.putIfAbsent(key, bytes, ctx);
  };
  return new Proxy(repository, {
    get: (target, name) => {
      if (name === "putIfAbsent") return putIfAbsent;
      const own: unknown = Reflect.get(target, name, target);
      return typeof own === "function" ? own.bind(target) : own;
    },
  });
}

test("a backup whose list of hashes was not stored as it was written is not sealed", async () => {
  await using folder = await temporaryFolder();
  const repository = await openRepository(`posix:${join(folder.path, "repository")}`);
  await repository.initialize();
  const path = join(folder.path, "volume");
  await writeFile(path, randomBytes(200_000));
  const failing = backUp(engine, { repository: flippingPuts(repository, /_sha256file$/), path });
  await expect(failing).rejects.toMatchObject({ reason: "it does not read as it was written" });
  const names = await readdir(join(folder.path, "repository"), { recursive: true });
  expect(names.filter((name) => name.endsWith("_sha256file"))).toHaveLength(1);
  expect(names.filter((name) => name.endsWith("_metadata"))).toEqual([]);
});

test("damage that only one read shows is not reported", async () => {
  await using folder = await temporaryFolder();
  const { chain, volume } = await makeChain(engine, folder.path, "zlib");
  const flaky = chain.map((reference) => {
    const seen = new Set<string>();
    const { repository } = reference;
    const get: typeof repository.get = async function* (key, options) {
      const place = `${key.name}:${options?.offset ?? 0}`;
      const first = !seen.has(place);
      seen.add(place);
      for await (const chunk of repository.get(key, options)) {
        if (first) chunk[0] = (chunk[0] as number) ^ 0x40;
        yield chunk;
      }
    };
    const stat = repository.stat.bind(repository);
    // Without files for the threads: every byte comes through get.
    const own = { get, stat, openFile: undefined, filePath: undefined };
    return { ...reference, repository: Object.assign(Object.create(repository) as typeof repository, own) };
  });
  expect((await restoreToMemory(engine, flaky)).equals(volume)).toBe(true);
});
