import { keepPreviousData, QueryClient, queryOptions } from "@tanstack/react-query";
import type { OpsRouteKey } from "@tephra/wire";
import { type Asked, ask, call, Fault } from "./api.ts";

export const client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 2_000,
      refetchOnWindowFocus: true,
      networkMode: "always",
      retry: (times, error) => times < 2 && error instanceof Fault && (error.status === 0 || error.status >= 502),
      retryDelay: 1_000,
    },
  },
});

/** How often what is shown is asked for again, where nothing tells of changes. */
export const everyMs = { running: 2_000, list: 5_000, slow: 30_000 };

/** One of our own routes, as a query. */
export const route = <Key extends OpsRouteKey & `GET ${string}`>(
  key: Key,
  asked: Omit<Asked, "body" | "signal"> = {},
  refetchMs: number | false = everyMs.list,
) =>
  queryOptions({
    queryKey: [key, asked.params ?? {}, asked.query ?? {}],
    queryFn: ({ signal }) => call(key, { ...asked, signal }),
    refetchInterval: refetchMs,
  });

/** For lists: the rows before stay until those of another filter or page are there. */
export const kept = { placeholderData: keepPreviousData };

/** A path of another dialect. */
export const path = <T>(text: string, refetchMs: number | false = everyMs.list) =>
  queryOptions({
    queryKey: [text],
    queryFn: ({ signal }) => ask("GET", text, undefined, signal) as Promise<T>,
    refetchInterval: refetchMs,
  });

export const sessionQuery = queryOptions({
  queryKey: ["session"],
  queryFn: () => call("GET /ops/session"),
  staleTime: 60_000,
  refetchInterval: 60_000,
  retry: false,
});
