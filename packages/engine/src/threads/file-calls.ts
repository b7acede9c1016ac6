/**
 * Says whether this thread is inside a call to a file, which may never return: a count that is odd while it is. A thread does one request
 * at a time, so there is one count, that of its request.
 */
let count: Int32Array<SharedArrayBuffer> = new Int32Array(new SharedArrayBuffer(4));

/** From now on calls are counted here, and can be watched from outside. */
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
