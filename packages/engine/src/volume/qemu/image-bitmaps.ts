import { open } from "node:fs/promises";
import { z } from "zod";
import {
  granularity,
  idsOf,
  markOfWhole,
  named,
  type RecordingLayer,
  records,
  validIds,
} from "./checkpoint-bitmaps.ts";
import { type ImageFile, virtualBytes } from "./image-chain.ts";
import { runQemuImg } from "./qemu-img.ts";
import { nodeOf } from "./qemu-nbd.ts";

/*
 * Checkpoints in images that nobody has open: see checkpoint-bitmaps.ts. Where layers change without a process that has them open, this
 * keeps what hypervisor/qmp/disks/checkpoints.ts keeps where one has.
 */

/** What `qemu-img info` says of an image's bitmaps. `in-use`: the process that had it open was killed. */
const Info = z.object({
  "format-specific": z
    .object({
      data: z.object({ bitmaps: z.array(z.object({ name: z.string(), flags: z.array(z.string()) })).optional() }),
    })
    .optional(),
});

const alone = (image: ImageFile): string => `json:${JSON.stringify(nodeOf([image], 0))}`;

async function readLayer(image: ImageFile): Promise<RecordingLayer> {
  if (image.format !== "qcow2") return { sizeBytes: (await image.file.stat()).size, bitmaps: [] };
  let said = "";
  const onLine = (line: string): void => {
    said += line;
  };
  await runQemuImg(["info", "--output=json", alone(image)], { chain: [image], shown: image.path, onLine });
  const { bitmaps = [] } = Info.parse(JSON.parse(said))["format-specific"]?.data ?? {};
  return {
    sizeBytes: await virtualBytes(image.file),
    bitmaps: bitmaps.map(({ name, flags }) => ({ name, persistent: true, inconsistent: flags.includes("in-use") })),
  };
}

/** The checkpoints of a disk that can be used; nobody writes it. */
export async function checkpointsIn(chain: readonly ImageFile[]): Promise<string[]> {
  const [active, ...below] = chain;
  if (active === undefined) return [];
  const first = await readLayer(active);
  // Most disks have none.
  if (idsOf(first).length === 0) return [];
  const others: RecordingLayer[] = [];
  for (const image of below) others.push(await readLayer(image));
  return validIds([first, ...others]);
}

async function change(image: ImageFile, args: readonly string[], name: string, from?: ImageFile): Promise<void> {
  const chain = from === undefined ? [image] : [image, from];
  const source = from === undefined ? [] : ["-b", `json:${JSON.stringify({ ...nodeOf(chain, 1), backing: null })}`];
  const target = `json:${JSON.stringify({ ...nodeOf(chain, 0), backing: null })}`;
  await runQemuImg(["bitmap", ...args, ...source, target, name], { chain, shown: image.path });
}

/** A new image records for these checkpoints from now on. Whatever it builds on need not be there. */
export async function recordFor(path: string, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await using file = await open(path, "r");
  for (const id of ids) await change({ path, format: "qcow2", file }, ["--add", "-g", String(granularity)], id);
}

/**
 * Once the lower of two layers has all that the upper holds, and before it takes the upper's place: it takes its checkpoints over. What the
 * upper has not recorded is removed from it, which would else look valid. What was written into it meanwhile counts as changed.
 */
export async function moveBitmaps(upper: ImageFile, lower: ImageFile): Promise<void> {
  const [above, below] = [await readLayer(upper), await readLayer(lower)];
  const kept = idsOf(above).filter((id) => records(above, id));
  for (const id of idsOf(below)) if (!kept.includes(id) || !records(below, id)) await change(lower, ["--remove"], id);
  for (const id of kept) {
    if (named(below, id) !== undefined && !records(below, id)) continue;
    if (named(below, id) === undefined) await change(lower, ["--add", "-g", String(granularity)], id);
    await change(lower, ["--merge", id], id, upper);
  }
  if (named(above, markOfWhole) !== undefined && named(below, markOfWhole) === undefined) {
    await change(lower, ["--add", "--disable", "-g", String(granularity)], markOfWhole);
  }
}
