import { setTimeout as sleep } from "node:timers/promises";
import type { Database } from "../db/database.ts";
import type { Logger } from "../telemetry/telemetry.ts";

/** Work that one process at a time does for the whole installation. */
export type Role = "dispatcher" | "notifier" | "reconciler";

/** How long a role is held after its last renewal, by PostgreSQL's clock. A role held for much longer was taken before that clock was set. */
const termMs = 2_000;
const farMs = 10 * termMs;
const renewMs = 500;
/** Without a renewal for this long, by its own monotonic clock, a holder acts no more: before anybody else can take the role. */
const fenceMs = 0.6 * termMs;
/** Waiting processes look again spread over this time for each of them, so that together they look equally often however many there are. */
const spreadMs = 25;
const retryMs = 1_000;
/** After a resignation others go first. */
const resignedMs = termMs + 500;

export interface Election {
  /** Whether this process holds the role, as far as it can know without asking. */
  holds(role: Role): boolean;
  /** When PostgreSQL last left a question of this election unanswered, by `performance.now()`. */
  troubledAt(): number;
  /** Does a piece of a role's work. While it takes longer than `limitMs`, another process has the role. */
  during(role: Role, limitMs: number, work: () => Promise<void>): Promise<void>;
  /** Hands the role to another process: this one cannot do the work at the moment. It comes forward again after a few seconds. */
  resign(role: Role): void;
  /** Called with every role won or lost. */
  onChange(listener: (role: Role, holds: boolean) => void): void;
  /** Gives up all roles. */
  stop(): Promise<void>;
}

interface Standing {
  role: Role;
  mine: boolean;
  /** Until the role is free; 0 or less: it is. */
  leftMs: number;
  members: number;
}

/**
 * Elects one process for each role by a row with a deadline, which the holder renews. Nothing depends on there being one holder only: a
 * process that is stopped for a moment may act beside its successor, and every statement of a role allows that.
 *
 * @param id names this process; `roles` those that it can fill
 */
export function joinElection(options: {
  database: Database;
  log: Logger;
  id: string;
  roles: readonly Role[];
}): Election {
  const { database, log, id, roles } = options;
  /** Role → until when it is held, by `performance.now()`. */
  const heldUntil = new Map<Role, number>();
  const pausedUntil = new Map<Role, number>();
  const listeners: ((role: Role, holds: boolean) => void)[] = [];
  const busy = new Map<Role, { since: number; limitMs: number }>();
  let troubledAt = Number.NEGATIVE_INFINITY;
  const stopping = new AbortController();

  const lose = (role: Role): void => {
    if (!heldUntil.delete(role)) return;
    log.info({ event: "election.lost", role }, "another process takes over");
    for (const listener of listeners) listener(role, false);
  };
  const win = (role: Role, until: number): void => {
    const isNew = !heldUntil.has(role);
    heldUntil.set(role, until);
    if (!isNew) return;
    log.info({ event: "election.won", role }, "this process takes over");
    for (const listener of listeners) listener(role, true);
  };

  const resign = (role: Role): void => {
    if (!heldUntil.has(role)) return;
    pausedUntil.set(role, performance.now() + resignedMs);
    lose(role);
    database.$executeRaw`UPDATE leaders SET held_until = now() WHERE role = ${role} AND holder = ${id}`.catch(() => {});
  };

  const look = async (): Promise<Standing[]> => database.$queryRaw<Standing[]>`
    SELECT r.role, coalesce(l.holder = ${id}, false) AS mine, coalesce(l.members, 0) AS members,
      CASE WHEN l.held_until > now() + ${farMs} * interval '1 millisecond' THEN 0
        ELSE coalesce(extract(epoch FROM l.held_until - now()) * 1000, 0) END::float8 AS "leftMs"
    FROM unnest(${[...roles]}::text[]) AS r(role) LEFT JOIN leaders l USING (role)`;

  /** Takes or renews roles, each unless somebody else holds it. Durability would only cost time: a lost renewal ends a term early. */
  const take = async (wanted: readonly Role[]): Promise<Role[]> => {
    const rows = await database.$queryRaw<{ role: Role }[]>`
      WITH taken AS (
        INSERT INTO leaders (role, holder, held_until, members)
        SELECT r, ${id}, now() + ${termMs} * interval '1 millisecond', (SELECT count(*) FROM workers)
        FROM unnest(${[...wanted]}::text[]) r
        ON CONFLICT (role) DO UPDATE SET holder = EXCLUDED.holder, held_until = EXCLUDED.held_until, members = EXCLUDED.members
        WHERE leaders.holder = EXCLUDED.holder OR leaders.held_until <= now()
          OR leaders.held_until > now() + ${farMs} * interval '1 millisecond'
        RETURNING role
      ) SELECT role, set_config('synchronous_commit', 'off', true) FROM taken`;
    return rows.map(({ role }) => role);
  };

  /** @returns in how many ms to do so again */
  const turn = async (): Promise<number> => {
    const askedAt = performance.now();
    for (const [role, until] of heldUntil) if (askedAt > until) lose(role);
    for (const [role, { since, limitMs }] of busy) if (askedAt - since > limitMs) resign(role);
    const standings = await look();
    const isFree = ({ mine, leftMs }: Standing): boolean => mine || leftMs <= 0;
    const open = (role: Role): boolean => askedAt >= (pausedUntil.get(role) ?? 0);
    const wanted = standings.filter((s) => isFree(s) && open(s.role)).map(({ role }) => role);
    const taken = wanted.length > 0 ? await take(wanted) : [];
    for (const role of roles) {
      if (taken.includes(role) && open(role)) win(role, askedAt + fenceMs);
      else lose(role);
    }
    if (heldUntil.size > 0) return renewMs;
    const leftMs = Math.min(...standings.map((s) => (isFree(s) ? renewMs : s.leftMs)));
    return leftMs + Math.random() * spreadMs * Math.max(1, ...standings.map(({ members }) => members));
  };

  const run = async (): Promise<void> => {
    while (!stopping.signal.aborted) {
      let waitMs = retryMs * (0.5 + Math.random());
      try {
        waitMs = await turn();
      } catch (error) {
        troubledAt = performance.now();
        log.debug({ err: error }, "no answer about who leads");
      }
      await sleep(waitMs, undefined, { signal: stopping.signal }).catch(() => {});
    }
  };
  const running = run();

  return {
    holds: (role) => performance.now() < (heldUntil.get(role) ?? 0),
    troubledAt: () => troubledAt,
    async during(role, limitMs, work) {
      busy.set(role, { since: performance.now(), limitMs });
      await work().finally(() => busy.delete(role));
    },
    resign,
    onChange: (listener) => void listeners.push(listener),
    async stop() {
      stopping.abort();
      await running;
      for (const role of roles) lose(role);
      await database.$executeRaw`UPDATE leaders SET held_until = now() WHERE holder = ${id} AND held_until > now()`.catch(
        () => {},
      );
    },
  };
}
