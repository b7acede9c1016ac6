import { readSync } from "node:fs";

/** The thread could not read its source, which its owner can find out more about. */
export interface UnreadResult {
  unread: { offset: number; length: number };
}

/** Fills `into` from an open file; false when the file ends before or cannot be read. */
export function readFully(descriptor: number, into: Uint8Array, offset: number): boolean {
  try {
    for (let done = 0; done < into.length; ) {
      const bytes = readSync(descriptor, into, done, into.length - done, offset + done);
      if (bytes === 0) return false;
      done += bytes;
    }
    return true;
  } catch {
    return false;
  }
}
