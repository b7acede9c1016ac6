import { spawn } from "node:child_process";
import { join } from "node:path";
import { z } from "zod";
import { provideCinder } from "../../../scripts/cinder-package.ts";
import { systemPython } from "../../../scripts/debian-packages.ts";

/** A backup as Cinder's database knows it. */
export interface CinderRecord {
  id: string;
  volume_id: string;
  parent_id: string | null;
  container: string | null;
  service_metadata: string | null;
  /** In GiB. */
  size: number;
}

export type CinderStep =
  | { do: "backup"; volume: string; compression: string; backup: CinderRecord }
  | { do: "restore"; id: string; target: string }
  | { do: "delete"; id: string }
  | { do: "import"; url: string };

/** The driver of a real Cinder, and its options. */
export interface CinderDriver {
  driver: string;
  settings: Record<string, string | number | boolean>;
}

/** Of all steps of one call. */
const stepsTimeoutMs = 280_000;

const answers = z.array(z.record(z.string(), z.unknown()));
export const completed = z.object({
  id: z.string(),
  volume_id: z.string(),
  parent_id: z.string().nullable(),
  container: z.string(),
  service_metadata: z.string(),
  size: z.number(),
  object_count: z.number(),
  backup_url: z.string(),
});

let provided: Promise<Record<string, string>> | null = null;

/** What `systemPython` needs to find a real Cinder, which is fetched when it is not there. Once per process. */
export function cinderEnvironment(): Promise<Record<string, string>> {
  provided ??= provideCinder((line) => process.stderr.write(`${line}\n`));
  return provided;
}

/** Runs steps with a real Cinder's driver, one after another in one process. Throws when a step fails. */
export async function runCinder(
  driver: CinderDriver,
  work: { known: readonly CinderRecord[]; steps: readonly CinderStep[] },
): Promise<Record<string, unknown>[]> {
  const environment = await cinderEnvironment();
  const child = spawn(systemPython, ["-W", "ignore", join(import.meta.dirname, "cinder_driver.py")], {
    stdio: ["pipe", "pipe", "pipe"],
    // Every server is on this machine, where no proxy leads.
    env: { ...process.env, ...environment, no_proxy: "*" },
    timeout: stepsTimeoutMs,
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr = (stderr + chunk.toString()).slice(-10_000);
  });
  child.stdin.end(JSON.stringify({ ...driver, ...work }));
  await new Promise((resolve, reject) => child.on("error", reject).on("close", resolve));
  if (stdout === "") throw new Error(`Cinder's driver gave no answer:\n${stderr}`);
  const done = answers.parse(JSON.parse(stdout));
  for (const answer of done) if (typeof answer["error"] === "string") throw new Error(`Cinder: ${answer["error"]}`);
  return done;
}
