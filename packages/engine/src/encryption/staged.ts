import type { ObjectKey } from "../repository/repository.ts";
import { ByteReader } from "./byte-reader.ts";
import { decryptFrames, encryptFrames, type FrameKeys, frameKeysFor, frameTextBytes } from "./frames.ts";
import type { MasterKey } from "./master-keys.ts";

/**
 * Staged objects are removed with their operation, so they need no data key that outlives a master key:
 *
 *     "tephra" 0x00 0x02 | length of the version (1) | version of the master key | frames
 *
 * The frames are those of an object (frames.ts), with keys derived from the master key and the object's place.
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
 * Decrypts staged data. Data staged before encryption was enabled passes unchanged: whoever stages keeps a digest separately and rejects
 * data that does not match it.
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
