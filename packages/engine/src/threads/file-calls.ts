/**
 * Shows whether this thread is inside a file call, which may never return: the count is odd while it is. A thread handles one request at
 * a time, so there is one count, that of its current request.
 */
let count: Int32Array<SharedArrayBuffer> = new Int32Array(new SharedArrayBuffer(4));

/** From now on calls are counted in `into`, which other threads can watch. */
export function countFileCalls(into: Int32Array<SharedArrayBuffer>): void {
  count = into;
}

/** A call to a file: reading, writing or opening it. */
export function fileCall<Result>(call: () => Result): Result {
  Atomics.add(count, 0, 1);
  try {
    return call();
  } finally {
    Atomics.add(count, 0, 1);
  }
}
