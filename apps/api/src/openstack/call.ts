import type { Principal } from "@tephra/control";
import type { z } from "zod";
import type { Context } from "../context.ts";
import type { Place } from "./links.ts";
import type { Microversion } from "./microversions.ts";

/** One authenticated request, parsed. `Body` is the output of the action's schema; undefined where it has none. */
export interface Call<Body = unknown> {
  readonly principal: Principal;
  /** The caller's own, to be passed on to a service that has the volumes in this very request: never kept or logged. */
  readonly token: string;
  readonly version: Microversion;
  readonly place: Place;
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  /** Maximum page size of a list. */
  readonly listMax: number;
  /** Aborted when the caller disconnects: waiting can then stop. */
  readonly gone: AbortSignal;
  readonly body: Body;
}

export interface Answer {
  status: number;
  /** No body is sent when undefined. */
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
}

/** What a route does once the caller is authenticated. The steps run in this order (cinder-api 3.4): body, load, policy, handle. */
export interface Action<Body = unknown> {
  /** The first microversion that has it; below that it is not found. */
  since?: Microversion;
  body?: (version: Microversion) => z.ZodType<Body>;
  /** The project of the resource, where no verb looks it up. */
  projectOf?: (call: Call<Body>) => string;
  /** Finds the action's resource; called only when policy is about to refuse, so that an unknown id gives 404 rather than 403. */
  load?: (context: Context, call: Call<Body>) => Promise<unknown>;
  handle: (context: Context, call: Call<Body>) => Promise<Answer>;
}

/** Ties the body type of an action's schema to its handler, and erases it for the route table. */
export const defineAction = <Body>(action: Action<Body>): Action => action as Action;
