import { promisify } from "node:util";
import type { Extent } from "../../format/extents.ts";

/** fallocate(2) on Linux: FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE. */
const keepSizeAndPunch = 1 | 2;

type Fallocate = (fd: number, mode: number, offset: number, length: number) => Promise<number>;

async function load(): Promise<Fallocate | null> {
  try {
    const { default: koffi } = await import("koffi");
    const call = koffi.load("libc.so.6").func("int fallocate(int fd, int mode, int64 offset, int64 length)");
    return promisify(call.async) as Fallocate;
  } catch {
    return null;
  }
}

let loaded: Promise<Fallocate | null> | undefined;

/** Makes a range of an open file, or device, read as zeros that take no space. @returns false where that cannot be done */
export async function punchHole(fd: number, { offset, length }: Extent): Promise<boolean> {
  loaded ??= load();
  const fallocate = await loaded;
  return length > 0 && fallocate !== null && (await fallocate(fd, keepSizeAndPunch, offset, length)) === 0;
}
