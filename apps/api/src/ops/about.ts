import type { AnswerOf } from "@tephra/wire";
import { versionMax, versionText } from "../openstack/microversions.ts";
import { version } from "../version.ts";
import { defineOps } from "./serve.ts";

export const about = {
  /** What answers here, and how it is configured, without secrets. */
  show: defineOps({
    handle: async ({ config }) => {
      const about = {
        as_of: new Date().toISOString(),
        versions: { tephra: version, node: process.versions.node, volume_api: versionText(versionMax) },
        host: config.hostName,
        config_file: config.configFile,
        settings: config.settings.map(({ isDefault, isHidden, ...setting }) => ({
          ...setting,
          is_default: isDefault,
          is_hidden: isHidden,
        })),
      };
      return { status: 200, body: { about } satisfies AnswerOf<"GET /ops/about"> };
    },
  }),
};
