import { defineConfig } from "vitest/config";
import { CountReporter } from "../harness/count-reporter.ts";

/** Suites beside a real Cinder, kept apart from the rest because they bring Debian's packages. */
export default defineConfig({
  test: {
    include: ["test/interop/*.suite.ts"],
    globalSetup: ["test/harness/build-setup.ts", "test/harness/global-setup.ts"],
    reporters: ["default", new CountReporter()],
    maxWorkers: 1,
    testTimeout: 300_000,
    hookTimeout: 900_000,
  },
});
