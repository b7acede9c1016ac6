import { JSONParser } from "@streamparser/json";

/** The text is not what the format says. Becomes a DamagedObjectError where the object's name is known. */
export class FormatError extends Error {}

/** A value of the document's top level, or one element of a top-level list. */
export interface JsonEvent {
  key: string;
  inList: boolean;
  value: unknown;
}

/**
 * The most bytes between two values that matter. It bounds every string, every nesting and everything unknown; the longest
 * legitimate value is volume_meta.
 */
const bytesBetweenValuesMax = 1024 * 1024;
/** Bytes are parsed in slices, so that one turn of the event loop stays short. */
const sliceBytes = 64 * 1024;

/**
 * Parses one JSON object from a stream in constant memory: yields the values of the top-level `keys` and the elements of
 * the top-level `lists`, in the order of the text. Throws FormatError for anything that is not one whole JSON object, for a
 * key that occurs twice, and for values longer than 1 MiB.
 */
export async function* streamJson(
  body: AsyncIterable<Uint8Array>,
  wanted: { keys: readonly string[]; lists: readonly string[] },
): AsyncGenerator<JsonEvent[]> {
  const { keys, lists } = wanted;
  let events: JsonEvent[] = [];
  let failure: Error | null = null;
  const seen = new Set<string>();
  const parser = new JSONParser({
    paths: [...keys.map((key) => `$.${key}`), ...lists.map((list) => `$.${list}.*`)],
    keepStack: false,
  });
  parser.onValue = ({ value, key, stack }) => {
    const list = stack.length >= 2 ? stack[1]?.key : undefined;
    if (typeof list === "string") {
      events.push({ key: list, inList: true, value });
    } else if (typeof key === "string") {
      if (seen.has(key)) failure ??= new FormatError(`the key ${JSON.stringify(key)} occurs twice`);
      seen.add(key);
      events.push({ key, inList: false, value });
    }
  };
  parser.onError = (error) => {
    failure ??= new FormatError("it is not well-formed JSON", { cause: error });
  };
  let quietBytes = 0;
  for await (const chunk of body) {
    for (let start = 0; start < chunk.length; start += sliceBytes) {
      const slice = chunk.subarray(start, start + sliceBytes);
      if (parser.isEnded) throw new FormatError("there is data behind the end of the document");
      parser.write(slice);
      if (failure !== null) throw failure;
      quietBytes = events.length > 0 ? 0 : quietBytes + slice.length;
      if (quietBytes > bytesBetweenValuesMax) throw new FormatError("a value is too long");
      if (events.length > 0) yield events;
      events = [];
    }
  }
  if (!parser.isEnded) throw new FormatError("it ends in the middle");
}
