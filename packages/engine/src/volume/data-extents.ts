import type { Extent } from "../extents.ts";

/** lseek(2) on Linux. */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

type Seek = (fd: number, offset: number, whence: number) => number;

/** Finds data and holes of an open file. */
export type DataFinder = (fd: number, range: Extent) => Generator<Extent>;

/**
 * The way to find holes on this machine. Where lseek(2) cannot be called, or a file system does not know its holes, everything
 * counts as data, which is slower and never wrong.
 */
export async function loadDataFinder(): Promise<DataFinder> {
  const seek = await loadSeek();
  return seek === null ? allData : (fd, range) => seekData(seek, fd, range);
}

async function loadSeek(): Promise<Seek | null> {
  try {
    const { default: koffi } = await import("koffi");
    return koffi.load("libc.so.6").func("int64 lseek(int fd, int64 offset, int whence)") as unknown as Seek;
  } catch {
    return null;
  }
}

function* allData(_fd: number, range: Extent): Generator<Extent> {
  if (range.length > 0) yield range;
}

function* seekData(seek: Seek, fd: number, range: Extent): Generator<Extent> {
  const end = range.offset + range.length;
  for (let at = range.offset; at < end; ) {
    const start = Number(seek(fd, at, SEEK_DATA));
    if (start < 0) {
      yield* restAfterFailure(seek, fd, { offset: at, length: end - at });
      return;
    }
    if (start >= end) return;
    const hole = Number(seek(fd, start, SEEK_HOLE));
    const stop = hole > start ? Math.min(hole, end) : end;
    yield { offset: start, length: stop - start };
    at = stop;
  }
}

/**
 * SEEK_DATA fails behind the last data (ENXIO) and where it is not supported. The two are told apart by the hole at the very
 * place: behind the last data the next hole is where we stand; without support there is none.
 */
function* restAfterFailure(seek: Seek, fd: number, rest: Extent): Generator<Extent> {
  if (Number(seek(fd, rest.offset, SEEK_HOLE)) === rest.offset) return;
  yield rest;
}
