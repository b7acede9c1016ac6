import { createHash } from "node:crypto";
import { z } from "zod";
import type { MappedObject } from "../chain/merge-layers.ts";
import { compressions } from "../codec/compression.ts";
import { InvalidBackupError } from "../errors.ts";
import type { Repository } from "../repository/repository.ts";
import type { RunContext } from "../run/run-context.ts";

/** One line of a staged map: layer, number, offset, length, label, MD5, segments. */
const mapLine = z.tuple([
  z.int(),
  z.int(),
  z.int(),
  z.int(),
  z.enum(compressions),
  z.string().nullable(),
  z.array(z.tuple([z.int(), z.int()])).min(1),
]);

/** The line of an object, in its staged form. */
export function mapBytes({ layer, entry, segments }: MappedObject): Buffer {
  const line = [layer, entry.number, entry.offset, entry.length, entry.compression, entry.md5, segments];
  return Buffer.from(`${JSON.stringify(line)}\n`);
}

/** Identifies a slice of the map: hex SHA-256 of the lines in its staged form. */
export function mapDigest(objects: readonly MappedObject[]): string {
  const hash = createHash("sha256");
  for (const object of objects) hash.update(mapBytes(object));
  return hash.digest("hex");
}

/** Stages a slice of the map; returns its digest. */
export async function stageMap(
  repository: Repository,
  key: { container: string; name: string },
  objects: readonly MappedObject[],
  ctx: RunContext,
): Promise<string> {
  async function* lines(): AsyncGenerator<Uint8Array> {
    for (const object of objects) yield mapBytes(object);
  }
  await repository.putIfAbsent(key, lines(), ctx);
  return mapDigest(objects);
}

/** Reads a slice of the map and checks that it is the planned one. */
export async function readMap(
  repository: Repository,
  key: { container: string; name: string },
  range: { map: { digest: string } },
  signal: AbortSignal,
): Promise<MappedObject[]> {
  const hash = createHash("sha256");
  const chunks: Uint8Array[] = [];
  for await (const chunk of repository.get(key, { signal })) {
    hash.update(chunk);
    chunks.push(chunk);
  }
  if (hash.digest("hex") !== range.map.digest) {
    throw new InvalidBackupError(`The staged map ${key.name} is not the one that was planned; plan the restore again.`);
  }
  return parseMap(Buffer.concat(chunks));
}

/** The objects of a slice in its staged form. InvalidBackupError for a line that no plan could have written. */
export function parseMap(bytes: Buffer): MappedObject[] {
  const lines = bytes.toString("latin1").split("\n");
  return lines.filter((line) => line !== "").map(parseMapLine);
}

/** InvalidBackupError for a line that no plan could have written. */
export function parseMapLine(line: string): MappedObject {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw new InvalidBackupError("A line of the staged map is not JSON.", { cause });
  }
  const parsed = mapLine.safeParse(value);
  if (!parsed.success) throw new InvalidBackupError("A line of the staged map is not one that a plan writes.");
  const [layer, number, offset, length, compression, md5, segments] = parsed.data;
  return { layer, entry: { number, offset, length, compression, md5 }, segments };
}
