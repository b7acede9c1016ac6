import type { RetainedBackup, RetentionPlan, RetentionRules } from "../../packages/control/src/policies/retention.ts";

/**
 * The rules of docs/policies.md once more, to compare with: by sorted keys and groups instead of a walk over all, chains from the full backup
 * up instead of down, Sweden's dates, and ISO weeks by their Thursday. Trusts that no chain has a cycle.
 */
export function retainByReference(
  backups: readonly RetainedBackup[],
  rules: RetentionRules,
  now: Date,
  timeZone: string,
): RetentionPlan {
  const byId = new Map(backups.map((b) => [b.id, b]));
  const byParent = groupBy(backups, (b) => b.parentId ?? "");
  const sound = memo((b: RetainedBackup): boolean => {
    if (b.state !== "good") return false;
    if (b.parentId === null) return true;
    const parent = byId.get(b.parentId);
    return parent !== undefined && sound(parent);
  });
  const key = memo((b: RetainedBackup) => `${pad(b.at)} ${pad(b.createdAt)} ${b.id}`);
  const top = (of: readonly RetainedBackup[], n: number) =>
    new Set(of.toSorted((a, b) => (key(a) < key(b) ? 1 : -1)).slice(0, n));
  const decided = backups.filter((b) => b.state !== "hidden" && !b.foreign);
  const past = decided.filter((b) => sound(b) && !(b.at > now));
  const counted = past.filter((b) => !b.manual || rules.manual);
  const lasts = top(counted, rules.last ?? 0);
  const goods = top(counted, Math.max(rules.minGood, 1));
  const [newest] = top(past, 1);
  const ofPeriods = Object.entries(rules.periods).map(([period, count]) => {
    const groups = groupBy(counted, (b) => calendar(b.at, timeZone)[period] ?? "");
    const newestOfEach = [...groups.values()].map((group) => [...top(group, 1)][0] as RetainedBackup);
    return [period, top(newestOfEach, count)] as const;
  });
  const rulesOf = memo((b: RetainedBackup): string[] => {
    const of = ofPeriods.filter(([, kept]) => kept.has(b)).map(([period]) => `keep_${period}`);
    if (lasts.has(b)) of.push("keep_last");
    if (goods.has(b)) of.push("min_good");
    if (rules.withinMs !== undefined && !(b.at > now) && now.getTime() - b.at.getTime() < rules.withinMs)
      of.push("keep_within");
    if (b === newest) of.push("newest");
    if (!sound(b) && (newest === undefined || key(newest) < key(b))) of.push("no_newer_good");
    if (b.at > now) of.push("future");
    if (b.held) of.push("held");
    if (b.manual && !rules.manual) of.push("manual");
    if (b.inUse) of.push("in_use");
    if (b.state === "unfinished") of.push("unfinished");
    if (b.neededElsewhere) of.push("needed_elsewhere");
    return of;
  });
  const isOurs = (b: RetainedBackup) => b.state !== "hidden" && !b.foreign;
  const isKept = (b: RetainedBackup) => isOurs(b) && rulesOf(b).length > 0;
  const below = (b: RetainedBackup): RetainedBackup[] => byParent.get(b.id) ?? [];
  /** The nearest kept ones that build on it. */
  const because = memo((b: RetainedBackup): string[] => below(b).flatMap((c) => (isKept(c) ? [c.id] : because(c))));
  const stays = (b: RetainedBackup) => isKept(b) || because(b).length > 0 || b.state === "hidden";
  const height = memo((b: RetainedBackup): number => 1 + Math.max(0, ...below(b).filter(stays).map(height)));
  const squash: string[][] = [];
  for (const full of backups) {
    if (rules.squashLongerThan === null || full.parentId !== null || because(full).length === 0) continue;
    const merge = (b: RetainedBackup): RetainedBackup[] => {
      const up = below(b).filter(stays);
      return isKept(b) || up.length !== 1 ? [b] : [b, ...merge(up[0] as RetainedBackup)];
    };
    const members = merge(full);
    const target = members[members.length - 1] as RetainedBackup;
    const lasting = rulesOf(target).filter((r) => !["in_use", "unfinished", "no_newer_good", "future"].includes(r));
    const fits = !isKept(target) || lasting.length > 0;
    const ours = members.every(isOurs) && members.every(sound);
    if (members.length > 1 && ours && fits && height(full) > rules.squashLongerThan)
      squash.push(members.map((b) => b.id));
  }
  const merged = new Set(squash.flatMap((ids) => ids.slice(0, -1)));
  const others = decided.filter((b) => !isKept(b) && !merged.has(b.id));
  return {
    keep: decided.filter(isKept).map((b) => ({ id: b.id, rules: rulesOf(b) })),
    go: others.filter((b) => because(b).length === 0).map((b) => ({ id: b.id, reason: reason(b, sound(b)) })),
    squash,
    blocked: others.filter((b) => because(b).length > 0).map((b) => ({ id: b.id, because: because(b) })),
  } as RetentionPlan;
}

function reason(b: RetainedBackup, isSound: boolean): string {
  if (b.state !== "good") return b.state;
  return isSound ? "no_rule" : "parent_damaged";
}

const pad = (at: Date) => String(at.getTime()).padStart(16, "0");

function groupBy<T>(of: readonly T[], name: (one: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const one of of) {
    const group = groups.get(name(one)) ?? [];
    groups.set(name(one), group);
    group.push(one);
  }
  return groups;
}

function memo<A extends object, R>(ask: (of: A) => R): (of: A) => R {
  const known = new Map<A, R>();
  return (of) => {
    if (!known.has(of)) known.set(of, ask(of));
    return known.get(of) as R;
  };
}

const clocks = new Map<string, Intl.DateTimeFormat>();
const calendars = new Map<string, Record<string, string>>();

function calendar(at: Date, timeZone: string): Record<string, string> {
  const key = `${timeZone} ${at.getTime()}`;
  const known = calendars.get(key);
  if (known !== undefined) return known;
  if (calendars.size > 100_000) calendars.clear();
  const clock =
    clocks.get(timeZone) ?? new Intl.DateTimeFormat("sv-SE", { timeZone, dateStyle: "short", timeStyle: "medium" });
  clocks.set(timeZone, clock);
  const [day = "", time = ""] = clock.format(at).split(" ");
  const offset = Date.parse(`${day}T${time}Z`) - Math.floor(at.getTime() / 1000) * 1000;
  const names = {
    hourly: `${day} ${time.slice(0, 2)} ${offset}`,
    daily: day,
    weekly: isoWeek(day),
    monthly: day.slice(0, 7),
    yearly: day.slice(0, 4),
  };
  calendars.set(key, names);
  return names;
}

/** `2026-W53`: the week has the year of its Thursday. */
function isoWeek(day: string): string {
  const thursday = new Date(`${day}T00:00:00Z`);
  thursday.setUTCDate(thursday.getUTCDate() + 4 - (thursday.getUTCDay() || 7));
  const first = Date.UTC(thursday.getUTCFullYear(), 0, 1);
  return `${thursday.getUTCFullYear()}-W${Math.ceil(((thursday.getTime() - first) / 86_400_000 + 1) / 7)}`;
}
