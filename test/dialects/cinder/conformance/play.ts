import { isDeepStrictEqual } from "node:util";
import { learnNames, messageOf, normalise, shapeOf, withoutContent } from "./compare.ts";
import { type Case, requestOf, send } from "./exchange.ts";
import type { Stage } from "./fixtures.ts";

/** Where an answer and the recorded one part. A text counts only where the recorded answer has one. */
export interface Verdict {
  id: string;
  status: boolean;
  headers: boolean;
  shape: boolean;
  message: boolean | null;
  whole: boolean;
  recorded: string;
  seen: string;
}

/** Sends a recorded request, waits until what it began has ended, and compares the answers. */
export async function play(stage: Stage, recorded: Case): Promise<Verdict> {
  const { names, instance } = stage;
  const { method } = recorded.request;
  const answer = await send(instance.url, method, requestOf(recorded, names));
  learnNames(recorded.response.body, answer.body, names);
  if (method !== "GET" && answer.status < 300) await stage.settled();
  const seen = normalise(answer, names, instance.url);
  const { response } = recorded;
  const [wanted, got] = [withoutContent(response.body), withoutContent(seen.body)];
  const message = messageOf(wanted);
  return {
    id: recorded.id,
    status: response.status === seen.status,
    headers: isDeepStrictEqual(response.headers, seen.headers),
    shape: isDeepStrictEqual(shapeOf(wanted), shapeOf(got)),
    message: message === null ? null : message === messageOf(got),
    whole: isDeepStrictEqual({ ...response, body: wanted }, { ...seen, body: got }),
    recorded: JSON.stringify({ ...response, body: wanted }),
    seen: JSON.stringify({ ...seen, body: got }),
  };
}

/** The cases that differ, each with both answers. */
export const differing = (verdicts: readonly Verdict[]): string[] =>
  verdicts.filter((v) => !v.whole).map((v) => `${v.id}\n  Cinder: ${v.recorded}\n  Tephra: ${v.seen}`);
