import { defineConfig } from "vitest/config";
import { CountReporter } from "../../kit/count-reporter.ts";

/** Suites beside a real Cinder, kept apart from the rest because they bring Debian's packages. */
export default defineConfig({
  test: {
    include: ["test/format/interop/*.suite.ts"],
    globalSetup: ["test/kit/build-setup.ts", "test/kit/global-setup.ts"],
    reporters: ["default", new CountReporter()],
    maxWorkers: 1,
    testTimeout: 300_000,
    hookTimeout: 900_000,
  },
});
