import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { type House, project } from "../demo/house.ts";
import type { Program } from "../scripts/spawn-program.ts";

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

/** A version 4 uuid that is the same for the same name. */
export function uuidOf(name: string): string {
  const hex = createHash("sha256").update(name).digest("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}
