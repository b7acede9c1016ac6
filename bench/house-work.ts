import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Program } from "../scripts/spawn-program.ts";
import { type House, project } from "../test/kit/house.ts";

/** Linux's unit of time towards programs, USER_HZ. */
const ticksPerSecond = 100;

/** No limits: what is measured is how fast, not how much. */
export async function liftQuotas(house: House): Promise<void> {
  const quota_set = { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1 };
  await house.call("PUT", `/v3/${project}/os-quota-sets/${project}`, { quota_set });
}

/** Settles when the volume is available. */
export async function importVolume(house: House, path: string): Promise<string> {
  const body = { path, project_id: project };
  const { operation } = await house.call<{ operation: { id: string } }>("POST", "/ops/volumes/import", body);
  return (await house.finished({ id: operation.id })).volume_id ?? "";
}

/** Settles when the request is accepted. */
export async function requestBackup(house: House, volumeId: string): Promise<string> {
  const body = { backup: { volume_id: volumeId } };
  const { backup } = await house.call<{ backup: { id: string } }>("POST", `/v3/${project}/backups`, body);
  return backup.id;
}

/** Runs `work` once per item, `connections` at a time, and settles when all are done. */
export async function inParallel<T>(
  items: readonly T[],
  connections: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const left = items.values();
  const lane = async (): Promise<void> => {
    for (const item of left) await work(item);
  };
  await Promise.all(Array.from({ length: connections }, lane));
}

/** The most memory that the process ever had resident, in MiB. */
export function peakMib(program: Program): number {
  const kib = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${program.pid}/status`, "utf8"))?.[1];
  return Number(kib) / 1024;
}

/** Processor time of a process, in ticks: its own with all threads, and that of its children that have ended. Null: it has ended. */
function processorTicks(pid: number): { parent: number; own: number; ended: number } | null {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return null;
  }
  // The fields behind the name, which is in parentheses and may hold anything; user and system time are the 14th and 15th.
  const fields = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  const [, parent = 0, , , , , , , , , , user = 0, system = 0, endedUser = 0, endedSystem = 0] = fields;
  return { parent, own: user + system, ended: endedUser + endedSystem };
}

/** Processor seconds that the processes have used so far, all their threads together. */
export function cpuSeconds(programs: readonly Program[]): number {
  return programs.reduce((sum, { pid }) => sum + (processorTicks(pid)?.own ?? 0) / ticksPerSecond, 0);
}

/** A version 4 uuid that is the same for the same name. */
export function uuidOf(name: string): string {
  const hex = createHash("sha256").update(name).digest("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}

/** Of the database, so far. */
export async function countTransactions(house: House): Promise<number> {
  const [row] = await house.sql<{ n: number }>(
    "SELECT (xact_commit + xact_rollback)::float8 AS n FROM pg_stat_database WHERE datname = current_database()",
  );
  return row?.n ?? 0;
}

/** Processor seconds of the server and all its backends so far, those that have ended included. */
export async function postgresSeconds(house: House): Promise<number> {
  const [row] = await house.sql<{ path: string }>("SELECT current_setting('data_directory') AS path");
  const postmaster = Number(readFileSync(join(row?.path ?? "", "postmaster.pid"), "utf8").split("\n")[0]);
  let ticks = 0;
  for (const name of readdirSync("/proc").filter((entry) => /^\d+$/.test(entry))) {
    const used = processorTicks(Number(name));
    if (used === null) continue;
    if (Number(name) === postmaster) ticks += used.own + used.ended;
    else if (used.parent === postmaster) ticks += used.own;
  }
  return ticks / ticksPerSecond;
}
