import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { guardStorage } from "../storage-error.ts";

/** Makes the names in a folder durable. */
export async function syncFolder(path: string): Promise<void> {
  await guardStorage(`write ${path}`, async () => {
    const folder = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  });
}
