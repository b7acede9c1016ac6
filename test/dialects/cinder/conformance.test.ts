import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { type Case, readCases } from "./conformance/exchange.ts";
import { openStage, type Stage } from "./conformance/fixtures.ts";
import { interludes } from "./conformance/interludes.ts";
import { differing, play, type Verdict } from "./conformance/play.ts";

interface Difference {
  id: string;
  kind: "newer" | "defect" | "choice";
  section: string;
}

const beside = (path: string): string => readFileSync(new URL(path, import.meta.url), "utf8");
const differences = JSON.parse(beside("conformance/differences.json")) as Difference[];
const named = new Set(differences.map((difference) => difference.id));

/** What keeps an interlude from happening shows in the cases after it; the replay goes on. */
async function prepare(stage: Stage, recorded: Case): Promise<string[]> {
  try {
    for (const interlude of interludes[recorded.id] ?? []) await interlude(stage);
    return [];
  } catch (error) {
    return [`before ${recorded.id}: ${(error as Error).message}`];
  }
}

const share = (part: readonly unknown[], all: readonly unknown[]): string => `${part.length} of ${all.length}`;

function report(counted: readonly Verdict[], texts: readonly Verdict[], all: number): string {
  const kinds = (kind: string) => differences.filter((difference) => difference.kind === kind).length;
  return [
    ...differing(counted),
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
  for (const recorded of readCases("cinder-zed")) {
    problems.push(...(await prepare(stage, recorded)));
    verdicts.push(await play(stage, recorded));
  }

  const counted = verdicts.filter((verdict) => !named.has(verdict.id));
  const texts = counted.filter((verdict) => verdict.message !== null);
  process.stdout.write(`${[...problems, report(counted, texts, verdicts.length)].join("\n")}\n`);
  expect(problems).toEqual([]);
  expect(counted.filter(({ status, headers, shape }) => !(status && headers && shape))).toEqual([]);
  expect(texts.filter(({ message }) => message).length / texts.length).toBeGreaterThanOrEqual(0.95);
  expect(counted.length).toBeGreaterThan(250);
});

it("names few differences by choice, and each has its section", () => {
  const sections = new Set(beside("../../../docs/cinder-differences.md").match(/^## .+$/gm));
  for (const { id, section } of differences) expect([...sections], id).toContain(`## ${section}`);
  const choices = differences.filter((difference) => difference.kind === "choice");
  expect(choices.length / readCases("cinder-zed").length).toBeLessThanOrEqual(0.03);
});
