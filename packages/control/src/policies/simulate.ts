import { setImmediate } from "node:timers/promises";
import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import type { Principal } from "../principal.ts";
import { findPolicy, readClock } from "../rows/policies.ts";
import { checkRules, type PolicyRules, refusalOf } from "./check.ts";
import { readPolicy } from "./policies.ts";
import { decide } from "./retained.ts";
import type { KeepRule, RetainedBackup, RetentionPlan } from "./retention.ts";
import { nextTime } from "./schedule.ts";

export interface SimulationRequest {
  policyId?: string | undefined;
  /** Instead of those of the policy. */
  rules: Partial<Simulation["rules"]>;
  from?: Date | undefined;
  days: number;
  fullBytes: number;
  changeRate: number;
}

const unsaid: Omit<Simulation["rules"], "schedule"> = { kind: { full_every: 7 }, retention: null, squash: null };

/** @throws NotFoundError; InvalidError for rules that make no sense, and for more than ten thousand backups */
export async function simulatePolicy(
  database: Database,
  config: Config,
  principal: Principal,
  { policyId, rules: given, from, ...size }: SimulationRequest,
): Promise<SimulationResult> {
  const policy = policyId === undefined ? null : readPolicy(await findPolicy(database, principal, policyId));
  const { schedule, ...others } = { ...(policy ?? unsaid), ...given } as Partial<Simulation["rules"]> & typeof unsaid;
  if (schedule === undefined) throw refusalOf([{ key: "schedule", problem: "has to be given without policy_id" }]);
  const { kind, retention, squash } = others;
  const rules = { schedule, kind, retention, squash };
  const now = await readClock(database);
  checkRules(config, { ...rules, repository: null }, now);
  return simulate({ rules, from: from ?? now, ...size });
}

interface Simulation {
  rules: Pick<PolicyRules, "schedule" | "kind" | "retention" | "squash">;
  from: Date;
  days: number;
  /** What a full backup stores. */
  fullBytes: number;
  /** Share of the volume that is written in a day, from 0 to 1; what is written twice counts once. */
  changeRate: number;
}

interface SimulatedBackup extends RetainedBackup {
  bytes: number;
}

export interface SimulationResult {
  made: number;
  deleted: number;
  squashed: number;
  storedBytes: number;
  /** The most that was stored at any time. */
  peakBytes: number;
  backups: { at: Date; full: boolean; bytes: number; rules: KeepRule[] }[];
  /** At the end of every so many days. */
  series: { at: Date; backups: number; storedBytes: number }[];
}

const dayMs = 86_400_000;
const backupsMax = 10_000;
/** Others are served in between. */
const stepsAtOnce = 100;
const seriesPoints = 60;

/**
 * What becomes of one volume by the rules of a policy: every backup is made in time and is good, and what goes goes at once.
 *
 * @throws InvalidError for more than ten thousand backups
 */
async function simulate(simulation: Simulation): Promise<SimulationResult> {
  const { rules, from, days } = simulation;
  const end = new Date(from.getTime() + days * dayMs);
  const state: State = { backups: new Map(), lastAt: null };
  const result = { made: 0, deleted: 0, squashed: 0, peakBytes: 0, series: [] as SimulationResult["series"] };
  const pointMs = Math.max(dayMs, (days * dayMs) / seriesPoints);
  let plan: RetentionPlan | null = null;
  for (let at = nextTime(rules.schedule, from); at !== null && at <= end; at = nextTime(rules.schedule, at)) {
    if (result.made === backupsMax) {
      throw refusalOf([{ key: "days", problem: `more than ${backupsMax} backups would be made` }]);
    }
    makeBackup(state, simulation, at, result.made);
    result.made += 1;
    result.peakBytes = Math.max(result.peakBytes, storedBytes(state));
    plan = planOf(state, rules, at);
    apply(state, plan, result);
    const last = result.series.at(-1)?.at ?? from;
    if (at.getTime() - last.getTime() >= pointMs) {
      result.series.push({ at, backups: state.backups.size, storedBytes: storedBytes(state) });
    }
    if (result.made % stepsAtOnce === 0) await setImmediate();
  }
  const kept = new Map(plan?.keep.map(({ id, rules: of }) => [id, of]));
  const backups = Array.from(state.backups.values(), ({ id, at, parentId, bytes }) => {
    return { at, full: parentId === null, bytes, rules: kept.get(id) ?? [] };
  });
  return { ...result, storedBytes: storedBytes(state), backups };
}

interface State {
  backups: Map<string, SimulatedBackup>;
  lastAt: Date | null;
}

const storedBytes = ({ backups }: State): number => [...backups.values()].reduce((sum, { bytes }) => sum + bytes, 0);

function makeBackup(state: State, { rules, fullBytes, changeRate }: Simulation, at: Date, n: number): void {
  const last = [...state.backups.values()].at(-1);
  const full = last === undefined || isFullDue(state, last, rules, at);
  const days = state.lastAt === null ? 0 : (at.getTime() - state.lastAt.getTime()) / dayMs;
  const bytes = full ? fullBytes : Math.round(fullBytes * (1 - (1 - changeRate) ** days));
  const id = String(n).padStart(10, "0");
  state.backups.set(id, {
    ...{ id, parentId: full ? null : last.id, at, createdAt: at, state: "good", bytes },
    ...{ manual: false, held: false, inUse: false, neededElsewhere: false, foreign: false },
  });
  state.lastAt = at;
}

/** As the runs of a policy decide (work.ts), by the chain as it is. */
function isFullDue(
  { backups }: State,
  last: SimulatedBackup,
  { kind, schedule }: Simulation["rules"],
  at: Date,
): boolean {
  const chain = [last];
  for (let up = backups.get(last.parentId ?? ""); up !== undefined; up = backups.get(up.parentId ?? "")) chain.push(up);
  if ("full_every" in kind && kind.full_every !== undefined) return chain.length >= kind.full_every;
  const fullAt = chain.at(-1)?.at ?? at;
  if (!("full_on" in kind)) return true;
  const next = nextTime({ cron: kind.full_on, timezone: schedule.timezone }, fullAt);
  return next !== null && next <= at;
}

function planOf(
  { backups }: State,
  { retention, squash, schedule }: Simulation["rules"],
  at: Date,
): RetentionPlan | null {
  return retention && decide({ retention, squash, timezone: schedule.timezone }, [...backups.values()], at);
}

function apply(state: State, plan: RetentionPlan | null, result: { deleted: number; squashed: number }): void {
  for (const { id } of plan?.go ?? []) {
    state.backups.delete(id);
    result.deleted += 1;
  }
  for (const ids of plan?.squash ?? []) {
    const [full, target] = [state.backups.get(ids[0] ?? ""), state.backups.get(ids.at(-1) ?? "")];
    if (!full || !target) continue;
    state.backups.set(target.id, { ...target, parentId: null, bytes: full.bytes });
    for (const id of ids.slice(0, -1)) state.backups.delete(id);
    result.squashed += 1;
    result.deleted += ids.length - 1;
  }
}
