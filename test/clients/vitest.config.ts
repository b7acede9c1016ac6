import { defineConfig } from "vitest/config";
import { CountReporter } from "../kit/count-reporter.ts";

/** Real clients against a real Tephra, kept apart from the rest because they bring Debian's packages. */
export default defineConfig({
  test: {
    include: ["test/clients/*.suite.ts"],
    globalSetup: ["test/kit/global-setup.ts"],
    reporters: ["default", new CountReporter()],
    maxWorkers: 1,
    testTimeout: 300_000,
    hookTimeout: 900_000,
    teardownTimeout: 30_000,
  },
});
