import { waitFor } from "./wait-for.ts";

/** One server-sent event. `data` is parsed JSON. */
export interface ServerEvent {
  id: string | null;
  event: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests reach into data whose shape is what they check
  data: any;
}

export interface EventReader extends AsyncDisposable {
  readonly status: number;
  readonly headers: Headers;
  /** Of an answer that is no stream. */
  readonly text: string;
  /** In the order of their arrival. */
  readonly seen: readonly ServerEvent[];
  /** The id of the last event that had one. */
  lastId(): string | null;
  /** Settles when the stream has ended: with `broken` when the connection was cut. */
  readonly ended: Promise<"ended" | "broken">;
  /** The first event that is so, once there is one. */
  wait(is: (event: ServerEvent) => boolean, what: string): Promise<ServerEvent>;
}

function parseEvent(block: string): ServerEvent | null {
  const fields = new Map(
    block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
  );
  const event = fields.get("event");
  if (event === undefined) return null;
  return { id: fields.get("id") ?? null, event, data: JSON.parse(fields.get("data") ?? "null") };
}

/** Reads events until it is disposed, or the stream ends. `onEvent` is called as each arrives. */
export async function openEventReader(
  url: string,
  { headers = {}, onEvent }: { headers?: Record<string, string>; onEvent?: (event: ServerEvent) => void } = {},
): Promise<EventReader> {
  const ending = new AbortController();
  const response = await fetch(url, { headers, signal: ending.signal });
  const isStream = response.headers.get("content-type") === "text/event-stream";
  const text = isStream ? "" : await response.text();
  const seen: ServerEvent[] = [];
  const read = async (): Promise<"ended" | "broken"> => {
    let unread = "";
    try {
      for await (const part of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
        const blocks = (unread + part).split("\n\n");
        unread = blocks.pop() ?? "";
        const arrived = blocks.flatMap((block) => parseEvent(block) ?? []);
        seen.push(...arrived);
        if (onEvent !== undefined) arrived.forEach(onEvent);
      }
      return "ended";
    } catch {
      return "broken";
    }
  };
  const ended = isStream ? read() : Promise.resolve("ended" as const);
  return {
    status: response.status,
    headers: response.headers,
    text,
    seen,
    lastId: () => seen.findLast(({ id }) => id !== null)?.id ?? null,
    ended,
    wait: (is, what) => waitFor(() => seen.find(is), { what, context: () => JSON.stringify(seen.slice(-5)) }),
    [Symbol.asyncDispose]: async () => {
      ending.abort();
      await ended;
    },
  };
}
