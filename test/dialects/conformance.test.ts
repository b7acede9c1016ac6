import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import { expect, it } from "vitest";
import { learnNames, messageOf, normalise, shapeOf, withoutContent } from "./conformance/compare.ts";
import { type Case, readCases, requestOf, send } from "./conformance/exchange.ts";
import { openStage, type Stage } from "./conformance/fixtures.ts";
import { interludes } from "./conformance/interludes.ts";

interface Difference {
  id: string;
  kind: "newer" | "defect" | "choice";
  section: string;
}

const beside = (path: string): string => readFileSync(new URL(path, import.meta.url), "utf8");
const differences = JSON.parse(beside("conformance/differences.json")) as Difference[];
const named = new Set(differences.map((difference) => difference.id));

/** Where an answer and the recorded one part. A text counts only where the recorded answer has one. */
interface Verdict {
  id: string;
  status: boolean;
  headers: boolean;
  shape: boolean;
  message: boolean | null;
  whole: boolean;
  recorded: string;
  seen: string;
}

/** What keeps an interlude from happening shows in the cases after it; the replay goes on. */
async function prepare(stage: Stage, recorded: Case): Promise<string[]> {
  try {
    for (const interlude of interludes[recorded.id] ?? []) await interlude(stage);
    return [];
  } catch (error) {
    return [`before ${recorded.id}: ${(error as Error).message}`];
  }
}

async function play(stage: Stage, recorded: Case): Promise<Verdict> {
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

const share = (part: readonly unknown[], all: readonly unknown[]): string => `${part.length} of ${all.length}`;

function report(counted: readonly Verdict[], texts: readonly Verdict[], all: number): string {
  const lines = counted.filter((v) => !v.whole).map((v) => `${v.id}\n  Cinder: ${v.recorded}\n  Tephra: ${v.seen}`);
  const kinds = (kind: string) => differences.filter((difference) => difference.kind === kind).length;
  return [
    ...lines,
    `${all} cases, of which ${kinds("newer")} differ as today's Cinder does, ${kinds("defect")} where Cinder is at fault, ${kinds("choice")} by choice`,
    `status ${share(
      counted.filter((v) => v.status),
      counted,
    )}, headers ${share(
      counted.filter((v) => v.headers),
      counted,
    )}`,
    `shape ${share(
      counted.filter((v) => v.shape),
      counted,
    )}, message ${share(
      texts.filter((v) => v.message),
      texts,
    )}`,
    `identical ${share(
      counted.filter((v) => v.whole),
      counted,
    )}`,
  ].join("\n");
}

it("answers recorded requests as a real Cinder did", { timeout: 300_000 }, async () => {
  await using stage = await openStage();
  const verdicts: Verdict[] = [];
  const problems: string[] = [];
  for (const recorded of readCases()) {
    problems.push(...(await prepare(stage, recorded)));
    verdicts.push(await play(stage, recorded));
  }

  const counted = verdicts.filter((verdict) => !named.has(verdict.id));
  const texts = counted.filter((verdict) => verdict.message !== null);
  process.stdout.write(`${[...problems, report(counted, texts, verdicts.length)].join("\n")}\n`);
  expect(counted.length).toBeGreaterThan(0);
});

it("names few differences by choice, and each has its section", () => {
  const sections = new Set(beside("../../docs/cinder-differences.md").match(/^## .+$/gm));
  for (const { id, section } of differences) expect([...sections], id).toContain(`## ${section}`);
  const choices = differences.filter((difference) => difference.kind === "choice");
  expect(choices.length / readCases().length).toBeLessThanOrEqual(0.03);
});
