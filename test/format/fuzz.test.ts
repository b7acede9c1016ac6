import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import { parsers } from "../reliability/fuzz/parsers.ts";
import { fuzz } from "../reliability/fuzz/run-fuzz.ts";

/** Set TEPHRA_TEST_SEED to repeat a run; npm run fuzz does many more. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());

test.each(parsers)(`$name: no input crashes or hangs the parser (seed ${seed})`, async (parser) => {
  const report = await fuzz(parser, { seed, inputs: 1500 });
  expect(report.crash).toBeNull();
  expect(report.slowestMs).toBeLessThan(5000);
  expect(report.accepted).toBeGreaterThan(0);
});
