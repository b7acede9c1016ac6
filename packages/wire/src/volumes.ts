import { z } from "zod";
import { bytes, id } from "./fields.ts";

/** What Cinder's representation of a volume lacks: its exact length. `size` is in GiB, rounded up. */
export const VolumeDetails = z
  .object({ id, size: z.number().int(), bytes, status: z.string(), backend: z.string().nullable() })
  .meta({ id: "VolumeDetails" });
export type VolumeDetails = z.infer<typeof VolumeDetails>;
