import { randomUUID } from "node:crypto";
import { open, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { VolumeStorageError } from "../errors.ts";
import { guardStorage } from "../volume/storage-error.ts";

/** A file without a name: it disappears with its descriptor, whatever happens. Offsets are its own. */
export interface ScratchFile extends AsyncDisposable {
  /** Fills `into`. */
  read(into: Uint8Array, offset: number): Promise<void>;
  write(data: Uint8Array, offset: number): Promise<void>;
}

/** In the folder for temporary files. It reads as zeros up to `sizeBytes`. VolumeStorageError, VolumeStorageFullError. */
export async function openScratchFile(sizeBytes: number): Promise<ScratchFile> {
  const path = join(tmpdir(), `tephra-region-${randomUUID()}`);
  const file = await guardStorage(`create ${path}`, () => open(path, "wx+", 0o600));
  try {
    await guardStorage(`remove ${path}`, () => unlink(path));
    await guardStorage(`write ${path}`, () => file.truncate(sizeBytes));
  } catch (error) {
    await file.close();
    throw error;
  }
  return {
    async read(into, offset) {
      for (let done = 0; done < into.length; ) {
        const { bytesRead } = await guardStorage(`read ${path}`, () =>
          file.read(into, done, into.length - done, offset + done),
        );
        if (bytesRead === 0)
          throw new VolumeStorageError(`Cannot read ${path}: it ends too early.`, { retryable: false });
        done += bytesRead;
      }
    },
    async write(data, offset) {
      for (let done = 0; done < data.length; ) {
        const { bytesWritten } = await guardStorage(`write ${path}`, () =>
          file.write(data, done, data.length - done, offset + done),
        );
        done += bytesWritten;
      }
    },
    [Symbol.asyncDispose]: () => file.close(),
  };
}
