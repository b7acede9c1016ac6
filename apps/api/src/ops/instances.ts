import {
  attachInstanceVolume,
  createInstance,
  deleteInstance,
  detachInstanceVolume,
  getInstance,
  type InstanceRow,
  instanceDrivers,
  isUuid,
  type Json,
  listInstances,
  needsSocket,
  powerStates,
  updateInstance,
} from "@tephra/control";
import type { AnswerOf, Instance } from "@tephra/wire";
import { z } from "zod";
import type { Context } from "../context.ts";
import { allow } from "../http/policy.ts";
import { badRequest } from "../http/refusals.ts";
import { defineOps, type OpsCall } from "./serve.ts";

/** PostgreSQL stores neither NUL nor lone surrogates. */
const isStorable = (text: string): boolean => !text.includes("\0") && text.isWellFormed();
const text = z.string().refine(isStorable, "has characters that cannot be stored");
const id = z
  .string()
  .refine(isUuid, "is not a uuid")
  .transform((value) => value.toLowerCase());
const device = text.regex(/^\/dev\/[a-z0-9/_-]{1,58}$/, "is not the name of a device");
/** Maximum length of a unix socket address. */
const socket = text.max(107).regex(/^\//, "is not an absolute path");
const configuration = z
  .record(z.string(), z.unknown())
  .refine((value) => isStorable(JSON.stringify(value)) && !JSON.stringify(value).includes("\\u0000"), {
    error: "has characters that cannot be stored",
  });

const changeable = {
  name: text.min(1).max(255),
  power_state: z.enum(powerStates),
  boot_volume_id: id,
  driver: z.enum(instanceDrivers),
  qmp_socket: socket.nullable(),
  agent_socket: socket.nullable(),
  freeze_mountpoints: z.array(text.min(1).max(4096)).min(1).max(100).nullable(),
  configuration,
};

const CreateBody = z.strictObject({
  instance: z.strictObject({
    ...changeable,
    id: id.optional(),
    project_id: z
      .string()
      .regex(/^[0-9a-f-]{1,64}$/, "is not the id of a project")
      .optional(),
    power_state: changeable.power_state.default("ACTIVE"),
    boot_volume_id: id.nullable().default(null),
    driver: changeable.driver.default("record"),
    qmp_socket: changeable.qmp_socket.default(null),
    agent_socket: changeable.agent_socket.default(null),
    freeze_mountpoints: changeable.freeze_mountpoints.default(null),
    configuration: configuration.prefault({}),
  }),
});

const UpdateBody = z.strictObject({ instance: z.strictObject(changeable).partial() });
const AttachBody = z.strictObject({ volume_id: id, device: device.nullish() });
const DetachBody = z.strictObject({ volume_id: id });
const ListQuery = z.strictObject({ limit: z.coerce.number().int().min(1).max(1000).default(100) });

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
function changeOf(sent: z.infer<typeof UpdateBody>["instance"]) {
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
  body: { instance: view(row) } satisfies AnswerOf<"GET /ops/instances/:id">,
});

/** Virtual machines: their resources, and how to connect to their hypervisors. */
export const instances = {
  list: defineOps({
    query: ListQuery,
    handle: async ({ database }, { principal, query }) => {
      const rows = await listInstances(database, principal, query);
      return { status: 200, body: { instances: rows.map(view) } satisfies AnswerOf<"GET /ops/instances"> };
    },
  }),

  show: defineOps({
    handle: async ({ database }, call) => answer(200, await getInstance(database, call.principal, idOf(call))),
  }),

  /** An admin may create one for another project, which then owns it. */
  create: defineOps({
    body: CreateBody,
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
    body: UpdateBody,
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
    body: AttachBody,
    handle: async ({ database }, call) => {
      const disk = { volumeId: call.body.volume_id, device: call.body.device ?? null };
      return answer(200, await attachInstanceVolume(database, call.principal, idOf(call), disk));
    },
  }),

  detach: defineOps({
    body: DetachBody,
    handle: async ({ database }, call) =>
      answer(200, await detachInstanceVolume(database, call.principal, idOf(call), call.body.volume_id)),
  }),
};
