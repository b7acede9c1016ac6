import { describe, expect, it } from "vitest";
import { periodsOf } from "./periods.ts";
import { type RetainedBackup, type RetentionRules, retain } from "./retention.ts";

const dayMs = 86_400_000;
const now = new Date("2026-11-30T12:00:00Z");
const daysAgo = (days: number) => new Date(now.getTime() - days * dayMs);

const backup = (id: string, days: number, more: Partial<RetainedBackup> = {}): RetainedBackup => ({
  ...{ id, parentId: null, at: daysAgo(days), createdAt: daysAgo(days), state: "good", manual: false },
  ...{ held: false, inUse: false, neededElsewhere: false, foreign: false },
  ...more,
});

/** f ← i1 ← i2 …: a full backup and incrementals, one a day, the last of today. */
const chain = (length: number): RetainedBackup[] =>
  Array.from({ length }, (_, n) =>
    backup(n === 0 ? "f" : `i${n}`, length - 1 - n, { parentId: n === 0 ? null : n === 1 ? "f" : `i${n - 1}` }),
  );

const decide = (backups: readonly RetainedBackup[], rules: Partial<RetentionRules>, timeZone = "UTC") =>
  retain(backups, { periods: {}, minGood: 1, manual: false, squashLongerThan: null, ...rules }, { now, timeZone });

const kept = (backups: readonly RetainedBackup[], rules: Partial<RetentionRules>, timeZone = "UTC") =>
  Object.fromEntries(decide(backups, rules, timeZone).keep.map((k) => [k.id, k.rules]));

describe("rules", () => {
  it("each counts by itself, over periods that have a good backup", () => {
    const backups = [0, 0.1, 1, 3, 8, 40].map((days) => backup(`d${days}`, days));
    expect(kept(backups, { last: 1, periods: { daily: 3, monthly: 2 } })).toEqual({
      d0: ["keep_last", "keep_daily", "keep_monthly", "min_good", "newest"],
      d1: ["keep_daily"],
      d3: ["keep_daily"],
      d40: ["keep_monthly"],
    });
  });

  it("everything that is younger than keep_within stays, whatever its state", () => {
    const backups = [backup("a", 0), backup("failed", 1, { state: "failed" }), backup("b", 2), backup("c", 3)];
    expect(kept(backups, { withinMs: 2.5 * dayMs })).toMatchObject({ failed: ["keep_within"], b: ["keep_within"] });
    expect(decide(backups, { withinMs: 2.5 * dayMs }).go).toEqual([{ id: "c", reason: "no_rule" }]);
  });

  it("without any rule min_good backups are left", () => {
    const backups = chain(4).map((b) => ({ ...b, parentId: null }));
    expect(Object.keys(kept(backups, { minGood: 2 }))).toEqual(["i3", "i2"]);
    expect(Object.keys(kept(backups, { minGood: 0 }))).toEqual(["i3"]);
  });

  it("at equal times of the data the later created counts as newer, then the greater id", () => {
    const at = daysAgo(1);
    const backups = [backup("b", 1, { at }), backup("c", 1, { at }), backup("a", 0.5, { at })];
    expect(Object.keys(kept(backups, { last: 1 }))).toEqual(["a"]);
    expect(Object.keys(kept(backups, { last: 2 }))).toEqual(["a", "c"]);
  });
});

describe("what never goes", () => {
  it("failed and damaged backups use up nothing, and go once a newer one is good", () => {
    const backups = [
      backup("good", 1),
      backup("late", 0, { state: "failed" }),
      backup("early", 2, { state: "failed" }),
      backup("damaged", 3, { state: "damaged" }),
      backup("on", 2.5, { parentId: "damaged" }),
    ];
    const plan = decide(backups, { last: 1 });
    expect(plan.keep).toEqual([
      { id: "late", rules: ["no_newer_good"] },
      { id: "good", rules: ["keep_last", "min_good", "newest"] },
    ]);
    expect(plan.go).toEqual([
      { id: "on", reason: "parent_damaged" },
      { id: "early", reason: "failed" },
      { id: "damaged", reason: "damaged" },
    ]);
  });

  it("held, manual, used, unfinished ones, and what others need", () => {
    const backups = [
      backup("new", 0),
      backup("held", 9, { held: true }),
      backup("manual", 9, { manual: true }),
      backup("used", 9, { inUse: true }),
      backup("unfinished", 9, { state: "unfinished" }),
      backup("parent", 9, { neededElsewhere: true }),
    ];
    const plan = decide(backups, {});
    expect(plan.go).toEqual([]);
    expect(plan.keep.map((k) => k.rules.at(-1)).sort()).toEqual(
      ["newest", "held", "manual", "in_use", "unfinished", "needed_elsewhere"].sort(),
    );
    expect(decide(backups, { manual: true }).go).toEqual([{ id: "manual", reason: "no_rule" }]);
  });

  it("a backup from the future counts for no rule, and is not the newest", () => {
    const backups = [backup("future", -400), backup("today", 0), backup("before", 1)];
    expect(kept(backups, { last: 1 })).toEqual({ future: ["future"], today: ["keep_last", "min_good", "newest"] });
  });

  it("the parents of what is kept: told by whom, unless the chain is squashed", () => {
    const blocked = decide(chain(4), { last: 2 });
    expect(blocked.keep.map((k) => k.id)).toEqual(["i3", "i2"]);
    expect(blocked.blocked).toEqual([
      { id: "i1", because: ["i2"] },
      { id: "f", because: ["i2"] },
    ]);
    const squashed = decide(chain(4), { last: 2, squashLongerThan: 0 });
    expect(squashed).toMatchObject({ blocked: [], go: [], squash: [["f", "i1", "i2"]] });
    expect(decide(chain(4), { last: 2, squashLongerThan: 4 }).squash).toEqual([]);
    expect(decide(chain(5), { last: 2, squashLongerThan: 4 }).squash).toEqual([["f", "i1", "i2", "i3"]]);
  });

  it("nothing is merged past a branch, into damage, or beside what is hidden", () => {
    const beside = backup("x", 0.5, { parentId: "i1", held: true });
    expect(decide([...chain(4), beside], { last: 1, squashLongerThan: 0 })).toMatchObject({
      squash: [["f", "i1"]],
      blocked: [
        { id: "i2", because: ["i3"] },
        { id: "i1", because: ["i3", "x"] },
      ],
    });
    const hidden = { ...beside, state: "hidden" as const, parentId: "f" };
    expect(decide([...chain(4), hidden], { last: 1, squashLongerThan: 0 }).squash).toEqual([]);
    const broken = chain(3).map((b) => (b.id === "f" ? { ...b, state: "damaged" as const } : b));
    expect(decide(broken, { last: 1, squashLongerThan: 0 }).squash).toEqual([]);
  });

  it("a cycle of parents, which an import can forge, is decided like damage", () => {
    const backups = [backup("a", 3, { parentId: "b" }), backup("b", 2, { parentId: "a" }), backup("c", 0)];
    expect(decide(backups, { last: 1 }).go.map((g) => g.reason)).toEqual(["parent_damaged", "parent_damaged"]);
  });
});

describe("periods", () => {
  const of = (at: string, zone: string) => periodsOf(new Date(at), zone);

  it("are those of the time zone", () => {
    expect(of("2026-11-29T23:30:00Z", "Europe/Berlin").daily).toBe(of("2026-11-30T10:00:00Z", "Europe/Berlin").daily);
    expect(of("2026-11-29T23:30:00Z", "UTC").daily).not.toBe(of("2026-11-30T10:00:00Z", "UTC").daily);
    // Sunday evening in New York, Monday in UTC.
    expect(of("2026-11-30T03:00:00Z", "America/New_York").weekly).toBe(of("2026-11-23T12:00:00Z", "UTC").weekly);
    expect(of("2026-12-31T23:30:00Z", "Europe/Berlin").yearly).toBe("2027");
    expect(() => of("2026-12-31T23:30:00Z", "Mars/Olympus")).toThrow(RangeError);
  });

  it("an hour that a clock shows twice is two, one that it skips is none", () => {
    const berlin = (at: string) => of(at, "Europe/Berlin").hourly;
    expect(berlin("2026-10-25T00:30:00Z")).not.toBe(berlin("2026-10-25T01:30:00Z"));
    expect(of("2026-10-25T00:30:00Z", "Europe/Berlin").daily).toBe(of("2026-10-25T22:30:00Z", "Europe/Berlin").daily);
    const lordHowe = (at: string) => of(at, "Australia/Lord_Howe").hourly;
    expect(lordHowe("2026-04-04T14:45:00Z")).not.toBe(lordHowe("2026-04-04T15:00:00Z"));
  });

  it("backups before and after a change of the clocks are each of their own day", () => {
    const noons = ["2026-03-27T11:00:00Z", "2026-03-28T11:00:00Z", "2026-03-29T10:00:00Z", "2026-03-30T10:00:00Z"];
    const days = noons.map((at) => Number(of(at, "Europe/Berlin").daily));
    expect(days.map((day) => day - (days[0] ?? 0))).toEqual([0, 1, 2, 3]);
  });
});

it("a thousand backups of one chain are decided at once", () => {
  const rules = { last: 7, periods: { daily: 14, weekly: 8, monthly: 24 }, squashLongerThan: 20 };
  const backups = chain(1000);
  decide(backups, rules);
  const began = performance.now();
  const plan = decide(backups, rules);
  process.stderr.write(`retention of 1,000 backups: ${(performance.now() - began).toFixed(1)} ms\n`);
  expect(plan.squash).toHaveLength(1);
  expect(plan.blocked.length + plan.keep.length + (plan.squash[0]?.length ?? 0) - 1).toBe(1000);
});
