import { JsonReader, parseStrictJson, UnusableJsonError } from "@tephra/format";

/** The text violates the format. Becomes a DamagedObjectError where the object's name is known. */
export class FormatError extends Error {}

/** A value of the document's top level, or one element of a top-level list. */
export interface JsonEvent {
  key: string;
  inList: boolean;
  value: unknown;
}

/**
 * The most bytes between two relevant values. Bounds every string, nesting depth and unknown content; the longest legitimate value is
 * volume_meta.
 */
const bytesBetweenValuesMax = 1024 * 1024;
/** Bytes are parsed in slices, to keep each turn of the event loop short. */
const sliceBytes = 64 * 1024;

/**
 * Parses one JSON object from a stream in constant memory: yields the values of the top-level `keys` and the elements of the top-level
 * `lists`, in document order. Throws FormatError for anything that is not exactly one JSON object under the rules of JsonReader (no
 * duplicate keys in any object, bounded depth and width), and for values longer than 1 MiB.
 */
export async function* streamJson(
  body: AsyncIterable<Uint8Array>,
  { keys, lists }: { keys: readonly string[]; lists: readonly string[] },
): AsyncGenerator<JsonEvent[]> {
  let events: JsonEvent[] = [];
  const reader = new JsonReader({
    wish: (key) => (lists.includes(key) ? "elements" : keys.includes(key) ? "value" : "check"),
    onValue: (key, value, inList) => void events.push({ key, inList, value }),
  });
  let quietBytes = 0;
  try {
    for await (const chunk of body) {
      for (let start = 0; start < chunk.length; start += sliceBytes) {
        const slice = chunk.subarray(start, start + sliceBytes);
        reader.write(slice);
        quietBytes = events.length > 0 ? 0 : quietBytes + slice.length;
        if (quietBytes > bytesBetweenValuesMax) throw new FormatError("a value is too long");
        if (events.length > 0) yield events;
        events = [];
      }
    }
    reader.end();
  } catch (error) {
    throw error instanceof UnusableJsonError ? new FormatError(error.message, { cause: error }) : error;
  }
}

/** Parses one JSON object in memory under the same rules. FormatError. */
export function parseDocument(bytes: Uint8Array | string): Record<string, unknown> {
  try {
    return parseStrictJson(bytes);
  } catch (error) {
    throw error instanceof UnusableJsonError ? new FormatError(error.message, { cause: error }) : error;
  }
}
