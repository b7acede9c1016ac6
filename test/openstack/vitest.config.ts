import { defineConfig } from "vitest/config";
import { CountReporter } from "../kit/count-reporter.ts";

/** Beside a real Keystone and a real Cinder, which Debian's packages bring. */
export default defineConfig({
  test: {
    include: ["test/openstack/*.suite.ts"],
    globalSetup: ["test/kit/build-setup.ts", "test/kit/global-setup.ts"],
    reporters: ["default", new CountReporter()],
    maxWorkers: 1,
    testTimeout: 300_000,
    hookTimeout: 900_000,
  },
});
