import { runJob } from "./jobs.ts";
import type { QmpClient } from "./qmp-client.ts";

interface NewImage {
  /** The nodes needed on the way are named after this one; it has at most 29 characters. */
  node: string;
  path: string;
  sizeBytes: number;
  cache: { direct: boolean; "no-flush": boolean };
  /** What is written into the image as its backing file. It is not opened. */
  backing: { path: string; format: "qcow2" | "raw" } | null;
}

/** Creates a qcow2 image. QEMU creates the file: it may run as another user and must be able to write it. */
export async function createImage(qmp: QmpClient, { node, path, sizeBytes, cache, backing }: NewImage): Promise<void> {
  await runJob(qmp, "blockdev-create", `${node}-f`, { options: { driver: "file", filename: path, size: 0 } });
  const file = { driver: "file", filename: path, cache, discard: "unmap" };
  await qmp.execute("blockdev-add", { ...file, "node-name": `${node}-f` });
  const on = backing === null ? {} : { "backing-file": backing.path, "backing-fmt": backing.format };
  const options = { driver: "qcow2", file: `${node}-f`, size: sizeBytes, ...on };
  await runJob(qmp, "blockdev-create", `${node}-q`, { options });
  await qmp.execute("blockdev-del", { "node-name": `${node}-f` });
}
