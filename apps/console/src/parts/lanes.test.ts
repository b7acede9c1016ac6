import { expect, it } from "vitest";
import { foldsOf, lanesOf } from "./lanes.ts";

const member = (id: string, parent_id: string | null) => ({ id, parent_id });

it("draws a chain in one lane, and a branch in one of its own until it meets its parent", () => {
  const straight = [member("c", "b"), member("b", "a"), member("a", null)];
  expect(lanesOf(straight)).toEqual(straight.map(() => ({ lane: 0, passing: [] })));
  const branched = [member("e", "b"), member("d", "c"), member("c", "b"), member("b", "a"), member("a", null)];
  expect(lanesOf(branched)).toEqual([
    { lane: 0, passing: [] },
    { lane: 1, passing: [0] },
    { lane: 1, passing: [0] },
    { lane: 0, passing: [] },
    { lane: 0, passing: [] },
  ]);
});

it("folds what lies between, and nothing of a short chain", () => {
  expect(foldsOf([true, true, true, true], 8)).toEqual([]);
  const long = [false, ...Array.from({ length: 10 }, () => true), false, true, true, false];
  expect(foldsOf(long, 8)).toEqual([{ from: 2, count: 8 }]);
});
