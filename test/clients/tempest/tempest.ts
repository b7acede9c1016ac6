import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { systemPython } from "../../../scripts/debian-packages.ts";
import { spawnProgram } from "../../../scripts/spawn-program.ts";
import { unpackTempest } from "../../../scripts/tempest-package.ts";
import type { IdentityServer } from "../../kit/keystone.ts";

const outcome = z.object({ test: z.string(), outcome: z.enum(["passed", "skipped", "failed"]), why: z.string() });
/** How one test ended; of a class that was skipped or failed as a whole `test` is the class. */
export type Outcome = z.infer<typeof outcome>;

/** Modules of `tempest.api.volume`, and those of their tests that are not run. */
export interface Choice {
  modules: readonly string[];
  leftOut: readonly string[];
}

/**
 * Runs tests of Debian's tempest against the volume service of a Keystone's catalog.
 *
 * @throws when tempest itself fails
 */
export async function runTempest(place: { keystone: IdentityServer; dir: string }, choice: Choice): Promise<Outcome[]> {
  const packages = await unpackTempest((line) => process.stderr.write(`${line}\n`));
  const dir = join(place.dir, "tempest");
  mkdirSync(join(dir, "locks"), { recursive: true });
  writeFileSync(join(dir, "tempest.conf"), configuration(place.keystone, dir));
  const outcomes: Outcome[] = [];
  const program = await spawnProgram({
    name: "tempest",
    command: systemPython,
    args: ["-W", "ignore", join(import.meta.dirname, "run_tempest.py"), JSON.stringify(choice)],
    env: { PATH: process.env["PATH"], HOME: dir, TEMPEST_CONFIG_DIR: dir, no_proxy: "*", ...packages },
    cwd: dir,
    onLine: (line) => {
      if (line.startsWith("{")) outcomes.push(outcome.parse(JSON.parse(line)));
    },
  });
  const { code } = await program.exited;
  if (code !== 0) throw new Error(`tempest ended with ${code}:\n${program.tail()}`);
  return outcomes;
}

/** Users and projects are made as they are needed, by the admin of Keystone. There is no Nova, Glance, Neutron and no Swift. */
const configuration = ({ url, user, password, project, region }: IdentityServer, dir: string): string => `[DEFAULT]
log_file = ${dir}/tempest.log
use_stderr = false
[oslo_concurrency]
lock_path = ${dir}/locks
[auth]
use_dynamic_credentials = true
create_isolated_networks = false
admin_username = ${user}
admin_password = ${password}
admin_project_name = ${project}
admin_domain_name = Default
[identity]
auth_version = v3
uri_v3 = ${url}/v3
region = ${region}
v3_endpoint_type = public
[service_available]
cinder = true
nova = false
glance = false
neutron = false
swift = false
[volume]
catalog_type = volumev3
region = ${region}
min_microversion = 3.0
max_microversion = latest
build_interval = 1
build_timeout = 60
[volume-feature-enabled]
backup = true
snapshot = true
clone = true
`;
