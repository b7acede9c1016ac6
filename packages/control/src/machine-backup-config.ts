import { z } from "zod";
import { shown } from "./settings.ts";

const GiB = 1024 ** 3;

/** How machines are backed up by changed blocks. */
export const MachineBackups = z
  .strictObject({
    /** Where what machines overwrite during a backup is kept; null: `scratch` in the data folder. */
    scratch_dir: z.string().startsWith("/").register(shown).nullable().default(null),
    /** Where sockets are; null: `run` in the data folder. Paths of sockets have limits. */
    socket_dir: z.string().startsWith("/").max(60).register(shown).nullable().default(null),
    /** When less is free for what machines overwrite, a backup is given up before a write of the machine fails. */
    reserve_bytes: z.int().min(0).default(GiB),
    /** Checkpoints of a machine; the oldest go first. The machine pays for each of them with every write. */
    checkpoints_max: z.int().min(1).max(128).default(32),
    /** How long backups can be looked up after their end. */
    kept_hours: z
      .number()
      .min(1)
      .default(24 * 7),
  })
  .prefault({});
