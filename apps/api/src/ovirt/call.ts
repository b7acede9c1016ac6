import { setTimeout as sleep } from "node:timers/promises";
import type { Principal } from "@tephra/control";
import type { Context } from "../context.ts";
import type { Rule } from "../http/policy.ts";
import type { Parameters, Version } from "./address.ts";
import type { Body } from "./body.ts";
import { type Element, group, listOf, type Root } from "./element.ts";
import type { FollowTree } from "./follow.ts";

/** One authenticated request. */
export interface Call {
  /** Its `requestId`, which operations keep, is the client's `Correlation-Id` where it has sent one. Never an admin of all projects. */
  readonly principal: Principal;
  readonly version: Version;
  /** The variable segments of the route's path. */
  readonly params: Readonly<Record<string, string>>;
  /** Query and matrix parameters. */
  readonly parameters: Parameters;
  /** An empty one where the request has none. */
  readonly body: Body;
  /** What is to be shown in place of links. */
  readonly follow: FollowTree;
  /** Whether everything is to be shown, as a machine's configuration as OVF. */
  readonly allContent: boolean;
  /** Whether the client wants 201 for what it adds, and waits for it. */
  readonly waits: boolean;
  /** Aborts when the client has gone. */
  readonly gone: AbortSignal;
}

/** What a request is answered with. */
export type Answer =
  /** `inHeader`: its links are told in the header `Link`, too. */
  | { readonly kind: "shown"; readonly root: Root; readonly inHeader?: boolean }
  /** `isPending`: something is left to do, which is answered with 202; how far that is stands at `creation_status` below the element. */
  | { readonly kind: "created"; readonly name: string; readonly element: Element; readonly isPending: boolean }
  /** `job`: the operation that does it; null where it is done. */
  | { readonly kind: "done"; readonly job: string | null };

export type Handle = (context: Context, call: Call) => Promise<Answer>;

/** `ACTION` is a POST whose faults are inside an action. */
export type Route = readonly [
  method: "GET" | "POST" | "PUT" | "DELETE" | "ACTION",
  path: string,
  rule: Rule,
  handle: Handle,
];

export const shown = (name: string, value: Root["value"]): Answer => ({ kind: "shown", root: { name, value } });
/** @param element with its path, which becomes the `Location` */
export const created = (name: string, element: Element, isPending: boolean): Answer => {
  return { kind: "created", name, element, isPending };
};
export const done = (job: string | null = null): Answer => ({ kind: "done", job });

/** How far something is that has been added, by the status of what it becomes. */
export const creationStatus = (status: "complete" | "failed" | "in_progress"): Answer =>
  shown("creation", group({ status }));

/** While a client waits for what it adds: how often that is looked for, since nothing tells the API when it is there, and how many times. */
const pollMs = 200;
const looksMax = 300;

/** What was added, once it is settled, or as it is when the client has waited long enough. */
export async function whenSettled<Row>(
  { gone }: Call,
  row: Row,
  isSettled: (row: Row) => boolean,
  read: () => Promise<Row>,
): Promise<Row> {
  let seen = row;
  for (let looks = 0; !isSettled(seen) && looks < looksMax && !gone.aborted; looks += 1) {
    await sleep(pollMs);
    seen = await read();
  }
  return seen;
}

/** An empty list below something; `find` throws when there is no such thing. */
export const emptyBelow =
  (find: (context: Context, call: Call) => Promise<unknown>) =>
  (name: string, item: string): Handle =>
  async (context, call) => {
    await find(context, call);
    return shown(name, listOf(item, []));
  };
