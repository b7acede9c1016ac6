import { defineConfig } from "vitest/config";
import { CountReporter } from "./test/kit/count-reporter.ts";
import { patience } from "./test/kit/wait-for.ts";

const build = ["test/kit/build-setup.ts"];
const servers = ["test/kit/global-setup.ts"];
// Beside the sources, but of seconds each: whole engines at work, waits of programs.
const slow = "packages/engine/src/**/*.slow.test.ts";

/** From the smallest to whole systems; `npm test` runs them in this order. */
export default defineConfig({
  test: {
    reporters: ["default", new CountReporter()],
    maxWorkers: 2,
    testTimeout: 120_000 * patience,
    hookTimeout: 120_000 * patience,
    teardownTimeout: 30_000,
    // `expect.poll(…)`: for what becomes true by itself, as other limits against what never ends.
    expect: { poll: { timeout: 60_000 * patience, interval: 50 } },
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: ["{packages,apps}/*/src/**/*.test.ts"],
          exclude: [slow],
          globalSetup: build,
          isolate: false,
          sequence: { groupOrder: 0 },
        },
      },
      {
        // Repositories, volumes and hypervisors by their contracts, and the format: no PostgreSQL, no Redis.
        extends: true,
        test: {
          name: "contract",
          include: [slow, "test/contract/**/*.test.ts", "test/format/**/*.test.ts"],
          globalSetup: build,
          maxWorkers: 4, // They wait for disks and stores more than they compute.
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: "control",
          include: ["test/control/**/*.test.ts", "test/reliability/model/**/*.test.ts"],
          globalSetup: servers,
          sequence: { groupOrder: 2 },
        },
      },
      {
        extends: true,
        test: {
          name: "dialects",
          include: ["test/dialects/**/*.test.ts", "test/clients/*.test.ts"],
          globalSetup: servers,
          maxWorkers: 3,
          sequence: { groupOrder: 3 },
        },
      },
      {
        // Several processes each, which keep both cores busy: more files at once would not be faster.
        extends: true,
        test: {
          name: "system",
          include: ["test/system/**/*.test.ts", "test/reliability/fault/**/*.test.ts"],
          globalSetup: servers,
          sequence: { groupOrder: 4 },
        },
      },
      {
        // Browsers before whole systems.
        extends: true,
        test: {
          name: "console",
          include: ["test/console/**/*.test.ts"],
          globalSetup: [...servers, "test/kit/console-setup.ts"],
          maxWorkers: 1,
          sequence: { groupOrder: 5 },
        },
      },
      {
        // What sets up and starts this checkout: one file at a time.
        extends: true,
        test: {
          name: "install",
          include: ["test/install/**/*.test.ts"],
          globalSetup: servers,
          maxWorkers: 1,
          sequence: { groupOrder: 6 },
        },
      },
    ],
  },
});
