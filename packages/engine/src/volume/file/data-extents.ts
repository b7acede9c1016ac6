import { promisify } from "node:util";
import type { Extent } from "../../format/extents.ts";

/** lseek(2) on Linux. */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

type Seek = (fd: number, offset: number, whence: number) => Promise<number>;

/** Finds data and holes of an open file. */
export type DataFinder = (fd: number, range: Extent) => AsyncGenerator<Extent>;

/**
 * Finds data and holes on this machine. Where lseek(2) cannot be called, or a file system does not report holes, everything counts as
 * data, which is slower but never wrong.
 */
export async function loadDataFinder(): Promise<DataFinder> {
  const seek = await loadSeek();
  if (seek === null) return allData;
  const last: LastRun = { fd: -1, start: 0, end: 0 };
  return (fd, range) => seekData(seek, fd, range, last);
}

/**
 * The data that was found last: SEEK_HOLE walks every page up to the next hole, and ranges are asked for one after another. What has become
 * a hole since then counts as data, which is slower but never wrong.
 */
interface LastRun {
  fd: number;
  start: number;
  end: number;
}

async function loadSeek(): Promise<Seek | null> {
  try {
    const { default: koffi } = await import("koffi");
    const lseek = koffi.load("libc.so.6").func("int64 lseek(int fd, int64 offset, int whence)");
    // Off the main thread: some file systems walk every allocated page.
    const call = promisify(lseek.async) as (fd: number, offset: number, whence: number) => Promise<number | bigint>;
    return async (fd, offset, whence) => Number(await call(fd, offset, whence));
  } catch {
    return null;
  }
}

async function* allData(_fd: number, range: Extent): AsyncGenerator<Extent> {
  if (range.length > 0) yield range;
}

async function* seekData(seek: Seek, fd: number, range: Extent, last: LastRun): AsyncGenerator<Extent> {
  const end = range.offset + range.length;
  for (let at = range.offset; at < end; ) {
    if (last.fd === fd && last.start <= at && at < last.end) {
      const stop = Math.min(last.end, end);
      yield { offset: at, length: stop - at };
      at = stop;
      continue;
    }
    const start = await seek(fd, at, SEEK_DATA);
    if (start < 0) {
      yield* restAfterFailure(seek, fd, { offset: at, length: end - at });
      return;
    }
    if (start >= end) return;
    const hole = await seek(fd, start, SEEK_HOLE);
    const stop = hole > start ? Math.min(hole, end) : end;
    if (hole > start) Object.assign(last, { fd, start, end: hole });
    yield { offset: start, length: stop - start };
    at = stop;
  }
}

/**
 * SEEK_DATA fails past the last data (ENXIO) and where it is not supported. SEEK_HOLE tells the two apart: past the last data the next
 * hole is at the current offset; without support there is none.
 */
async function* restAfterFailure(seek: Seek, fd: number, rest: Extent): AsyncGenerator<Extent> {
  if ((await seek(fd, rest.offset, SEEK_HOLE)) === rest.offset) return;
  yield rest;
}
