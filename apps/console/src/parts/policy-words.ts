import type { Policy } from "@tephra/wire";

const keeps = [
  ["keep_last", "newest"],
  ["keep_hourly", "hourly"],
  ["keep_daily", "daily"],
  ["keep_weekly", "weekly"],
  ["keep_monthly", "monthly"],
  ["keep_yearly", "yearly"],
] as const;

/** `keeps 7 daily, 4 weekly; at least 1 good one`. */
export function retentionText(retention: Policy["retention"]): string {
  if (retention === null) return "keeps everything";
  const counts = keeps.flatMap(([key, word]) => (retention[key] ? [`${retention[key]} ${word}`] : []));
  const within = retention.keep_within ? [`all of the last ${retention.keep_within}`] : [];
  const kept = [...counts, ...within].join(", ") || "nothing by itself";
  return `keeps ${kept}; at least ${retention.min_good} good ${retention.min_good === 1 ? "one" : "ones"}`;
}

/** A policy in one sentence. */
export function policyText({ schedule, kind, retention, squash }: Policy): string {
  const full = "full_every" in kind ? `every ${kind.full_every}. backup full` : `full ones at ${kind.full_on}`;
  const squashed = squash ? `, chains squashed beyond ${squash.when_chain_longer_than}` : "";
  return `${schedule.cron} (${schedule.timezone}), ${full}, ${retentionText(retention)}${squashed}`;
}
