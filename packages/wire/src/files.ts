import { z } from "zod";
import { bytes, time } from "./fields.ts";

/** A partition of a backup's or snapshot's disk; number 0 is the whole disk where it has no table. `problem`: why its files are not read. */
export const Partition = z
  .object({
    number: z.number().int().nonnegative(),
    offset: bytes,
    bytes,
    name: z.string().nullable(),
    file_system: z.string().nullable(),
    label: z.string().nullable(),
    /** Whether it was in use, so that changes wait in its journal; those of ext are taken into account. Null: not known. */
    needs_recovery: z.boolean().nullable(),
    problem: z.string().nullable(),
  })
  .meta({ id: "Partition" });
export type Partition = z.infer<typeof Partition>;

/** A file as its folder has it. `target`: what a link says; it is never followed. `mode`: the permissions. Null: not known. */
export const ListedFile = z
  .object({
    name: z.string(),
    type: z.enum([
      "file",
      "directory",
      "link",
      "block_device",
      "character_device",
      "pipe",
      "socket",
      "unknown",
      "damaged",
    ]),
    size: bytes.nullable(),
    mode: z.number().int().nonnegative().nullable(),
    uid: z.number().int().nonnegative().nullable(),
    gid: z.number().int().nonnegative().nullable(),
    mtime: time.nullable(),
    target: z.string().nullable(),
  })
  .meta({ id: "ListedFile" });
export type ListedFile = z.infer<typeof ListedFile>;

export const partitions = z.object({ partitions: z.array(Partition) });

/** `next_marker`: what to ask for as `marker`, to go on; null: there is no more. */
export const listing = z.object({
  partition: z.number().int().nonnegative(),
  file_system: z.string(),
  files: z.array(ListedFile),
  next_marker: z.string().nullable(),
});
