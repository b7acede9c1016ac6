import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { keepAsRelease, measured, ratiosOf, readLastRelease } from "../../bench/measurement.ts";

const machine = { cores: 2, cpu: "one", memory_bytes: 1, node: "v1" };
const rate = (value: number) => measured("requests", [value], { unit: "per s", note: "at 8" });
const time = (value: number) => measured("hand-out", [value], { unit: "ms" });
const runOf = (results: ReturnType<typeof measured>[], more: object = {}) => ({
  ...{ date: "2026-12-01T10:00:00.000Z", machine, revision: "abc", results },
  ...more,
});

function emptyFile(): string {
  const dir = mkdtempSync(join(tmpdir(), "tephra-bench-"));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return join(dir, "last-release.json");
}

test("figures are held against those that were kept, of the same machine", () => {
  const file = emptyFile();
  expect(ratiosOf(runOf([rate(100)]), readLastRelease(file))).toEqual({ ratios: [""], sentence: "" });
  keepAsRelease(runOf([rate(100), time(8)]), file);
  // What another run did not measure stays, with the commit that it is of.
  keepAsRelease(runOf([rate(200)], { revision: "def", date: "2026-12-02T10:00:00.000Z" }), file);
  const now = runOf([rate(300), time(4), measured("new", [1], { unit: "ms" })]);
  expect(ratiosOf(now, readLastRelease(file))).toEqual({
    ratios: ["1.50 x", "0.50 x", ""],
    sentence: "The last release is def of 2026-12-02, abc of 2026-12-01.",
  });
  const other = runOf([rate(300)], { machine: { ...machine, cores: 4 } });
  expect(ratiosOf(other, readLastRelease(file))).toEqual({
    ratios: [""],
    sentence: "The last release was measured on another machine (2 cores of one).",
  });
  keepAsRelease(other, file);
  expect(ratiosOf(now, readLastRelease(file)).ratios).toEqual(["", "", ""]);
});

test.each([null, "abc-dirty"])("what was measured of sources that nobody has (%s) is not kept", (revision) => {
  const file = emptyFile();
  expect(() => keepAsRelease(runOf([rate(1)], { revision }), file)).toThrow("only what is committed can be kept");
  expect(readLastRelease(file).medians).toEqual({});
});

test("the figures that are kept with the sources are of commits", () => {
  const { machine: measuredOn, medians } = readLastRelease();
  expect(measuredOn?.cores).toBeGreaterThan(0);
  expect(Object.keys(medians).length).toBeGreaterThan(0);
  for (const [name, { value, revision, date }] of Object.entries(medians)) {
    expect(value, name).toBeGreaterThan(0);
    expect(revision, name).toMatch(/^[0-9a-f]{7,40}$/);
    expect(date, name).toMatch(/^\d{4}-\d\d-\d\d$/);
  }
});
