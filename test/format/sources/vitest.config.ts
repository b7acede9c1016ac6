import { defineConfig } from "vitest/config";
import { CountReporter } from "../../kit/count-reporter.ts";

/** Volumes in other storage, kept apart from the rest because they bring Debian's packages. */
export default defineConfig({
  test: {
    include: ["test/format/sources/*.suite.ts"],
    globalSetup: ["test/kit/build-setup.ts", "test/kit/global-setup.ts"],
    reporters: ["default", new CountReporter()],
    maxWorkers: 1,
    testTimeout: 300_000,
    hookTimeout: 900_000,
  },
});
