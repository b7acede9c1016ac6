import { type Period, periods, periodsOf } from "./periods.ts";

/** How many periods of each kind have a backup kept. Absent: the rule keeps nothing. */
export type PeriodRules = { readonly [P in Period]?: number };

/** What is kept of a volume's backups (docs/policies.md, Retention). */
export interface RetentionRules {
  /** The newest good backups. */
  readonly last?: number;
  /** The newest good backup of each of the last n periods that have one, in the policy's time zone. */
  readonly periods: PeriodRules;
  /** Everything that is younger. */
  readonly withinMs?: number;
  /** Good backups that are always left, at least 1. */
  readonly minGood: number;
  /** Whether backups that nobody's policy made count and may go. */
  readonly manual: boolean;
  /** Chains with more members than this are squashed where a member is only kept by what builds on it; null: never. */
  readonly squashLongerThan: number | null;
}

/**
 * - `good`: can be restored as far as its own objects go
 * - `damaged`, `failed`: count for nothing
 * - `unfinished`: is being made
 * - `hidden`: deleted, and can be brought back: nothing is decided about it, but its ancestors cannot be merged away
 */
export type RetainedState = "good" | "damaged" | "failed" | "unfinished" | "hidden";

/** A live backup, as far as retention asks. */
export interface RetainedBackup {
  readonly id: string;
  readonly parentId: string | null;
  /** Of its data. */
  readonly at: Date;
  readonly createdAt: Date;
  readonly state: RetainedState;
  /** No policy made it. */
  readonly manual: boolean;
  /** Somebody holds it now. */
  readonly held: boolean;
  /** A restore, a verification, a transfer or a squash reads or writes it now. */
  readonly inUse: boolean;
  /** Live backups of other volumes or projects build on it. */
  readonly neededElsewhere: boolean;
  /** Of another volume: it is here because backups of this one build on it, and nothing is decided about it. */
  readonly foreign: boolean;
}

/** Why a backup is kept, apart from what builds on it. */
export type KeepRule =
  | "keep_last"
  | `keep_${Period}`
  | "keep_within"
  | "min_good"
  | "newest"
  | "no_newer_good"
  | "held"
  | "manual"
  | "in_use"
  | "unfinished"
  | "future"
  | "needed_elsewhere";

export type GoReason = "no_rule" | "failed" | "damaged" | "parent_damaged";

/** Every backup that is neither hidden nor foreign is in exactly one of the lists, or merged away by one of `squash`. */
export interface RetentionPlan {
  keep: { id: string; rules: KeepRule[] }[];
  /** In an order in which they can be deleted: what builds on a backup goes before it. */
  go: { id: string; reason: GoReason }[];
  /** Members of a chain from the full one on: all become one full backup with the id of the last. */
  squash: string[][];
  /** No rule keeps them, but kept backups build on them: the nearest of those. */
  blocked: { id: string; because: string[] }[];
}

/** These pass by themselves: nothing is merged into a backup that only they keep. */
const passing: ReadonlySet<KeepRule> = new Set(["in_use", "unfinished", "no_newer_good", "future"]);

/**
 * Decides about the backups of one volume. Pure: the same for a preview, a run and a simulation.
 *
 * As in restic, each rule counts by itself, so that one backup may be kept by several; a period without a good backup is not counted. The
 * time of the data decides, then that of creation, then the id. A backup that is dated in the future counts for no rule, and stays until
 * that time has come.
 */
export function retain(
  backups: readonly RetainedBackup[],
  rules: RetentionRules,
  { now, timeZone }: { now: Date; timeZone: string },
): RetentionPlan {
  const tree = treeOf(backups);
  const ours = [...tree.byId.values()].filter((b) => b.state !== "hidden" && !b.foreign).sort(newestFirst);
  const keepers = new Map<string, KeepRule[]>();
  const keep = (backup: RetainedBackup, rule: KeepRule) => {
    const rulesOfIt = keepers.get(backup.id);
    if (rulesOfIt === undefined) keepers.set(backup.id, [rule]);
    else rulesOfIt.push(rule);
  };
  keepByRules(ours, rules, { now, timeZone, sound: tree.sound, keep });
  keepWhatMustStay(ours, rules, { now, sound: tree.sound, keep });
  const needed = neededBy(tree, keepers);
  const squash = squashes(tree, { keepers, needed, longerThan: rules.squashLongerThan });
  const merged = new Set(squash.flatMap((ids) => ids.slice(0, -1)));
  const plan: RetentionPlan = { keep: [], go: [], squash, blocked: [] };
  for (const backup of ours) {
    const because = needed.get(backup.id);
    const kept = keepers.get(backup.id);
    if (kept !== undefined) plan.keep.push({ id: backup.id, rules: kept });
    else if (merged.has(backup.id)) continue;
    else if (because !== undefined) plan.blocked.push({ id: backup.id, because: [...because] });
    else plan.go.push({ id: backup.id, reason: goReason(backup, tree.sound) });
  }
  const depths = depthsOf(tree);
  plan.go.sort((a, b) => (depths.get(b.id) ?? 0) - (depths.get(a.id) ?? 0));
  return plan;
}

const newestFirst = (a: RetainedBackup, b: RetainedBackup) =>
  b.at.getTime() - a.at.getTime() || b.createdAt.getTime() - a.createdAt.getTime() || (a.id < b.id ? 1 : -1);

interface Tree {
  byId: Map<string, RetainedBackup>;
  children: Map<string, RetainedBackup[]>;
  /** Good, and so is everything that it builds on. */
  sound: Set<string>;
}

function treeOf(backups: readonly RetainedBackup[]): Tree {
  const byId = new Map(backups.map((backup) => [backup.id, backup]));
  const children = new Map<string, RetainedBackup[]>();
  const sound = new Set<string>();
  const ready: RetainedBackup[] = [];
  for (const backup of byId.values()) {
    if (backup.parentId === null) ready.push(backup);
    else children.set(backup.parentId, [...(children.get(backup.parentId) ?? []), backup]);
  }
  // From the full ones on: what lies in a cycle or builds on a backup that is not there is never reached.
  for (let backup = ready.pop(); backup !== undefined; backup = ready.pop()) {
    if (backup.state !== "good") continue;
    sound.add(backup.id);
    ready.push(...(children.get(backup.id) ?? []));
  }
  return { byId, children, sound };
}

interface Keeping {
  now: Date;
  sound: ReadonlySet<string>;
  keep: (backup: RetainedBackup, rule: KeepRule) => void;
}

function keepByRules(
  ours: readonly RetainedBackup[],
  rules: RetentionRules,
  { now, timeZone, sound, keep }: Keeping & { timeZone: string },
): void {
  const counted = ours.filter((b) => sound.has(b.id) && b.at <= now && (rules.manual || !b.manual));
  for (const backup of counted.slice(0, rules.last ?? 0)) keep(backup, "keep_last");
  const wanted = periods.filter((period) => (rules.periods[period] ?? 0) > 0);
  const seen = new Map(wanted.map((period) => [period, new Set<string>()]));
  for (const backup of seen.size === 0 ? [] : counted) {
    const names = periodsOf(backup.at, timeZone);
    for (const [period, some] of seen) {
      if (some.size === rules.periods[period] || some.has(names[period])) continue;
      some.add(names[period]);
      keep(backup, `keep_${period}`);
    }
  }
  for (const backup of counted.slice(0, Math.max(1, rules.minGood))) keep(backup, "min_good");
}

function keepWhatMustStay(ours: readonly RetainedBackup[], rules: RetentionRules, { now, sound, keep }: Keeping): void {
  const since = now.getTime() - (rules.withinMs ?? 0);
  const newest = ours.find((b) => sound.has(b.id) && b.at <= now);
  for (const backup of ours) {
    if (rules.withinMs !== undefined && backup.at <= now && backup.at.getTime() > since) keep(backup, "keep_within");
    if (backup === newest) keep(backup, "newest");
    // What is not good goes when something better is there.
    if (!sound.has(backup.id) && (newest === undefined || newestFirst(newest, backup) > 0))
      keep(backup, "no_newer_good");
    if (backup.at > now) keep(backup, "future");
    if (backup.held) keep(backup, "held");
    if (backup.manual && !rules.manual) keep(backup, "manual");
    if (backup.inUse) keep(backup, "in_use");
    if (backup.state === "unfinished") keep(backup, "unfinished");
    if (backup.neededElsewhere) keep(backup, "needed_elsewhere");
  }
}

/** Which backups kept ones build on, each with the nearest kept ones. */
function neededBy({ byId }: Tree, keepers: ReadonlyMap<string, KeepRule[]>): Map<string, Set<string>> {
  const needed = new Map<string, Set<string>>();
  for (const id of keepers.keys()) {
    const walked = new Set([id]);
    let parent = byId.get(byId.get(id)?.parentId ?? "");
    while (parent !== undefined && !walked.has(parent.id)) {
      walked.add(parent.id);
      const because = needed.get(parent.id);
      if (because === undefined) needed.set(parent.id, new Set([id]));
      else because.add(id);
      // What a kept one builds on is its own matter.
      if (keepers.has(parent.id)) break;
      parent = byId.get(parent.parentId ?? "");
    }
  }
  return needed;
}

/**
 * From each full backup that only its descendants keep, up to the first member that is kept, or that several remaining backups build on.
 * What goes anyway does not hinder: it goes first. What is hidden does, until it is gone.
 */
function squashes(
  { byId, children, sound }: Tree,
  {
    keepers,
    needed,
    longerThan,
  }: { keepers: ReadonlyMap<string, KeepRule[]>; needed: ReadonlyMap<string, unknown>; longerThan: number | null },
): string[][] {
  if (longerThan === null) return [];
  const remaining = (id: string) =>
    (children.get(id) ?? []).filter((b) => keepers.has(b.id) || needed.has(b.id) || b.state === "hidden");
  const groups: string[][] = [];
  for (const full of byId.values()) {
    if (full.parentId !== null || !needed.has(full.id)) continue;
    const members = [full];
    for (let last: RetainedBackup | undefined = full; last !== undefined && !keepers.has(last.id); ) {
      const next = remaining(last.id);
      last = next.length === 1 ? next[0] : undefined;
      if (last !== undefined) members.push(last);
    }
    const target = members.at(-1);
    if (members.length < 2 || target === undefined || !sound.has(target.id)) continue;
    if (members.some((b) => b.state === "hidden" || b.foreign)) continue;
    if (keepers.get(target.id)?.every((rule) => passing.has(rule)) === true) continue;
    if (longest(full.id, remaining) <= longerThan) continue;
    groups.push(members.map((b) => b.id));
  }
  return groups;
}

/** Members of the longest chain that begins with a full backup. */
function longest(full: string, childrenOf: (id: string) => readonly RetainedBackup[]): number {
  let deepest = 0;
  const open = [{ id: full, depth: 1 }];
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    deepest = Math.max(deepest, at.depth);
    for (const child of childrenOf(at.id)) open.push({ id: child.id, depth: at.depth + 1 });
  }
  return deepest;
}

function goReason(backup: RetainedBackup, sound: ReadonlySet<string>): GoReason {
  if (backup.state === "failed" || backup.state === "damaged") return backup.state;
  return sound.has(backup.id) ? "no_rule" : "parent_damaged";
}

/** How many backups each builds on, as far as they are there. A cycle has no beginning: its members are counted from any of them. */
function depthsOf({ byId }: Tree): Map<string, number> {
  const depths = new Map<string, number>();
  for (const backup of byId.values()) {
    const path: string[] = [];
    let at: RetainedBackup | undefined = backup;
    while (at !== undefined && !depths.has(at.id) && !path.includes(at.id)) {
      path.push(at.id);
      at = byId.get(at.parentId ?? "");
    }
    let depth = at === undefined ? 0 : (depths.get(at.id) ?? 0) + 1;
    for (const id of path.reverse()) depths.set(id, depth++);
  }
  return depths;
}
