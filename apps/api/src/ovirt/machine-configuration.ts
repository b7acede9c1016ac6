import { biosTypes, bootDevices, type MachineConfiguration, machineTypes } from "@tephra/control";
import type { Body } from "./body.ts";
import { type Fields, group, listOf } from "./element.ts";

const MiB = 1024 ** 2;

type Change = Partial<MachineConfiguration>;

/** What is present, without what is not. */
const given = <T extends object>(values: T): { [Key in keyof T]: Exclude<T[Key], undefined> } =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as never;

/** Memory in whole MiB, as the engine rounds it. */
function memoryOf(body: Body, ...path: string[]): number | undefined {
  const bytes = body.integer(path, { min: MiB, max: Number.MAX_SAFE_INTEGER });
  return bytes === undefined ? undefined : Math.floor(bytes / MiB) * MiB;
}

function cpuOf(body: Body, before: MachineConfiguration["cpu"]): MachineConfiguration["cpu"] | undefined {
  const topology = body.at("cpu", "topology");
  if (!topology) return undefined;
  const count = (name: "sockets" | "cores" | "threads"): number =>
    topology.integer([name], { min: 1, max: 4096 }) ?? before[name];
  return { sockets: count("sockets"), cores: count("cores"), threads: count("threads") };
}

function availabilityOf(body: Body, before: MachineConfiguration["highAvailability"]) {
  const availability = body.at("high_availability");
  if (!availability) return undefined;
  const priority = availability.integer(["priority"], { min: 0, max: 1000 }) ?? before.priority;
  return { enabled: availability.boolean("enabled") ?? before.enabled, priority };
}

function bootOf(body: Body): MachineConfiguration["bootDevices"] | undefined {
  const devices = body.at("os", "boot", "devices")?.all("device");
  if (!devices || devices.length === 0) return undefined;
  return devices.flatMap((device) => device.oneOf([], bootDevices) ?? []);
}

/**
 * What a request says of a machine. Elements that it does not have, or that nobody here stores, change nothing.
 *
 * @throws OvirtFault 400
 */
export function configurationOf(body: Body, before: Pick<MachineConfiguration, "cpu" | "highAvailability">): Change {
  const properties = body.items("custom_properties", "custom_property");
  return given({
    description: body.string("description"),
    comment: body.string("comment"),
    memory: memoryOf(body, "memory"),
    memoryGuaranteed: memoryOf(body, "memory_policy", "guaranteed"),
    memoryMax: memoryOf(body, "memory_policy", "max"),
    cpu: cpuOf(body, before.cpu),
    os: body.string("os", "type"),
    bios: body.oneOf(["bios", "type"], biosTypes),
    type: body.oneOf(["type"], machineTypes),
    deleteProtected: body.boolean("delete_protected"),
    stateless: body.boolean("stateless"),
    highAvailability: availabilityOf(body, before.highAvailability),
    timeZone: body.string("time_zone", "name"),
    bootDevices: bootOf(body),
    customProperties: properties?.map((each) => ({
      name: each.string("name") ?? "",
      value: each.string("value") ?? "",
    })),
  });
}

/**
 * The same as fields of a machine, in oVirt's order. Ansible compares its user's wishes with what version 4 says of the boot menu, threads
 * for input and output, single sign-on and USB, and fails where it says nothing.
 */
export const configurationFields = (settings: MachineConfiguration, createdAt: Date, isFour: boolean): Fields => ({
  bios: group({ ...(isFour && { boot_menu: group({ enabled: false }) }), type: settings.bios }),
  cpu: group({
    architecture: "x86_64",
    topology: group({ cores: settings.cpu.cores, sockets: settings.cpu.sockets, threads: settings.cpu.threads }),
  }),
  creation_time: createdAt,
  ...(settings.customProperties.length > 0 && {
    custom_properties: listOf(
      "custom_property",
      settings.customProperties.map(({ name, value }) => group({ name, value })),
    ),
  }),
  delete_protected: settings.deleteProtected,
  high_availability: group({
    enabled: settings.highAvailability.enabled,
    priority: settings.highAvailability.priority,
  }),
  ...(isFour && { io: group({ threads: settings.ioThreads }) }),
  memory: settings.memory,
  memory_policy: group({
    guaranteed: settings.memoryGuaranteed ?? settings.memory,
    max: settings.memoryMax ?? settings.memory * 4,
  }),
  origin: settings.origin,
  os: group({
    ...(isFour && { boot: group({ devices: listOf("device", settings.bootDevices) }) }),
    type: settings.os,
  }),
  ...(isFour && { sso: group({ methods: listOf("method", []) }) }),
  stateless: settings.stateless,
  ...(settings.timeZone !== null && { time_zone: group({ name: settings.timeZone }) }),
  type: settings.type,
  ...(isFour && { usb: group({ enabled: false }) }),
});
