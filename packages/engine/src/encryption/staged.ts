import type { ObjectKey } from "../repository/repository.ts";
import { ByteReader } from "./byte-reader.ts";
import { decryptFrames, encryptFrames, type FrameKeys, frameKeysFor, frameTextBytes } from "./frames.ts";
import type { MasterKey } from "./master-keys.ts";

/**
 * What an operation stages, which goes with it, needs no data key to outlive its master key:
 *
 *     "tephra" 0x00 0x02 | length of the version (1) | version of the master key | frames
 *
 * The frames are those of an object (frames.ts), with keys that are derived from the master key and the object's place.
 */
const magic = Buffer.from("tephra\0\u0002", "latin1");

export async function* encryptStaged(
  master: MasterKey,
  key: ObjectKey,
  body: Uint8Array | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  yield Buffer.concat([magic, Buffer.of(master.version.length), Buffer.from(master.version)]);
  yield* encryptFrames(keysFor(master, key), body);
}

/**
 * Decrypts what was staged. What was staged before encryption was switched on passes as it is: whoever stages keeps a digest apart,
 * and takes nothing that does not have it.
 */
export async function* decryptStaged(
  masterOf: (version: string) => Promise<MasterKey>,
  key: ObjectKey,
  stored: AsyncIterable<Uint8Array<ArrayBuffer>>,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = new ByteReader(stored);
  try {
    const start = await reader.take(magic.length);
    if (!start.equals(magic)) {
      yield start;
      while (!(await reader.atEnd())) yield await reader.take(frameTextBytes);
      return;
    }
    const [length = 0] = await reader.take(1);
    const version = (await reader.take(length)).toString("latin1");
    yield* decryptFrames(keysFor(await masterOf(version), key), reader);
  } finally {
    await reader.close();
  }
}

function keysFor(master: MasterKey, { container, name }: ObjectKey): FrameKeys {
  return frameKeysFor(master.secret, `staged\0${container}/${name}`);
}
