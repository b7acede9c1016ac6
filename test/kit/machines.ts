import { join } from "node:path";
import { expect } from "vitest";
import type { Instance, Reply } from "./instance.ts";
import { type Journey, project, writeIslands } from "./journey.ts";

const base = `/v3/${project}`;

/** A test's virtual machine: its record, its volumes (boot disk first) and its group. */
export interface Machine {
  id: string;
  group: string;
  volumes: string[];
}

/** A user's operations on virtual machines, with an assertion on every response. */
export function machinesOn(instance: Instance, user: Journey) {
  const ask = async (status: number, method: string, path: string, body?: unknown): Promise<Reply> => {
    const reply = await instance.request(method, path, body);
    expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(status);
    return reply;
  };
  return {
    ask,
    /** Creates a machine with one disk per content; each disk is as long as its content. */
    async create(
      contents: readonly { sizeBytes: number; islands: Parameters<typeof writeIslands>[2] }[],
      settings: Record<string, unknown> = {},
    ): Promise<Machine> {
      const volumes: string[] = [];
      for (const [at, { sizeBytes, islands }] of contents.entries()) {
        const image = join(instance.dataDir, `disk-${at}.img`);
        await writeIslands(image, sizeBytes, islands);
        volumes.push(await user.importVolume(image, `disk ${at}`));
        await user.removeFile(image);
      }
      const [boot, ...others] = volumes;
      const made = {
        name: "web-1",
        power_state: "SHUTOFF",
        boot_volume_id: boot,
        configuration: { vcpus: 2 },
        ...settings,
      };
      const { body } = await ask(201, "POST", "/ops/instances", { instance: made });
      const { id, group_id: group } = body.instance;
      for (const [at, volume_id] of others.entries()) {
        await ask(200, "POST", `/ops/instances/${id}/attach`, { volume_id, device: `/dev/vd${"bcdefgh"[at]}` });
      }
      return { id, group, volumes };
    },
    async setPower(machine: Machine, power_state: string): Promise<void> {
      await ask(200, "PUT", `/ops/instances/${machine.id}`, { instance: { power_state } });
    },
    backup: (machine: Machine, name: string, more: Record<string, unknown> = {}): Promise<Reply> =>
      instance.request("POST", `${base}/instance-groups/${machine.group}/backup`, {
        instance_id: machine.id,
        name,
        ...more,
      }),
    restore: (machine: Machine, of: { id: string; name: string }, more: Record<string, unknown> = {}): Promise<Reply> =>
      instance.request("PUT", `${base}/instance-groups/${machine.group}/restore`, {
        instance_id: machine.id,
        group_snapshot_id: of.id,
        name: of.name,
        ...more,
      }),
    deleteBackup: (
      machine: Machine,
      of: { id: string; name: string },
      more: Record<string, unknown> = {},
    ): Promise<Reply> =>
      instance.request("PUT", `${base}/instance-groups/${machine.group}/delete_backup`, {
        instance_id: machine.id,
        group_snapshot_id: of.id,
        name: of.name,
        ...more,
      }),
    list: async (machine: Machine) => (await ask(200, "GET", `${base}/instance-groups/${machine.group}`)).body,
    /** Waits until the backup of that name has the status. */
    settled: (machine: Machine, name: string, status: string, timeoutMs = 120_000) =>
      instance.waitFor(
        async () => {
          const { body } = await instance.request("GET", `${base}/instance-groups/${machine.group}`);
          const found = body.find((backup: { name: string }) => backup.name === name);
          return found?.status === status && found;
        },
        { what: `backup ${name} is ${status}`, timeoutMs },
      ),
    /** Waits until no operation holds the group any more. */
    free: (machine: Machine, timeoutMs = 120_000) =>
      instance.waitFor(
        async () => {
          const rows = await instance.sql("SELECT operation_id FROM groups WHERE id = $1", [machine.group]);
          return rows.length === 1 && rows[0].operation_id === null;
        },
        { what: `group ${machine.group} is nobody's`, timeoutMs },
      ),
  };
}
