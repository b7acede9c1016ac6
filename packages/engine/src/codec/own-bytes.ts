/**
 * The output of a synchronous node:zlib call, in a buffer of exactly its length, so that it can be transferred between threads and freed.
 * The original output must not be used afterwards. `chunkBytes`: the chunkSize of that call.
 */
export function ownBytes(output: Buffer, chunkBytes: number): Uint8Array<ArrayBuffer> {
  const buffer = output.buffer as ArrayBuffer;
  if (buffer.byteLength === output.length) return output as Buffer<ArrayBuffer>;
  // A whole chunk that nothing else shares. Anything else may be in the pool from which Node allocates small buffers.
  if (buffer.byteLength === chunkBytes && output.byteOffset === 0)
    return new Uint8Array(buffer.transfer(output.length));
  const copy = new Uint8Array(output.length);
  copy.set(output);
  return copy;
}
