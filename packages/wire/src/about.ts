import { z } from "zod";
import { time } from "./fields.ts";

const scalar = z.union([z.string(), z.number(), z.boolean()]);

/**
 * The API process that answers. `versions`: `volume_api` is the newest microversion of Cinder's that it speaks. `settings`: what its configuration file can have, by name;
 * `value` is null where nothing is set, and where it is hidden since it may be secret.
 */
export const About = z
  .object({
    as_of: time,
    versions: z.object({ tephra: z.string(), node: z.string(), volume_api: z.string() }),
    host: z.string(),
    config_file: z.string().nullable(),
    settings: z.array(
      z.object({
        name: z.string(),
        value: z.union([scalar, z.array(scalar)]).nullable(),
        is_default: z.boolean(),
        is_hidden: z.boolean(),
      }),
    ),
  })
  .meta({ id: "About" });
export type About = z.infer<typeof About>;
