import { defineConfig } from "vitest/config";
import { CountReporter } from "./test/harness/count-reporter.ts";

const engineTests = [
  "packages/{engine,format}/src/**/*.test.ts",
  "test/contract/**/*.test.ts",
  "test/format/**/*.test.ts",
];
// Suites of whole systems: several processes each, most of the time waiting for something.
const systemTests = ["test/system/**/*.test.ts", "test/fault/**/*.test.ts"];
// What sets up and starts this checkout: one file at a time.
const startTests = ["test/house/**/*.test.ts"];

export default defineConfig({
  test: {
    reporters: ["default", new CountReporter()],
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 120_000,
    teardownTimeout: 30_000,
    projects: [
      {
        extends: true,
        test: {
          name: "engine",
          include: [...engineTests, "test/round-trip.test.ts"],
          globalSetup: ["test/harness/build-setup.ts"],
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: "house",
          include: ["packages/control/src/**/*.test.ts", "apps/*/src/**/*.test.ts", "test/**/*.test.ts"],
          exclude: [...engineTests, ...systemTests, ...startTests, "test/round-trip.test.ts"],
          globalSetup: ["test/harness/global-setup.ts"],
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: "system",
          include: systemTests,
          globalSetup: ["test/harness/global-setup.ts"],
          testTimeout: 120_000,
          sequence: { groupOrder: 2 },
        },
      },
      {
        extends: true,
        test: {
          name: "start",
          include: startTests,
          globalSetup: ["test/harness/global-setup.ts"],
          maxWorkers: 1,
          testTimeout: 120_000,
          sequence: { groupOrder: 3 },
        },
      },
    ],
  },
});
