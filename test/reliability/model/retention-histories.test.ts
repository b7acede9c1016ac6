import { randomBytes } from "node:crypto";
import { expect, it } from "vitest";
import { periods } from "../../../packages/control/src/policies/periods.ts";
import {
  type RetainedBackup,
  type RetentionPlan,
  type RetentionRules,
  retain,
} from "../../../packages/control/src/policies/retention.ts";
import { times } from "../../kit/long.ts";
import { type Random, randomFrom } from "../../kit/random.ts";
import { retainByReference } from "../../kit/retention-reference.ts";

/** Set TEPHRA_TEST_SEED to repeat a run. */
const firstSeed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(3).readUIntLE(0, 3));
const histories = times({ usual: 3, long: 1000 });

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;
const begin = Date.UTC(2025, 0, 1);
const zones = ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"];

const oneOf = <T>(random: Random, values: readonly T[]): T => values[random(values.length)] as T;
type Changing<T> = { -readonly [K in keyof T]: T[K] };
type Kept = Changing<RetainedBackup> & { heldUntil: number };

/** A volume whose backups are made, fail, are held, damaged and deleted, by a clock that is changed now and then. */
class History {
  readonly backups = new Map<string, Kept>();
  readonly rules: RetentionRules;
  readonly timeZone: string;
  runs = 0;
  gone = 0;
  squashed = 0;
  blocked = 0;
  readonly #random: Random;
  readonly #everyMs: number[];
  readonly #fullEvery: number;
  readonly #deletionDelayMs: number;
  readonly #hiddenUntil = new Map<string, number>();
  /** Real time, and what the service takes for it. */
  #real = begin;
  #clockOffMs = 0;
  #made = 0;

  constructor(seed: number) {
    const random = randomFrom(seed);
    this.#random = random;
    this.#everyMs = oneOf(random, [[hourMs], [dayMs], [hourMs, 6 * hourMs, dayMs, 3 * dayMs]]);
    this.#fullEvery = oneOf(random, [1, 7, 30, 60]);
    this.#deletionDelayMs = oneOf(random, [0, 0, 3 * dayMs]);
    this.timeZone = oneOf(random, zones);
    const some = (below: number) => (random(3) === 0 ? {} : { n: random(below) });
    const counts: Partial<Record<(typeof periods)[number], number>> = {};
    for (const period of periods) {
      const { n } = some(period === "hourly" ? 30 : 14);
      if (n !== undefined) counts[period] = n;
    }
    const { n: last } = some(6);
    const { n: withinDays } = some(8);
    this.rules = {
      ...(last === undefined ? {} : { last }),
      ...(withinDays === undefined ? {} : { withinMs: withinDays * dayMs }),
      periods: counts,
      minGood: 1 + random(3),
      manual: random(4) === 0,
      squashLongerThan: oneOf(random, [null, 0, 0, 10, 40]),
    };
  }

  get now(): Date {
    return new Date(this.#real + this.#clockOffMs);
  }

  live(): Kept[] {
    return [...this.backups.values()].filter((b) => b.state !== "hidden");
  }

  isSound(backup: Kept | undefined): boolean {
    for (let at = backup; at !== undefined; at = this.backups.get(at.parentId)) {
      if (at.state !== "good") return false;
      if (at.parentId === null) return true;
    }
    return false;
  }

  /** The newest that is made last, and sound. */
  lastSound(): Kept | undefined {
    return [...this.backups.values()].findLast((b) => b.state === "good" && this.isSound(b));
  }

  /** Three years; a run of retention now and then. */
  play(): void {
    const random = this.#random;
    const end = begin + 3 * 365 * dayMs;
    let nextRun = begin;
    while (this.#real < end) {
      this.#real += oneOf(random, this.#everyMs) + (random(10) === 0 ? random(hourMs) : 0);
      this.#changeClock();
      this.#make();
      if (random(40) === 0) this.#disturb();
      if (this.#real < nextRun) continue;
      nextRun = this.#real + (1 + random(this.#everyMs[0] === dayMs ? 20 : 6)) * dayMs;
      this.#letGo();
      this.run();
    }
  }

  #changeClock(): void {
    const random = this.#random;
    if (random(300) === 0) this.#clockOffMs = oneOf(random, [-26 * hourMs, -hourMs, hourMs, 40 * dayMs]);
    else if (random(30) === 0) this.#clockOffMs = 0;
  }

  #make(): void {
    const random = this.#random;
    this.#made += 1;
    // Time stands still for some.
    const at = random(50) === 0 ? ([...this.backups.values()].at(-1)?.at ?? this.now) : this.now;
    const branch = random(60) === 0 ? oneOf(random, [...this.backups.values(), undefined]) : undefined;
    const parent = branch?.state === "good" && this.isSound(branch) ? branch : this.lastSound();
    const full = parent === undefined || this.#made % this.#fullEvery === 0;
    const id = `${String(random(1 << 30)).padStart(10, "0")}-${String(this.#made).padStart(25, "0")}`;
    this.backups.set(id, {
      id,
      parentId: full ? null : parent.id,
      at,
      createdAt: this.now,
      state: oneOf(random, ["good", "good", "good", "good", "good", "good", "good", "good", "good", "failed"]),
      manual: random(60) === 0,
      held: false,
      heldUntil: 0,
      inUse: false,
      neededElsewhere: false,
      foreign: false,
    });
  }

  #disturb(): void {
    const random = this.#random;
    const live = this.live();
    if (live.length === 0) return;
    const backup = oneOf(random, live);
    switch (random(6)) {
      case 0:
        backup.heldUntil = this.now.getTime() + random(90) * dayMs;
        break;
      case 1:
        if (backup.state === "good") backup.state = "damaged";
        break;
      case 2:
        if (backup.state === "damaged") backup.state = "good";
        break;
      case 3:
        backup.neededElsewhere = random(3) === 0;
        break;
      default:
        // What is being made has nothing on it yet.
        if (![...this.backups.values()].some((b) => b.parentId === backup.id)) backup.state = "unfinished";
    }
  }

  /** Whatever passes by itself: what was in use, holds, what was being made, what was hidden. */
  #letGo(): void {
    const random = this.#random;
    for (const backup of this.backups.values()) {
      backup.inUse = backup.state !== "hidden" && random(60) === 0;
      backup.held = backup.heldUntil > this.now.getTime();
      if (backup.state === "unfinished" && random(2) === 0) backup.state = oneOf(random, ["good", "failed"]);
      // What would stay for ever keeps whole chains: it ends after two months, or there would soon be thousands.
      if (backup.createdAt.getTime() > this.#real - 60 * dayMs) continue;
      backup.manual = false;
      backup.neededElsewhere = false;
    }
    this.#removeHidden();
  }

  #removeHidden(): void {
    for (const [id, until] of this.#hiddenUntil) {
      if (until > this.#real) continue;
      this.#hiddenUntil.delete(id);
      this.#remove(id);
    }
  }

  run(): RetentionPlan {
    this.runs += 1;
    const all = this.#shuffled();
    const plan = retain(all, this.rules, { now: this.now, timeZone: this.timeZone });
    const reference = retainByReference(all, this.rules, this.now, this.timeZone);
    const [got, wanted] = [comparable(plan), comparable(reference)];
    // `expect` is slow when asked 100,000 times.
    if (JSON.stringify(got) !== JSON.stringify(wanted)) expect(got).toEqual(wanted);
    this.#apply(plan);
    return plan;
  }

  #shuffled(): Kept[] {
    const all = [...this.backups.values()];
    const turn = this.#random(all.length + 1);
    return [...all.slice(turn), ...all.slice(0, turn)];
  }

  #apply(plan: RetentionPlan): void {
    const decided = plan.keep.length + plan.go.length + plan.blocked.length;
    must(decided + plan.squash.reduce((sum, ids) => sum + ids.length - 1, 0) === this.live().length, "each once");
    const before = this.lastSound() !== undefined;
    for (const { id } of plan.go) {
      const backup = this.backups.get(id);
      must(backup !== undefined && !backup.held && !backup.inUse && !backup.neededElsewhere, "what stays stays");
      this.gone += 1;
      if (this.#deletionDelayMs === 0) this.#remove(id);
      else this.#hide(backup as Kept);
    }
    for (const ids of plan.squash) this.#squash(ids);
    this.blocked += plan.blocked.length;
    must(!before || this.lastSound() !== undefined, "a good backup is left");
  }

  #hide(backup: Kept): void {
    const below = [...this.backups.values()].some((b) => b.parentId === backup.id && b.state !== "hidden");
    must(!below, "nothing is hidden below what is there");
    backup.state = "hidden";
    this.#hiddenUntil.set(backup.id, this.#real + this.#deletionDelayMs);
  }

  #remove(id: string): void {
    must(![...this.backups.values()].some((b) => b.parentId === id), "nothing is removed below what is there");
    const before = this.lastSound() !== undefined;
    this.backups.delete(id);
    must(!before || this.lastSound() !== undefined, "a good backup is left at every moment");
  }

  #squash(ids: readonly string[]): void {
    const [full, target] = [this.backups.get(ids[0] ?? ""), this.backups.get(ids.at(-1) ?? "")];
    must(full?.parentId === null && target !== undefined && this.isSound(target), "a whole chain is merged");
    const merged = ids.slice(0, -1);
    const beside = [...this.backups.values()].filter((b) => merged.includes(b.parentId ?? "") && !ids.includes(b.id));
    // What goes by the same plan may be brought back for a while: a later run merges.
    if (beside.some((b) => b.state === "hidden" && this.#hiddenUntil.has(b.id) && this.#deletionDelayMs > 0)) return;
    must(beside.length === 0, "nothing else builds on what is merged");
    for (const [n, id] of ids.slice(1).entries()) must(this.backups.get(id)?.parentId === ids[n], "it is one chain");
    (target as Kept).parentId = null;
    for (const id of merged.reverse()) this.#remove(id);
    this.squashed += 1;
  }
}

function must(holds: boolean, what: string): void {
  if (!holds) throw new Error(`violated: ${what}`);
}

/** In one order, but the order of `go`, which #apply follows. */
function comparable(plan: RetentionPlan): Record<string, string[]> {
  return {
    keep: plan.keep.map(({ id, rules }) => `${id} ${rules.toSorted()}`).sort(),
    go: plan.go.map(({ id, reason }) => `${id} ${reason}`).sort(),
    squash: plan.squash.map(String).sort(),
    blocked: plan.blocked.map(({ id, because }) => `${id} ${because.toSorted()}`).sort(),
  };
}

it(`${histories} random histories of three years are decided as by an independent reference, seed ${firstSeed}`, {
  timeout: 3_600_000,
}, () => {
  const sums = { runs: 0, gone: 0, squashed: 0, blocked: 0 };
  for (let seed = firstSeed; seed < firstSeed + histories; seed++) {
    const history = new History(seed);
    try {
      history.play();
    } catch (cause) {
      throw new Error(`seed ${seed}: ${JSON.stringify(history.rules)}, ${history.timeZone}`, { cause });
    }
    for (const key of ["runs", "gone", "squashed", "blocked"] as const) sums[key] += history[key];
  }
  process.stderr.write(`retention: ${histories} histories, ${JSON.stringify(sums)}, 0 differences\n`);
});
