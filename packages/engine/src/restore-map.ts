import { createHash } from "node:crypto";
import { z } from "zod";
import { compressions } from "./compression.ts";
import { InvalidBackupError } from "./errors.ts";
import type { MappedObject } from "./merge-layers.ts";
import type { Repository } from "./repository/repository.ts";
import type { RunContext } from "./run-context.ts";

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

/** Stages a slice of the map; returns its digest. */
export async function stageMap(
  repository: Repository,
  key: { container: string; name: string },
  objects: readonly MappedObject[],
  ctx: RunContext,
): Promise<string> {
  const hash = createHash("sha256");
  async function* lines(): AsyncGenerator<Uint8Array> {
    for (const { layer, entry, segments } of objects) {
      const line = [layer, entry.number, entry.offset, entry.length, entry.compression, entry.md5, segments];
      const bytes = Buffer.from(`${JSON.stringify(line)}\n`);
      hash.update(bytes);
      yield bytes;
    }
  }
  await repository.putIfAbsent(key, lines(), ctx);
  return hash.digest("hex");
}

/** Reads a slice of the map and makes sure that it is the planned one. */
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
  const objects: MappedObject[] = [];
  for (const line of Buffer.concat(chunks).toString("latin1").split("\n")) {
    if (line === "") continue;
    objects.push(parseMapLine(line));
  }
  return objects;
}

/** InvalidBackupError for a line that no plan has written. */
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
