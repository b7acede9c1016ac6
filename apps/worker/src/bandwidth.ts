import { setTimeout as sleep } from "node:timers/promises";
import {
  type BandwidthLimit,
  burstSeconds,
  type ClaimedTask,
  type LimitKey,
  type Priority,
  priorities,
  rateAt,
  type TaskKind,
  type Traffic,
} from "@tephra/control/work";

/** What is paced: a task's bytes, as they are about to move. */
export interface Flow {
  traffic: Traffic;
  projectId: string;
  /** The backend's name, or the repository's; null where it is not known. */
  place: string | null;
  priority: Priority;
  signal: AbortSignal;
  /** Called now and then while bytes wait: a task that is held back does not hang. */
  onWait: () => void;
}

/** Reserves bytes of a limit; resolves to the ms until they may go, or null when the limit is gone. */
type Reserve = (key: LimitKey, asked: { bytes: number; rate: number; priority: Priority }) => Promise<number | null>;

/** What somebody waits for. */
const awaited: readonly TaskKind[] = ["plan-restore", "restore", "publish", "plan-backup", "copy", "seal"];

/** Restores, whose operations are of high priority, go before backups, and both before what nobody waits for, unless the operation has another priority than it usually has. */
export const priorityOf = ({ kind, operation: { priority } }: Pick<ClaimedTask, "kind" | "operation">): Priority =>
  priority === "normal" && !awaited.includes(kind) ? "low" : priority;

/** Bytes are reserved for this long at a time, so that small pieces do not ask PostgreSQL each. */
const quantumSeconds = 0.1;
/** The longest time without a look at whether a task still wants its bytes, or the limit has changed. */
const stepMs = 500;

/** One limit as this worker keeps to it: pieces of a priority go one after the other. */
class KeptLimit {
  readonly key: LimitKey;
  rate: number | null = null;
  readonly #newReserve: () => Reserve;
  #reserve: Reserve;
  readonly #purses = new Map<Priority, { bytes: number; last: Promise<void> }>();
  #changes = 0;

  constructor(key: LimitKey, newReserve: () => Reserve) {
    this.key = key;
    this.#newReserve = newReserve;
    this.#reserve = newReserve();
  }

  /** What waits begins to wait anew, by the new rate. */
  set(rate: number | null): void {
    if (rate === this.rate) return;
    this.rate = rate;
    this.#changes += 1;
    this.#purses.clear();
    this.#reserve = this.#newReserve();
  }

  /** Resolves when so many bytes may go. @throws the signal's reason */
  take(bytes: number, flow: Flow): Promise<void> {
    const purse = this.#purses.get(flow.priority) ?? { bytes: 0, last: Promise.resolve() };
    this.#purses.set(flow.priority, purse);
    const mine = purse.last.then(async () => {
      flow.signal.throwIfAborted();
      if (purse.bytes < bytes) purse.bytes += await this.#bring(bytes - purse.bytes, flow);
      purse.bytes -= bytes;
    });
    purse.last = mine.catch(() => {});
    return mine;
  }

  async #bring(missing: number, flow: Flow): Promise<number> {
    for (;;) {
      const [rate, changes] = [this.rate, this.#changes];
      if (rate === null) return missing;
      const bytes = Math.max(missing, Math.ceil(rate * quantumSeconds));
      // Without PostgreSQL nothing is let through; the task's lease ends soon.
      const waitMs = await this.#reserve(this.key, { bytes, rate, priority: flow.priority }).catch(() => undefined);
      if (waitMs === null) return bytes;
      const until = performance.now() + (waitMs ?? stepMs);
      while (performance.now() < until && changes === this.#changes) {
        await sleep(Math.min(stepMs, until - performance.now()), undefined, { signal: flow.signal });
        flow.onWait();
      }
      if (waitMs !== undefined && changes === this.#changes) return bytes;
    }
  }
}

/** The clocks of a worker's own limits; see reserveBandwidth(). */
function ownClocks(): Reserve {
  const clocks = new Map(priorities.map((priority) => [priority, 0]));
  return async (_, { bytes, rate, priority }) => {
    const now = performance.now() / 1000;
    for (const lower of priorities.slice(priorities.indexOf(priority))) {
      clocks.set(lower, Math.max(clocks.get(lower) ?? 0, now - burstSeconds) + bytes / rate);
    }
    return Math.max(0, ((clocks.get(priority) ?? 0) - now) * 1000);
  };
}

/** The limits that hold for one worker. */
export class Bandwidth {
  readonly #host: string;
  readonly #reserve: Reserve;
  #limits = new Map<string, KeptLimit>();

  constructor(options: { host: string; reserve: Reserve }) {
    this.#host = options.host;
    this.#reserve = options.reserve;
  }

  /** Takes note of what is set. `now`: the database's time. */
  update(limits: readonly BandwidthLimit[], now: Date): void {
    const kept = new Map<string, KeptLimit>();
    for (const limit of limits) {
      const { traffic, scope, name } = limit;
      if (scope === "worker" && name !== "*" && name !== this.#host) continue;
      const key = `${traffic}/${scope}/${name}`;
      const known = this.#limits.get(key) ?? this.#newLimit({ traffic, scope, name });
      known.set(rateAt(limit, now));
      kept.set(key, known);
    }
    for (const [key, gone] of this.#limits) if (!kept.has(key)) gone.set(null);
    this.#limits = kept;
  }

  #newLimit(key: LimitKey): KeptLimit {
    return new KeptLimit(key, key.scope === "worker" ? ownClocks : () => this.#reserve);
  }

  /** Whether anything limits such bytes now. */
  limits(flow: Pick<Flow, "traffic" | "projectId" | "place">): boolean {
    return this.#limits.size > 0 && this.#applying(flow).length > 0;
  }

  /** Resolves when so many bytes may move; null when nothing limits them. */
  pace(bytes: number, flow: Flow): Promise<void> | null {
    if (this.#limits.size === 0 || bytes <= 0) return null;
    const limits = this.#applying(flow);
    if (limits.length === 0) return null;
    return Promise.all(limits.map((limit) => limit.take(bytes, flow))).then(() => {});
  }

  #applying({ traffic, projectId, place }: Pick<Flow, "traffic" | "projectId" | "place">): KeptLimit[] {
    return [...this.#limits.values()].filter(({ key, rate }) => {
      if (rate === null || key.traffic !== traffic) return false;
      return key.scope === "worker" || key.name === (key.scope === "project" ? projectId : place);
    });
  }
}

/** How one task's bytes are paced: those of the volume that it reads, and those of each repository. */
export interface TaskPace {
  /** The backend that the task reads from, once it is known. */
  backend: string | null;
  volume(bytes: number): Promise<void> | null;
  repository(name: string): { limited(): boolean; pace(bytes: number): Promise<void> | null };
}

export function paceOf(
  bandwidth: Bandwidth,
  task: Pick<ClaimedTask, "kind" | "operation">,
  { signal, onWait }: Pick<Flow, "signal" | "onWait">,
): TaskPace {
  // Its priority may change while it runs.
  const flow = () => ({ projectId: task.operation.projectId, priority: priorityOf(task), signal, onWait });
  const pace: TaskPace = {
    backend: null,
    volume: (bytes) => bandwidth.pace(bytes, { ...flow(), traffic: "volumes", place: pace.backend }),
    repository: (name) => {
      const own = (): Flow => ({ ...flow(), traffic: "repositories", place: name });
      return { limited: () => bandwidth.limits(own()), pace: (bytes) => bandwidth.pace(bytes, own()) };
    },
  };
  return pace;
}
