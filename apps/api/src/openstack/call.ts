import type { Principal } from "@tephra/control";
import type { z } from "zod";
import type { Context } from "../context.ts";
import type { Place } from "./links.ts";
import type { Microversion } from "./microversions.ts";

/** One authenticated request, parsed. `Body` is what the action's schema makes of the body; undefined where it has none. */
export interface Call<Body = unknown> {
  readonly principal: Principal;
  readonly version: Microversion;
  readonly place: Place;
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  /** What one page of a list holds at most. */
  readonly listMax: number;
  /** Aborted when the caller has gone: whoever waits for something need not go on. */
  readonly gone: AbortSignal;
  readonly body: Body;
}

export interface Answer {
  status: number;
  /** Nothing is sent when it is undefined. */
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
}

/** What a route does once the caller is known. The steps run in this order (cinder-api 3.4): body, load, policy, handle. */
export interface Action<Body = unknown> {
  /** First microversion that has it; before, it is not found. */
  since?: Microversion;
  body?: (version: Microversion) => z.ZodType<Body>;
  /** Whose resource it is, where no verb looks it up. */
  projectOf?: (call: Call<Body>) => string;
  /** Finds what the action is about; asked only when policy is about to refuse, so that a stranger's id is 404 rather than 403. */
  load?: (context: Context, call: Call<Body>) => Promise<unknown>;
  handle: (context: Context, call: Call<Body>) => Promise<Answer>;
}

/** Keeps the type of the body between an action's schema and its handler, and forgets it for the route table. */
export const defineAction = <Body>(action: Action<Body>): Action => action as Action;
