import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";

/** Cinder's names for services like ours: a worker process, and a volume backend that a host's workers can reach. */
export const backupBinary = "cinder-backup";
const volumeBinary = "cinder-volume";

export interface ServiceRow {
  binary: string;
  /** The worker's host; for a volume backend `host@backend`. */
  host: string;
  zone: string;
  disabled: boolean;
  disabledReason: string | null;
  /** Whether its heartbeat is recent enough. */
  up: boolean;
  updatedAt: Date;
}

interface WorkerRow {
  host: string;
  reaches: string[];
  up: boolean;
  heartbeat_at: Date;
}

interface DisabledRow {
  binary: string;
  host: string;
  reason: string | null;
  disabled_at: Date;
}

const namesOf = (reaches: readonly string[], kind: "repository" | "backend"): string[] =>
  reaches.filter((name) => name.startsWith(`${kind}:`)).map((name) => name.slice(kind.length + 1));

/** The zone of backups by this worker: that of the default repository if it can reach it, else of the first that it can. */
function backupZone(config: Config, reaches: readonly string[]): string {
  const reached = config.repositories.filter((r) => namesOf(reaches, "repository").includes(r.name));
  return (reached.find((r) => r.default) ?? reached[0])?.zone ?? config.availability_zone;
}

/** For each volume backend on each host, the most recent registration. */
function volumeServices(workers: readonly WorkerRow[]): WorkerRow[] {
  const found = new Map<string, WorkerRow>();
  for (const worker of workers) {
    for (const backend of namesOf(worker.reaches, "backend")) {
      const host = `${worker.host}@${backend}`;
      const known = found.get(host);
      if (!known || known.heartbeat_at < worker.heartbeat_at) found.set(host, { ...worker, host });
    }
  }
  return [...found.values()].sort((a, b) => (a.host < b.host ? -1 : 1));
}

/**
 * One row for each known worker process, live or silent for less than an hour, and one for each volume backend on each host. Workers that
 * shut down cleanly are not listed.
 */
export async function listServices(
  database: Database,
  config: Config,
  filter: { binary?: string | undefined; host?: string | undefined },
): Promise<ServiceRow[]> {
  const [workers, disabled] = await Promise.all([
    database.$queryRaw<WorkerRow[]>`
      SELECT host, reaches, heartbeat_at, ${isLiveWorker("workers", config.worker.down_ms)} AS up
      FROM workers ORDER BY host, started_at, id`,
    database.$queryRaw<DisabledRow[]>`SELECT * FROM disabled_services`,
  ]);
  const row = (binary: string, worker: WorkerRow, zone: string): ServiceRow => {
    const off = disabled.find((d) => d.binary === binary && d.host === worker.host);
    const changedLast = off && off.disabled_at > worker.heartbeat_at;
    return {
      binary,
      host: worker.host,
      zone,
      disabled: off !== undefined,
      disabledReason: off?.reason ?? null,
      up: worker.up,
      updatedAt: changedLast ? off.disabled_at : worker.heartbeat_at,
    };
  };
  const rows = [
    ...workers.map((worker) => row(backupBinary, worker, backupZone(config, worker.reaches))),
    ...volumeServices(workers).map((worker) => row(volumeBinary, worker, config.availability_zone)),
  ];
  // A host without a backend stands for all of its backends, as in Cinder.
  const isAsked = (host: string): boolean =>
    filter.host === undefined || [host, host.split("@")[0]].includes(filter.host);
  return rows.filter((r) => (filter.binary === undefined || r.binary === filter.binary) && isAsked(r.host));
}

/**
 * Disables or enables a service. A disabled worker finishes what it holds and takes no other task. Idempotent; omitting the reason keeps
 * the existing one.
 *
 * @returns false when no such service is known
 */
export async function setService(
  database: Database,
  config: Config,
  service: { binary: string; host: string; disabled: boolean; reason?: string | undefined },
): Promise<boolean> {
  const { binary, host, reason } = service;
  const known = await listServices(database, config, { binary });
  if (!known.some((row) => row.host === host)) return false;
  if (service.disabled) {
    await database.$executeRaw`
      INSERT INTO disabled_services ("binary", host, reason) VALUES (${binary}, ${host}, ${reason ?? null})
      ON CONFLICT ("binary", host) DO UPDATE SET reason = coalesce(EXCLUDED.reason, disabled_services.reason), disabled_at = now()`;
  } else {
    await database.$executeRaw`DELETE FROM disabled_services WHERE "binary" = ${binary} AND host = ${host}`;
  }
  return true;
}

/** Whether the workers of this host take no new tasks. */
export async function isHostDisabled(database: Database, host: string): Promise<boolean> {
  const rows =
    await database.$queryRaw`SELECT 1 FROM disabled_services WHERE "binary" = ${backupBinary} AND host = ${host}`;
  return (rows as unknown[]).length > 0;
}

export interface Zone {
  name: string;
  available: boolean;
}

/** Zones that volumes can be in; zones that only hold backups are not listed (cinder-api 9.2). */
export async function listZones(database: Database, config: Config): Promise<Zone[]> {
  const services = await listServices(database, config, { binary: volumeBinary });
  return [{ name: config.availability_zone, available: services.some((s) => !s.disabled) }];
}
