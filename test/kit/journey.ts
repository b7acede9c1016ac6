import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import type { Instance } from "./instance.ts";
import { HopelessError } from "./wait-for.ts";

const MiB = 1024 * 1024;
export const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;

export { randomBytesOf } from "./bytes.ts";

export interface Island {
  offset: number;
  data: Buffer;
}

/** Creates a sparse file of `sizeBytes` with islands of data, or writes islands into an existing file. */
export async function writeIslands(path: string, sizeBytes: number | null, islands: readonly Island[]): Promise<void> {
  const file = await open(path, sizeBytes === null ? "r+" : "w+");
  try {
    if (sizeBytes !== null) await file.truncate(sizeBytes);
    for (const { offset, data } of islands) await file.write(data, 0, data.length, offset);
    await file.sync();
  } finally {
    await file.close();
  }
}

export async function sha256Of(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 4 * MiB })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/**
 * A user's operations on an instance, with an assertion on every response. Takes and returns ids. `patienceMs`: timeout of each
 * operation.
 */
export function journeyOn(instance: Instance, { patienceMs = 60_000 } = {}) {
  const get = async (path: string) => {
    const reply = await instance.request("GET", path);
    expect(reply.status, `${path}: ${reply.text}`).toBe(200);
    return reply.body;
  };
  const accepted = async (method: string, path: string, body?: unknown) => {
    const reply = await instance.request(method, path, body);
    expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(202);
    return reply.body;
  };
  const volumeFile = (id: string) => join(instance.volumesDir, `volume-${id}`);
  const settled = (resource: "volumes" | "backups" | "snapshots", id: string, status: string, timeoutMs = patienceMs) =>
    instance.waitFor(
      async () => {
        const item = Object.values(await get(`${base}/${resource}/${id}`))[0] as {
          status: string;
          fail_reason?: string;
        };
        if (item.status.startsWith("error") && !status.startsWith("error")) {
          throw new HopelessError(`${resource} ${id} is ${JSON.stringify(item)}`);
        }
        return item.status === status && item;
      },
      { what: `${resource} ${id} is ${status}`, timeoutMs },
    );
  const operation = async (query: string) => (await get(`/ops/operations?${query}`)).operations[0];
  return {
    get,
    accepted,
    settled,
    operation,
    volumeFile,
    async importVolume(path: string, name = "imported"): Promise<string> {
      const { operation: run } = await accepted("POST", "/ops/volumes/import", { path, name, project_id: project });
      const { operation: row } = await get(`/ops/operations/${run.id}`);
      await settled("volumes", row.volume_id, "available");
      return row.volume_id as string;
    },
    async createVolume(sizeGib: number): Promise<string> {
      const { volume } = await accepted("POST", `${base}/volumes`, { volume: { size: sizeGib, name: "made" } });
      await settled("volumes", volume.id, "available");
      return volume.id as string;
    },
    async startBackup(volumeId: string, options: Record<string, unknown> = {}): Promise<string> {
      const { backup } = await accepted("POST", `${base}/backups`, { backup: { volume_id: volumeId, ...options } });
      return backup.id as string;
    },
    async backUp(volumeId: string, options: Record<string, unknown> = {}, timeoutMs = patienceMs): Promise<string> {
      const id = await this.startBackup(volumeId, options);
      await settled("backups", id, "available", timeoutMs);
      return id;
    },
    async startRestore(backupId: string, volumeId: string | null = null): Promise<string> {
      const { restore } = await accepted("POST", `${base}/backups/${backupId}/restore`, {
        restore: { volume_id: volumeId },
      });
      return restore.volume_id as string;
    },
    async restore(backupId: string, volumeId: string | null = null, timeoutMs = patienceMs): Promise<string> {
      const target = await this.startRestore(backupId, volumeId);
      await settled("volumes", target, "available", timeoutMs);
      await settled("backups", backupId, "available");
      return target;
    },
    /** Restores to a new volume, compares every byte with `sha256`, and deletes the volume. */
    async expectExact(backupId: string, sha256: string): Promise<void> {
      const target = await this.restore(backupId);
      expect(await sha256Of(volumeFile(target)), `restored bytes of backup ${backupId}`).toBe(sha256);
      await accepted("DELETE", `${base}/volumes/${target}`);
      await instance.waitFor(async () => (await instance.request("GET", `${base}/volumes/${target}`)).status === 404, {
        what: `volume ${target} is gone`,
        timeoutMs: patienceMs,
      });
    },
    async deleteBackup(id: string): Promise<void> {
      await accepted("DELETE", `${base}/backups/${id}`);
      await instance.waitFor(async () => (await instance.request("GET", `${base}/backups/${id}`)).status === 404, {
        what: `backup ${id} is gone`,
        timeoutMs: patienceMs,
      });
    },
    /** Asserts that nothing is pending, running or left behind: no unfinished task, no staging, no temporary or private file. */
    async expectQuiet(): Promise<void> {
      await instance.waitFor(
        async () => {
          const rows = await instance.sql(
            "SELECT kind, state FROM tasks WHERE state IN ('ready','dispatched','running','blocked')",
          );
          return rows.length === 0;
        },
        { what: "no task is unfinished", timeoutMs: patienceMs },
      );
      const live = await instance.sql("SELECT id FROM operations WHERE state IN ('queued', 'running')");
      expect(live).toEqual([]);
      const busy = await instance.sql(
        "SELECT id, status FROM volumes WHERE status NOT IN ('available','in-use','error','error_restoring')",
      );
      expect(busy).toEqual([]);
    },
    removeFile: (path: string) => rm(path, { force: true }),
  };
}

export type Journey = ReturnType<typeof journeyOn>;
