// `tephra doctor`: checks against the real servers whether this machine, with this configuration, can do its part. It changes nothing
// except a small object and a job of its own, which it removes. Exit status 0: all is well, or there are only warnings; 1: something fails;
// 2: usage.
import { parseArgs } from "node:util";
import { type Config, ConfigError } from "@tephra/control";
import { loadConfig } from "@tephra/control/process";
import { type Finding, failed, reasonOf } from "./doctor/finding.ts";
import { checkBackend, checkMachine, checkRepository } from "./doctor/places.ts";
import { checkKeystone, checkPostgresql, checkRedis } from "./doctor/servers.ts";

const usage = "usage: tephra doctor [--quick] [--problems] [--json]\n";
const marks = { ok: "ok  ", warning: "warn", failed: "FAIL" } as const;
/** A check that has not finished by then is reported as failed: requests are being dropped somewhere. */
const checkMs = 90_000;

interface Options {
  quick: boolean;
  problems: boolean;
  json: boolean;
}

async function main(): Promise<number> {
  const options = parsedOptions();
  if (options === null) return 2;
  const findings = await examine(options.quick);
  const shown = options.problems ? findings.filter(({ state }) => state !== "ok") : findings;
  if (options.json) process.stdout.write(`${JSON.stringify({ findings: shown })}\n`);
  else for (const finding of shown) process.stdout.write(lineOf(finding));
  return findings.some(({ state }) => state === "failed") ? 1 : 0;
}

function parsedOptions(): Options | null {
  const flag = { type: "boolean", default: false } as const;
  try {
    return parseArgs({ options: { quick: flag, problems: flag, json: flag } }).values as Options;
  } catch (error) {
    process.stderr.write(`tephra: ${(error as Error).message}\n${usage}`);
    return null;
  }
}

async function examine(quick: boolean): Promise<Finding[]> {
  let config: Config;
  try {
    config = loadConfig();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return error.problems.map(({ key, problem }) =>
      failed("configuration", `${key}: ${problem}`, "See docs/configuration.md."),
    );
  }
  const checks: [subject: string, check: Promise<Finding[]>][] = [
    ["postgresql", checkPostgresql(config)],
    ["redis", checkRedis(config)],
    ...config.repositories.map((each): [string, Promise<Finding[]>] => [
      `repository ${each.name}`,
      checkRepository(each, quick),
    ]),
    ...config.volume_backends.map((each): [string, Promise<Finding[]>] => [
      `volume backend ${each.name}`,
      checkBackend(config, each),
    ]),
    ...(config.auth.mode === "keystone" && config.auth.keystone !== null
      ? [["keystone", checkKeystone(config.auth.keystone)] as [string, Promise<Finding[]>]]
      : []),
    ["hashing", Promise.resolve(checkMachine(config))],
  ];
  return (await Promise.all(checks.map(([subject, check]) => within(subject, check)))).flat();
}

async function within(subject: string, check: Promise<Finding[]>): Promise<Finding[]> {
  const late = Promise.withResolvers<Finding[]>();
  const timer = setTimeout(() => {
    late.resolve([
      failed(
        subject,
        `no response within ${checkMs / 1000} s`,
        "The server accepts connections or requests but does not answer.",
      ),
    ]);
  }, checkMs);
  try {
    return await Promise.race([check, late.promise]);
  } catch (error) {
    return [failed(subject, reasonOf(error), "This is unexpected. Please report it.")];
  } finally {
    clearTimeout(timer);
  }
}

function lineOf({ subject, state, found, remedy }: Finding): string {
  const advice = remedy === undefined ? "" : `\n      → ${remedy}`;
  // Messages of servers may contain anything: only printable characters go to the terminal.
  return `${marks[state]}  ${subject}: ${`${found}${advice}`.replace(/[^\P{C}\n]/gu, "?")}\n`;
}

process.exit(await main());
