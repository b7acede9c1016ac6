import { defineConfig } from "vitest/config";
import { CountReporter } from "../../kit/count-reporter.ts";

/** OpenStack's own acceptance tests, kept apart from the rest because they bring Debian's packages and take minutes. */
export default defineConfig({
  test: {
    include: ["test/clients/tempest/*.suite.ts"],
    globalSetup: ["test/kit/global-setup.ts"],
    reporters: ["default", new CountReporter()],
    maxWorkers: 1,
    testTimeout: 1_800_000,
    hookTimeout: 900_000,
    teardownTimeout: 30_000,
  },
});
