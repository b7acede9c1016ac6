import { z } from "zod";
import { id } from "./fields.ts";

/** Something whose id or name begins with what was asked for, or an operation that a request of this id has asked for: its name is its kind. */
export const SearchHit = z
  .object({
    type: z.enum(["volume", "backup", "snapshot", "machine", "policy", "operation"]),
    id,
    name: z.string().nullable(),
    /** Null: a policy that is published for all projects. */
    project_id: z.string().nullable(),
    status: z.string(),
  })
  .meta({ id: "SearchHit" });
export type SearchHit = z.infer<typeof SearchHit>;
