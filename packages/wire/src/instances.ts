import { z } from "zod";
import { id, time } from "./fields.ts";
import { protectionState } from "./volumes.ts";

/** A virtual machine with its volumes, boot disk first. */
export const Instance = z
  .object({
    id,
    name: z.string(),
    project_id: z.string(),
    user_id: z.string().nullable(),
    power_state: z.string(),
    driver: z.string(),
    qmp_socket: z.string().nullable(),
    agent_socket: z.string().nullable(),
    freeze_mountpoints: z.array(z.string()).nullable(),
    boot_volume_id: id.nullable(),
    configuration: z.unknown(),
    group_id: id.nullable(),
    attachments: z.array(z.object({ volume_id: id, device: z.string().nullable(), attached_at: time.nullable() })),
    created_at: time,
    updated_at: time.nullable(),
  })
  .meta({ id: "Instance" });
export type Instance = z.infer<typeof Instance>;

/**
 * A machine as it is looked at. `protection`: that of the worst of its disks, which `volume_id` names; null: it has none. `last_group_snapshot`: its newest backup as a whole;
 * null: there is none.
 */
export const ListedInstance = Instance.extend({
  protection: z
    .object({
      state: protectionState,
      reason: z.string().nullable(),
      volume_id: id,
      last_good_at: time.nullable(),
    })
    .nullable(),
  last_group_snapshot: z.object({ id, at: time, consistency: z.string().nullable(), status: z.string() }).nullable(),
}).meta({ id: "ListedInstance" });
export type ListedInstance = z.infer<typeof ListedInstance>;

/** How an instance backup was taken, and the instance's properties at that time. `frozen_ms`: how long the guest was frozen. */
export const GroupSnapshot = z
  .object({
    id,
    group_id: id,
    status: z.string(),
    taken_at: time.nullable(),
    frozen_ms: z.number().int().nullable(),
    consistency: z.string().nullable(),
    instance: z.unknown(),
  })
  .meta({ id: "GroupSnapshot" });
export type GroupSnapshot = z.infer<typeof GroupSnapshot>;
