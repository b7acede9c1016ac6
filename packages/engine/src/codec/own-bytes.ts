/**
 * The output of a synchronous call of node:zlib in a buffer of exactly its length, so that it can move between threads and be
 * given back. The output itself is lost to the caller. `chunkBytes`: the chunkSize of that call.
 */
export function ownBytes(output: Buffer, chunkBytes: number): Uint8Array<ArrayBuffer> {
  const buffer = output.buffer as ArrayBuffer;
  if (buffer.byteLength === output.length) return output as Buffer<ArrayBuffer>;
  // A whole chunk, which nobody else has. Anything else may lie in the pool that Node cuts small buffers from.
  if (buffer.byteLength === chunkBytes && output.byteOffset === 0)
    return new Uint8Array(buffer.transfer(output.length));
  const copy = new Uint8Array(output.length);
  copy.set(output);
  return copy;
}
