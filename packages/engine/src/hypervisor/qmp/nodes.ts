import { z } from "zod";
import { parseJson, type QmpClient } from "./qmp-client.ts";

const Bitmap = z.object({
  /** QEMU's own have none. */
  name: z.string().optional(),
  persistent: z.boolean(),
  /** What it recorded has been lost: it can only be removed. */
  inconsistent: z.boolean().optional(),
});
export type Bitmap = z.infer<typeof Bitmap>;

const Nodes = z.array(
  z.object({
    "node-name": z.string(),
    drv: z.string(),
    file: z.string(),
    backing_file_depth: z.number(),
    cache: z.object({ direct: z.boolean(), "no-flush": z.boolean() }),
    image: z.object({ "virtual-size": z.number() }),
    "dirty-bitmaps": z.array(Bitmap).optional(),
  }),
);
/** A node of QEMU's block layer: an image, a file, or a filter over one. */
export type Node = z.infer<typeof Nodes>[number];

export async function listNodes(qmp: QmpClient): Promise<Node[]> {
  return Nodes.parse(await qmp.execute("query-named-block-nodes"));
}

/** A node with options that its file name cannot express, such as an overlay before it is used, is named `json:{…}`. */
export function pathOf({ file }: Node): string {
  if (!file.startsWith("json:")) return file;
  const options = z.object({ file: z.object({ filename: z.string() }) }).safeParse(parseJson(file.slice(5)));
  return options.data?.file.filename ?? "";
}
