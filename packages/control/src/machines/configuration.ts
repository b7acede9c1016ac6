import { z } from "zod";
import { RefusedError } from "../errors.ts";

const MiB = 1024 ** 2;
const GiB = 1024 ** 3;
const memoryMax = 64 * 1024 * GiB;
const cpusMax = 4096;

/** Strings are bounded; none is ever used as a file name. */
const short = z.string().max(255);
const long = z.string().max(4096);
/** Whole MiB: what an OVF can say. */
const memory = z.int().min(MiB).max(memoryMax).multipleOf(MiB);
const count = z.int().min(1).max(cpusMax);

export const biosTypes = ["cluster_default", "i440fx_sea_bios", "q35_sea_bios", "q35_ovmf", "q35_secure_boot"] as const;
export const machineTypes = ["desktop", "server", "high_performance"] as const;
export const bootDevices = ["hd", "cdrom", "network"] as const;

/** What a hypervisor has to know of a machine to make it again, besides its disks and network interfaces. Memory in bytes. */
const schema = z.object({
  description: long,
  comment: long,
  memory,
  /** Null: all of it. */
  memoryGuaranteed: memory.nullable(),
  /** Null: four times as much. */
  memoryMax: memory.nullable(),
  cpu: z
    .object({ sockets: count, cores: count, threads: count })
    .refine(({ sockets, cores, threads }) => sockets * cores * threads <= cpusMax, "too many processors"),
  cpuModel: short.nullable(),
  os: short.min(1),
  bios: z.enum(biosTypes),
  emulatedMachine: short.nullable(),
  type: z.enum(machineTypes),
  ioThreads: z.int().min(0).max(cpusMax),
  deleteProtected: z.boolean(),
  stateless: z.boolean(),
  highAvailability: z.object({ enabled: z.boolean(), priority: z.int().min(0).max(1000) }),
  timeZone: short.nullable(),
  bootDevices: z.array(z.enum(bootDevices)).min(1).max(3),
  customProperties: z.array(z.object({ name: short.regex(/^[^=;]+$/), value: long.regex(/^[^;]*$/) })).max(256),
  origin: short.min(1),
});

export type MachineConfiguration = z.infer<typeof schema>;

export const defaultConfiguration: MachineConfiguration = {
  description: "",
  comment: "",
  memory: GiB,
  memoryGuaranteed: null,
  memoryMax: null,
  cpu: { sockets: 1, cores: 1, threads: 1 },
  cpuModel: null,
  os: "other",
  bios: "q35_sea_bios",
  emulatedMachine: null,
  type: "server",
  ioThreads: 0,
  deleteProtected: false,
  stateless: false,
  highAvailability: { enabled: false, priority: 1 },
  timeZone: null,
  bootDevices: ["hd"],
  customProperties: [],
  origin: "ovirt",
};

/** @throws RefusedError that names what is out of bounds */
export function checkConfiguration(configuration: MachineConfiguration): MachineConfiguration {
  const parsed = schema.safeParse(configuration);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const field = issue?.path.join(".") ?? "configuration";
  throw new RefusedError("configuration-invalid", `The configuration is invalid: ${field}: ${issue?.message}`, {
    field,
  });
}

/** As stored; a machine without a row, or with one that a later release has written, has the defaults for what is not understood. */
export function readConfiguration(stored: unknown): MachineConfiguration {
  const parsed = schema.partial().safeParse(stored ?? {});
  return parsed.success
    ? { ...defaultConfiguration, ...(parsed.data as Partial<MachineConfiguration>) }
    : defaultConfiguration;
}
