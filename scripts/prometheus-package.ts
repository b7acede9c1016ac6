import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's Prometheus, unpacked (see unpackPackages) if it is not installed: its server, and `promtool`, which checks rules. */
export async function unpackPrometheus(say: (line: string) => void): Promise<{ server: string; promtool: string }> {
  await unpackPackages({ name: "prometheus", packages: ["prometheus"] }, say);
  return {
    server: packageFile("prometheus", "usr/bin/prometheus"),
    promtool: packageFile("prometheus", "usr/bin/promtool"),
  };
}
