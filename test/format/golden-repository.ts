import { createHash } from "node:crypto";
import { cp, readFile } from "node:fs/promises";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { type BackupReference, openRepository, type Repository } from "@tephra/engine";
import { z } from "zod";

/** Repositories written by a real Cinder (posix driver), with the images that went in. */
export const goldenCodecs = ["zlib", "gzip", "bz2", "zstd", "none"] as const;
export type GoldenCodec = (typeof goldenCodecs)[number];

const manifestSchema = z.object({
  object_size: z.number(),
  block_size: z.number(),
  image_bytes: z.number(),
  backups: z.array(
    z.object({
      name: z.string(),
      id: z.string(),
      parent_id: z.string().nullable(),
      container: z.string(),
      service_metadata: z.string(),
      object_count: z.number(),
      image: z.string(),
      image_sha256: z.string(),
      backup_url: z.string(),
    }),
  ),
});

export type GoldenBackup = z.infer<typeof manifestSchema>["backups"][number];

export interface GoldenRepository {
  path: string;
  repository: Repository;
  objectBytes: number;
  blockBytes: number;
  backups: GoldenBackup[];
  /** The backup and all it builds on, newest first. */
  chainOf(name: string): BackupReference[];
  image(name: string): Promise<Buffer>;
}

/** Opens a golden repository, or a copy of it that a test may damage. */
export async function openGolden(codec: GoldenCodec, options: { copyTo?: string } = {}): Promise<GoldenRepository> {
  const home = join(import.meta.dirname, "golden", codec);
  const manifest = manifestSchema.parse(JSON.parse(await readFile(join(home, "manifest.json"), "utf8")));
  const path = options.copyTo ?? join(home, "repo");
  if (options.copyTo !== undefined) await cp(join(home, "repo"), path, { recursive: true });
  const repository = await openRepository(`posix:${path}`);
  const find = (test: (backup: GoldenBackup) => boolean): GoldenBackup => {
    const backup = manifest.backups.find(test);
    if (backup === undefined) throw new Error("There is no such golden backup.");
    return backup;
  };
  const chainOf = (name: string): BackupReference[] => {
    const chain: BackupReference[] = [];
    for (let backup: GoldenBackup | null = find((each) => each.name === name); backup !== null; ) {
      const parentId: string | null = backup.parent_id;
      chain.push({ backupId: backup.id, repository, container: backup.container, prefix: backup.service_metadata });
      backup = parentId === null ? null : find((each) => each.id === parentId);
    }
    return chain;
  };
  const image = async (name: string): Promise<Buffer> => {
    const backup = find((each) => each.name === name);
    const bytes = gunzipSync(await readFile(join(home, backup.image)));
    if (createHash("sha256").update(bytes).digest("hex") !== backup.image_sha256) {
      throw new Error("golden image is not whole");
    }
    return bytes;
  };
  const { object_size: objectBytes, block_size: blockBytes, backups } = manifest;
  return { path, repository, objectBytes, blockBytes, backups, chainOf, image };
}
