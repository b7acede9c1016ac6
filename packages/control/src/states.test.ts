import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Step } from "./rows/move.ts";
import { backupTransitions, originsOf, transitions, volumeTransitions } from "./states.ts";

describe.each(Object.entries(transitions))("the %s table", (_name, table) => {
  const statuses = Object.keys(table);
  /** A row that is in one of these is removed, now or after a while. */
  const isEnd = (status: string): boolean =>
    ["deleted", "succeeded", "failed", "removing"].includes(status) || status.startsWith("finished_");

  it("names only statuses that it has", () => {
    for (const targets of Object.values(table))
      for (const to of targets as readonly string[]) expect(statuses).toContain(to);
  });

  it("lets every status but an end go on, so that no row is stuck by the table", () => {
    // A deleted backup may be brought back, or removed.
    const mayGoOn = (from: string) => table === backupTransitions && from === "deleted";
    for (const [from, targets] of Object.entries(table)) {
      expect(targets.length > 0, from).toBe(!isEnd(from) || mayGoOn(from));
    }
  });

  it("reaches an end from every status, by some walk", () => {
    const next = table as Readonly<Record<string, readonly string[]>>;
    fc.assert(
      fc.property(fc.constantFrom(...statuses), (start) => {
        const seen = new Set([start]);
        for (const status of seen) for (const to of next[status] ?? []) seen.add(to);
        return [...seen].some(isEnd);
      }),
    );
  });
});

it("origins are the table read backwards", () => {
  expect(originsOf(backupTransitions, "restoring")).toEqual(["available"]);
  expect(originsOf(volumeTransitions, "deleting")).toEqual([
    "available",
    "error_extending",
    "error_managing",
    "error",
    "error_restoring",
    "error_deleting",
  ]);
});

it("a step that no table has does not compile, nor does one that only some of its targets may follow", () => {
  const steps: Step<"backup", "restoring" | "deleting">[] = [
    { from: "available", to: "restoring" },
    // @ts-expect-error what is in error may be deleted, and not restored
    { from: "error", to: "restoring" },
    // @ts-expect-error what is deleted is not deleted again
    { from: ["available", "deleted"], to: "deleting" },
  ];
  expect(steps).toHaveLength(3);
});
