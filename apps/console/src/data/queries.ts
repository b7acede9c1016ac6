import { keepPreviousData, QueryClient, queryOptions, type UseQueryOptions } from "@tanstack/react-query";
import type { AnswerOf, OpsRouteKey } from "@tephra/wire";
import { type Asked, ask, call, Fault } from "./api.ts";
import { getLiveness } from "./liveness.ts";

export const client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 2_000,
      // The stream tells what has changed in the meantime.
      refetchOnWindowFocus: () => !["live", "paused"].includes(getLiveness().kind),
      networkMode: "always",
      retry: (times, error) => times < 2 && error instanceof Fault && (error.status === 0 || error.status >= 502),
      retryDelay: 1_000,
    },
  },
});

/** What events tell of: status transitions of a kind of thing, those of everything, and that the overview is another one. */
export type Told =
  | "any change"
  | "attachment"
  | "backup"
  | "group_snapshot"
  | "machine_backup"
  | "operation"
  | "pulse"
  | "snapshot"
  | "volume";

declare module "@tanstack/react-query" {
  interface Register {
    queryMeta: { on?: readonly Told[] };
  }
}

/** Milliseconds. */
const everyMs = { usual: 5_000, told: 60_000 };

/**
 * How what is shown stays true. `on`: it is asked for again when one of these is told, and on any change of what it names by id; without
 * `on`, nothing tells, and it is asked for every 5 s. `everyMs`: so often all the same. `polledMs`: so often while there is no stream, for what
 * the stream alone tells.
 */
export interface Freshness {
  on?: readonly Told[];
  everyMs?: number | false;
  polledMs?: number;
}

export function freshness({ on, everyMs: every, polledMs }: Freshness) {
  const usual = every ?? (on ? everyMs.told : everyMs.usual);
  return {
    ...(on && { meta: { on } }),
    refetchInterval: () => {
      const { kind } = getLiveness();
      return kind === "paused" ? false : kind === "live" ? usual : (polledMs ?? usual);
    },
  };
}

/** Of what runs: the stream tells how far it is. */
export const ofOperations: Freshness = { on: ["operation"], polledMs: 2_000 };

/** One of our own routes, as a query. */
export const route = <Key extends OpsRouteKey & `GET ${string}`>(
  key: Key,
  asked: Omit<Asked, "body" | "signal"> = {},
  fresh: Freshness = {},
): UseQueryOptions<AnswerOf<Key>> => ({
  queryKey: [key, asked.params ?? {}, asked.query ?? {}],
  queryFn: ({ signal }) => call(key, { ...asked, signal }),
  ...freshness(fresh),
});

/** For lists: the rows before stay until those of another filter or page are there. */
export const kept = { placeholderData: keepPreviousData };

/** A path of another dialect. */
export const path = <T>(text: string, fresh: Freshness = {}) =>
  queryOptions({
    queryKey: [text],
    queryFn: ({ signal }) => ask("GET", text, undefined, signal) as Promise<T>,
    ...freshness(fresh),
  });

export const sessionQuery = queryOptions({
  queryKey: ["session"],
  queryFn: () => call("GET /ops/session"),
  staleTime: 60_000,
  refetchInterval: 60_000,
  retry: false,
});
