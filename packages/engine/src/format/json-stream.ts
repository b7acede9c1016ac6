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

/** Elements of a list in the one form in which writers write them: read many at a time, without the parser. */
export interface KnownElements {
  list: string;
  /** What stands before the first element. */
  opening: string;
  /** No element of the known form is longer. */
  bytesMax: number;
  /** The element of the known form at a place of a text, one character per byte, and the comma behind it; null for anything else. */
  read(text: string, at: number): { value: unknown; end: number; comma: boolean } | null;
}

/**
 * Parses one JSON object from a stream in constant memory: yields the values of the top-level `keys` and the elements of the top-level
 * `lists`, in document order. Throws FormatError for anything that is not exactly one JSON object under the rules of JsonReader (no
 * duplicate keys in any object, bounded depth and width), and for values longer than 1 MiB. Elements of the `known` form are handed over as
 * its `read` has them; what is accepted and refused is the same with and without it.
 */
export async function* streamJson(
  body: AsyncIterable<Uint8Array>,
  { keys, lists, known = null }: { keys: readonly string[]; lists: readonly string[]; known?: KnownElements | null },
): AsyncGenerator<JsonEvent[]> {
  let events: JsonEvent[] = [];
  const reader = new JsonReader({
    wish: (key) => (lists.includes(key) ? "elements" : keys.includes(key) ? "value" : "check"),
    onValue: (key, value, inList) => void events.push({ key, inList, value }),
  });
  let quietBytes = 0;
  /** What may be the beginning of a known element that the next chunk continues. */
  let rest: Uint8Array = new Uint8Array();
  try {
    for await (const chunk of body) {
      const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      rest = new Uint8Array();
      for (let start = 0; start < bytes.length; ) {
        const inBulk = known !== null && reader.beginsElement(known.list);
        let end = inBulk ? readKnown(bytes, start, { known, reader, events }) : start;
        if (inBulk && end === start && bytes.length - start < known.bytesMax) {
          rest = bytes.subarray(start);
          break;
        }
        if (end === start) {
          end = sliceEnd(bytes, start, inBulk ? null : known);
          reader.write(bytes.subarray(start, end));
        }
        quietBytes = events.length > 0 ? 0 : quietBytes + end - start;
        if (quietBytes > bytesBetweenValuesMax) throw new FormatError("a value is too long");
        if (events.length > 0) yield events;
        events = [];
        start = end;
      }
    }
    reader.write(rest);
    if (events.length > 0) yield events;
    reader.end();
  } catch (error) {
    throw error instanceof UnusableJsonError ? new FormatError(error.message, { cause: error }) : error;
  }
}

/** Reads elements of the known form from `start` on, about a slice of them; returns where they end. */
function readKnown(
  bytes: Uint8Array,
  start: number,
  { known, reader, events }: { known: KnownElements; reader: JsonReader; events: JsonEvent[] },
): number {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + start, Math.min(bytes.length - start, sliceBytes)).toString(
    "latin1",
  );
  let end = 0;
  for (let comma = true; comma; ) {
    const element = known.read(text, end);
    if (element === null) break;
    events.push({ key: known.list, inList: true, value: element.value });
    reader.passElement(element);
    ({ end, comma } = element);
  }
  return start + end;
}

/** Where the next slice for the parser ends: at the latest behind what stands before the first known element. */
function sliceEnd(bytes: Uint8Array, start: number, known: KnownElements | null): number {
  const end = Math.min(start + sliceBytes, bytes.length);
  if (known === null) return end;
  const slice = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start);
  const opening = slice.indexOf(known.opening);
  return opening < 0 ? end : start + opening + known.opening.length;
}

/** Parses one JSON object in memory under the same rules. FormatError. */
export function parseDocument(bytes: Uint8Array | string): Record<string, unknown> {
  try {
    return parseStrictJson(bytes);
  } catch (error) {
    throw error instanceof UnusableJsonError ? new FormatError(error.message, { cause: error }) : error;
  }
}
