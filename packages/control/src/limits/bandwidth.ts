import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import { NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { type Priority, priorities } from "../priorities.ts";
import { checkWindows, type LimitWindow, openWindow, refusal } from "./windows.ts";

/** What is limited: how fast volumes are read for backups, or how fast bytes go into repositories and come from them. */
export const traffics = ["volumes", "repositories"] as const;
export type Traffic = (typeof traffics)[number];

/** By whom a limit is shared. A worker has one for itself; all others are shared by all workers. */
const scopes = {
  volumes: ["worker", "project", "backend"],
  repositories: ["worker", "project", "repository"],
} as const satisfies Record<Traffic, readonly string[]>;
export type LimitScope = (typeof scopes)[Traffic][number];

export interface LimitKey {
  traffic: Traffic;
  scope: LimitScope;
  /** Of the host, project, backend or repository; `*`: each worker for itself. */
  name: string;
}

export interface BandwidthLimit extends LimitKey {
  /** Outside of all windows; null: no limit. */
  bytesPerSecond: number | null;
  windows: LimitWindow[];
}

export interface BandwidthLimitRow extends BandwidthLimit {
  changedBy: string;
  changedAt: Date;
}

/** Names are case-sensitive. @throws InvalidError when there can be nothing of that name */
export function limitKeyOf(config: Config, given: { traffic: string; scope: string; name: string }): LimitKey {
  const { name } = given;
  const traffic = traffics.find((known) => known === given.traffic);
  if (traffic === undefined) throw refusal("traffic", `is none of ${traffics.join(", ")}`);
  const scope = scopes[traffic].find((known) => known === given.scope);
  if (scope === undefined) throw refusal("scope", `of ${traffic} is none of ${scopes[traffic].join(", ")}`);
  const known =
    scope === "backend"
      ? config.volume_backends.some((backend) => backend.name === name)
      : scope === "repository"
        ? config.repositories.some((repository) => repository.name === name)
        : scope === "worker"
          ? name === "*" || /^[\w.-]{1,255}$/.test(name)
          : /^[\w.-]{1,255}$/.test(name);
  if (!known) throw refusal("name", `there is no ${scope} ${JSON.stringify(name)}`);
  return { traffic, scope, name };
}

interface LimitRow extends Omit<BandwidthLimitRow, "bytesPerSecond"> {
  bytesPerSecond: bigint | number | null;
}

const limitOf = (row: LimitRow): BandwidthLimitRow => ({
  ...row,
  bytesPerSecond: row.bytesPerSecond === null ? null : Number(row.bytesPerSecond),
});

/** All of them, and the database's time. */
export async function listBandwidthLimits(database: Database): Promise<{ limits: BandwidthLimitRow[]; now: Date }> {
  const rows = await database.$queryRaw<LimitRow[]>`
    SELECT traffic, scope, name, bytes_per_second AS "bytesPerSecond", windows, changed_by AS "changedBy", changed_at AS "changedAt"
    FROM bandwidth_limits ORDER BY traffic, scope, name`;
  const [clock] = await database.$queryRaw<{ now: Date }[]>`SELECT now() AS now`;
  return { limits: rows.map(limitOf), now: clock?.now ?? new Date() };
}

/** Sets a limit, or changes it: workers know with their next heartbeat. @throws InvalidError */
export async function setBandwidthLimit(
  database: Database,
  principal: Principal,
  key: LimitKey,
  { bytesPerSecond, windows }: Pick<BandwidthLimit, "bytesPerSecond" | "windows">,
): Promise<BandwidthLimitRow> {
  if (bytesPerSecond === null && windows.every((window) => window.bytes_per_second === null))
    throw refusal("bytes_per_second", "nothing would be limited at any time");
  checkWindows(windows);
  const [row] = await database.$queryRaw<LimitRow[]>`
    INSERT INTO bandwidth_limits (traffic, scope, name, bytes_per_second, windows, changed_by)
    VALUES (${key.traffic}, ${key.scope}, ${key.name}, ${bytesPerSecond}::bigint, ${JSON.stringify(windows)}::jsonb, ${principal.userId})
    ON CONFLICT (traffic, scope, name) DO UPDATE SET bytes_per_second = EXCLUDED.bytes_per_second, windows = EXCLUDED.windows,
      changed_by = EXCLUDED.changed_by, changed_at = now()
    RETURNING traffic, scope, name, bytes_per_second AS "bytesPerSecond", windows, changed_by AS "changedBy", changed_at AS "changedAt"`;
  if (!row) throw new Error("PostgreSQL returned no row");
  return limitOf(row);
}

/** @throws NotFoundError */
export async function removeBandwidthLimit(database: Database, key: LimitKey): Promise<void> {
  const removed = await database.$executeRaw`
    DELETE FROM bandwidth_limits WHERE traffic = ${key.traffic} AND scope = ${key.scope} AND name = ${key.name}`;
  if (removed === 0) throw new NotFoundError("Limit", `${key.traffic}/${key.scope}/${key.name}`);
}

/** How many bytes a second a limit allows at a time; null: any number. */
export function rateAt(
  { bytesPerSecond, windows }: Pick<BandwidthLimit, "bytesPerSecond" | "windows">,
  at: Date,
): number | null {
  const open = openWindow(windows, at);
  return open === undefined ? bytesPerSecond : open.bytes_per_second;
}

/** Time that was not used can be made up for, up to this many seconds. */
export const burstSeconds = 0.3;

/**
 * Reserves bytes of a limit that workers share, and tells in how many ms they may go. Each priority has a clock, which its bytes and those
 * of the higher ones move: whoever is lower waits for what is higher, and not the other way round. A rate that has changed starts the
 * clocks anew. Returns null when the limit is gone.
 */
export async function reserveBandwidth(
  database: Database,
  key: LimitKey,
  { bytes, rate, priority }: { bytes: number; rate: number; priority: Priority },
): Promise<number | null> {
  const first = priorities.indexOf(priority) + 1;
  const [row] = await database.$queryRaw<{ waitMs: number }[]>`
    UPDATE bandwidth_limits SET paced_rate = ${rate}::bigint, clocks = (
      SELECT array_agg(CASE WHEN n < ${first}::int THEN begun ELSE GREATEST(begun, moment - ${burstSeconds}::float8) + ${bytes}::float8 / ${rate}::float8 END
        ORDER BY n)
      FROM (SELECT extract(epoch FROM clock_timestamp())::float8 AS moment) c, unnest(clocks) WITH ORDINALITY AS u(clock, n),
        LATERAL (SELECT CASE WHEN paced_rate IS DISTINCT FROM ${rate}::bigint THEN moment ELSE clock END AS begun) b)
    WHERE traffic = ${key.traffic} AND scope = ${key.scope} AND name = ${key.name}
    RETURNING GREATEST(0, (clocks[${first}::int] - extract(epoch FROM clock_timestamp())::float8) * 1000)::float8 AS "waitMs"`;
  return row?.waitMs ?? null;
}
