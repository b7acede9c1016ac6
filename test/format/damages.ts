import { createHash, randomBytes } from "node:crypto";
import { readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type BackupReference, DamagedObjectError, type Engine, EngineError, openRepository } from "@tephra/engine";
import { backUp, restoreToMemory, writeKeyFile } from "./backup-fixture.ts";

/** How a chain is stored. */
export const forms = ["zlib", "none", "encrypted"] as const;

/** A chain of a full backup and two incrementals, with zeros, text and noise, in a place that may be damaged. */
export async function makeChain(engine: Engine, folder: string, form: (typeof forms)[number]) {
  const root = join(folder, "repository");
  const encrypted = form === "encrypted";
  const compression = encrypted ? "none" : form;
  const encryption = encrypted ? { keyFile: await writeKeyFile(folder, ["1"]) } : undefined;
  const repository = await openRepository(`posix:${root}`, { encryption });
  await repository.initialize();
  const path = join(folder, "volume");
  const volume = Buffer.concat([randomBytes(100_000), Buffer.alloc(140_000), Buffer.alloc(90_123, "text ")]);
  const chain: BackupReference[] = [];
  for (const step of [0, 1, 2]) {
    randomBytes(9000).copy(volume, 20_000 + step * 130_000);
    await writeFile(path, volume);
    const parent = chain[0];
    const layout = { compression, encrypted } as const;
    chain.unshift(await backUp(engine, { repository, path, layout, ...(parent ? { parent } : {}) }));
  }
  return { root, chain, volume };
}

/** What is done to an object's file; `other` is one of the same kind. */
export type Damage = (file: string, other: string) => Promise<void>;
export const damagesOf = (seed: number): Record<string, Damage> => ({
  "one flipped bit": async (file) => {
    const bytes = await readFile(file);
    const place = createHash("sha256")
      .update(`${seed} ${file.slice(-20)}`)
      .digest()
      .readUInt32LE();
    const at = place % bytes.length;
    bytes[at] = (bytes[at] as number) ^ (1 << (place % 8));
    await writeFile(file, bytes);
  },
  truncated: async (file) => writeFile(file, (await readFile(file)).subarray(0, -1)),
  emptied: async (file) => writeFile(file, ""),
  extended: async (file) => writeFile(file, Buffer.concat([await readFile(file), Buffer.from("x")])),
  "replaced by noise of the same size": async (file) => writeFile(file, randomBytes((await readFile(file)).length)),
  "replaced by zeros of the same size": async (file) => writeFile(file, Buffer.alloc((await readFile(file)).length)),
  "swapped with another of its kind": async (file, other) => {
    await rename(file, `${file}.aside`);
    await rename(other, file);
    await rename(`${file}.aside`, other);
  },
  deleted: (file) => rm(file),
});

/** Names of the objects of each kind. */
export const kinds: Record<string, RegExp> = { data: /-\d{5}$/, hashes: /_sha256file$/, metadata: /_metadata$/ };

export async function filesOf(root: string, chain: readonly BackupReference[], kind: RegExp): Promise<string[]> {
  const files: string[] = [];
  for (const { container } of chain) {
    for (const name of (await readdir(join(root, container))).sort()) {
      if (kind.test(name)) files.push(join(root, container, name));
    }
  }
  return files;
}

/**
 * What comes of a restore. Objects of a parent that nothing is read from may be damaged without harm: then the bytes must be right.
 *
 * @throws when wrong bytes were restored
 */
export async function tryRestore(
  engine: Engine,
  chain: readonly BackupReference[],
  volume: Buffer,
): Promise<{ outcome: "damaged" | "refused" | "exact"; object: string | null }> {
  try {
    const restored = await restoreToMemory(engine, chain);
    if (!restored.equals(volume)) throw new Error("WRONG BYTES WERE RESTORED");
    return { outcome: "exact", object: null };
  } catch (error) {
    if (error instanceof DamagedObjectError) return { outcome: "damaged", object: error.object };
    if (error instanceof EngineError) return { outcome: "refused", object: null };
    throw error;
  }
}
