import type { Config } from "../config.ts";
import { InvalidError } from "../errors.ts";
import { isTimeZone } from "../limits/windows.ts";
import { type BackupKinds, durationMs, type RetentionRules, type Schedule, type SquashRules } from "./rules.ts";
import { hasFiveFields, nextTime, shortestGapMs } from "./schedule.ts";

/** What of a policy has to make sense together. */
export interface PolicyRules {
  schedule: Schedule;
  kind: BackupKinds;
  retention: RetentionRules | null;
  squash: SquashRules | null;
  repository: string | null;
}

interface Problem {
  key: string;
  problem: string;
}

/** A refusal in the form of that of a body that does not fit its schema. */
export const refusalOf = (problems: readonly Problem[]): InvalidError =>
  new InvalidError(
    "request",
    `Invalid input received: ${problems.map(({ key, problem }) => `${key}: ${problem}`).join("; ")}`,
  );

/** A schedule is looked through for this many of its times. */
const timesLookedThrough = 500;

/** Why an expression is none that is ever due; null when it is. */
function cronProblem(cron: string, timezone: string, now: Date): string | null {
  if (!hasFiveFields(cron)) return "has to have five fields: minute, hour, day of month, month, day of week";
  try {
    return nextTime({ cron, timezone }, now) === null ? "names a time that never comes" : null;
  } catch (error) {
    return `cannot be read: ${(error as Error).message.replace(/^CronPattern: /, "")}`;
  }
}

function scheduleProblems({ schedule, kind }: PolicyRules, now: Date): Problem[] {
  const { cron, timezone, window_minutes: windowMinutes, jitter_minutes: jitterMinutes } = schedule;
  if (!isTimeZone(timezone)) {
    return [{ key: "policy.schedule.timezone", problem: `there is no time zone ${JSON.stringify(timezone)}` }];
  }
  const problems: Problem[] = [];
  const unreadable = cronProblem(cron, timezone, now);
  if (unreadable !== null) problems.push({ key: "policy.schedule.cron", problem: unreadable });
  else {
    const gapMinutes = Math.floor(shortestGapMs({ cron, timezone }, now, timesLookedThrough) / 60_000);
    if (windowMinutes > gapMinutes) {
      const problem = `windows overlap: each is ${windowMinutes} minutes long, and runs are as little as ${gapMinutes} minutes apart`;
      problems.push({ key: "policy.schedule.window_minutes", problem });
    }
  }
  if (jitterMinutes > windowMinutes) {
    problems.push({ key: "policy.schedule.jitter_minutes", problem: "is longer than the window" });
  }
  const full = "full_on" in kind && kind.full_on !== undefined ? cronProblem(kind.full_on, timezone, now) : null;
  if (full !== null) problems.push({ key: "policy.kind.full_on", problem: full });
  return problems;
}

function retentionProblems(retention: RetentionRules): Problem[] {
  const { min_good: _, manual: _manual, deletion_delay_hours: _delay, keep_within: within, ...counts } = retention;
  if (within !== undefined && durationMs(within) === null) {
    return [{ key: "policy.retention.keep_within", problem: "is no number of hours, days or weeks" }];
  }
  const keeps = within !== undefined || Object.values(counts).some((count) => (count ?? 0) > 0);
  return keeps
    ? []
    : [{ key: "policy.retention", problem: "would keep nothing: at least one rule has to keep something" }];
}

/** @throws InvalidError that names every key that makes no sense, and why */
export function checkRules(config: Config, rules: PolicyRules, now: Date): void {
  const problems = scheduleProblems(rules, now);
  if (rules.retention) problems.push(...retentionProblems(rules.retention));
  const { repository } = rules;
  if (repository !== null && !config.repositories.some(({ name }) => name === repository)) {
    problems.push({ key: "policy.repository", problem: `there is no repository ${JSON.stringify(repository)}` });
  }
  if (problems.length > 0) throw refusalOf(problems);
}
