import {
  attachInstanceVolume,
  createInstance,
  deleteInstance,
  detachInstanceVolume,
  getInstance,
  type InstanceRow,
  type Json,
  listInstances,
  type MachineFacts,
  needsSocket,
  readMachineFacts,
  updateInstance,
} from "@tephra/control";
import { type AnswerOf, type Instance, type ListedInstance, requests } from "@tephra/wire";
import type { z } from "zod";
import type { Context } from "../context.ts";
import { allow } from "../http/policy.ts";
import { badRequest } from "../http/refusals.ts";
import { defineOps, type OpsCall } from "./serve.ts";

const view = (row: InstanceRow): Instance => ({
  id: row.id,
  name: row.name,
  project_id: row.projectId,
  user_id: row.userId,
  power_state: row.powerState,
  driver: row.driver,
  qmp_socket: row.qmpSocket,
  agent_socket: row.agentSocket,
  freeze_mountpoints: row.freezeMountpoints as string[] | null,
  boot_volume_id: row.bootVolumeId,
  configuration: row.configuration,
  group_id: row.group?.id ?? null,
  attachments: row.disks.map((disk) => ({
    volume_id: disk.volumeId,
    device: disk.device,
    attached_at: disk.attachedAt?.toISOString() ?? null,
  })),
  created_at: row.createdAt.toISOString(),
  updated_at: row.updatedAt?.toISOString() ?? null,
});

const viewListed = (row: InstanceRow, facts: MachineFacts | undefined): ListedInstance => ({
  ...view(row),
  protection: facts?.protection
    ? {
        state: facts.protection.state,
        reason: facts.protection.reason,
        volume_id: facts.protection.volumeId,
        last_good_at: facts.protection.lastGoodAt?.toISOString() ?? null,
      }
    : null,
  last_group_snapshot: facts?.lastBackup ? { ...facts.lastBackup, at: facts.lastBackup.at.toISOString() } : null,
});

/**
 * Whoever may name a socket can control the machine behind it, whoever owns it: only admins may, and only beneath the configured folders.
 * `was`: the instance before a change.
 *
 * @throws Refusal 403, 400
 */
function checkMachine(
  { principal }: OpsCall,
  machine: {
    driver?: string | undefined;
    qmp_socket?: string | null | undefined;
    agent_socket?: string | null | undefined;
  },
  was: { driver: string; qmpSocket: string | null } | null,
): void {
  const speaks = machine.driver !== undefined && needsSocket(machine.driver);
  if (speaks || machine.qmp_socket || machine.agent_socket) allow(principal, "ops:instance:machine");
  const driver = machine.driver ?? was?.driver;
  const named = machine.qmp_socket === undefined ? was?.qmpSocket : machine.qmp_socket;
  if (driver !== undefined && needsSocket(driver) && !named)
    throw badRequest(`Invalid input received: instance.qmp_socket: the driver ${driver} needs it`);
}

const idOf = ({ params }: OpsCall): string => params["id"] ?? "";

/** The fields of `change` that were sent, under their names in the control plane. */
function changeOf(sent: z.output<(typeof requests)["PUT /ops/instances/:id"]["body"]>["instance"]) {
  return {
    ...(sent.name !== undefined && { name: sent.name }),
    ...(sent.power_state !== undefined && { powerState: sent.power_state }),
    ...(sent.boot_volume_id !== undefined && { bootVolumeId: sent.boot_volume_id }),
    ...(sent.driver !== undefined && { driver: sent.driver }),
    ...(sent.qmp_socket !== undefined && { qmpSocket: sent.qmp_socket }),
    ...(sent.agent_socket !== undefined && { agentSocket: sent.agent_socket }),
    ...(sent.freeze_mountpoints !== undefined && { freezeMountpoints: sent.freeze_mountpoints }),
    ...(sent.configuration !== undefined && { configuration: sent.configuration as { [key: string]: Json } }),
  };
}

const answer = (status: number, row: InstanceRow) => ({
  status,
  body: { instance: view(row) } satisfies AnswerOf<"PUT /ops/instances/:id">,
});

/** Virtual machines: their resources, and how to connect to their hypervisors. */
export const instances = {
  list: defineOps({
    ...requests["GET /ops/instances"],
    handle: async ({ database, config }, { principal, query }) => {
      const { q: text, state: powerState, marker, limit } = query;
      const [projectId = "", id = ""] = marker?.split(":") ?? [];
      const after = marker === undefined ? undefined : { projectId, id };
      // One more than is shown tells whether there is a next page.
      const rows = await listInstances(database, principal, { text, powerState, after, limit: limit + 1 });
      const shown = rows.slice(0, limit);
      const facts = await readMachineFacts(database, config, shown);
      const last = rows.length > limit ? shown.at(-1) : undefined;
      const body = {
        instances: shown.map((row, at) => viewListed(row, facts[at])),
        next: last ? `${last.projectId}:${last.id}` : null,
      };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/instances"> };
    },
  }),

  show: defineOps({
    handle: async ({ database, config }, call) => {
      const row = await getInstance(database, call.principal, idOf(call));
      const [facts] = await readMachineFacts(database, config, [row]);
      const body: AnswerOf<"GET /ops/instances/:id"> = { instance: viewListed(row, facts) };
      return { status: 200, body };
    },
  }),

  /** An admin may create one for another project, which then owns it. */
  create: defineOps({
    ...requests["POST /ops/instances"],
    handle: async ({ database, config }: Context, call) => {
      const { instance } = call.body;
      const projectId = instance.project_id ?? call.principal.projectId;
      allow(call.principal, "ops:instance:create", projectId);
      checkMachine(call, instance, null);
      const row = await createInstance(database, config, call.principal, {
        id: instance.id ?? null,
        projectId,
        name: instance.name,
        powerState: instance.power_state,
        driver: instance.driver,
        qmpSocket: instance.qmp_socket,
        agentSocket: instance.agent_socket,
        freezeMountpoints: instance.freeze_mountpoints,
        bootVolumeId: instance.boot_volume_id,
        configuration: instance.configuration as { [key: string]: Json },
      });
      return answer(201, row);
    },
  }),

  update: defineOps({
    ...requests["PUT /ops/instances/:id"],
    handle: async ({ database, config }, call) => {
      const seen = await getInstance(database, call.principal, idOf(call));
      checkMachine(call, call.body.instance, seen);
      return answer(200, await updateInstance(database, config, call.principal, seen.id, changeOf(call.body.instance)));
    },
  }),

  remove: defineOps({
    handle: async ({ database }, call) => {
      await deleteInstance(database, call.principal, idOf(call));
      return { status: 204 };
    },
  }),

  attach: defineOps({
    ...requests["POST /ops/instances/:id/attach"],
    handle: async ({ database }, call) => {
      const disk = { volumeId: call.body.volume_id, device: call.body.device ?? null };
      return answer(200, await attachInstanceVolume(database, call.principal, idOf(call), disk));
    },
  }),

  detach: defineOps({
    ...requests["POST /ops/instances/:id/detach"],
    handle: async ({ database }, call) =>
      answer(200, await detachInstanceVolume(database, call.principal, idOf(call), call.body.volume_id)),
  }),
};
