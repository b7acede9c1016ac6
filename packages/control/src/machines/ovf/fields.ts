import { biosTypes, type MachineConfiguration } from "../configuration.ts";
import { childText, element, elementsOf, setChild, type XmlElement } from "./xml.ts";

const MiB = 1024 ** 2;

/** Numbers that oVirt gives to words. */
const numbered = <Word extends string>(words: Readonly<Record<string, Word>>) => ({
  parse: (text: string): Word | undefined => words[text],
  print: (word: Word): string | undefined => Object.entries(words).find(([, other]) => other === word)?.[0],
});

const biosNumbers = numbered(Object.fromEntries(biosTypes.map((type, at) => [String(at), type])));
const machineNumbers = numbered({ "0": "desktop", "1": "server", "2": "high_performance" });
const originNumbers = numbered({
  "0": "rhev",
  "1": "vmware",
  "2": "xen",
  "3": "ovirt",
  "4": "hosted_engine",
  "5": "external",
  "6": "managed_hosted_engine",
  "7": "kvm",
  "8": "physical_xen",
  "9": "hyperv",
});

/** The orders of devices by their numbers: hard disk, CD, network. */
const sequences = ["C", "DC", "N", "CDN", "CND", "DCN", "DNC", "NCD", "NDC", "CD", "D", "CN", "DN", "NC", "ND"];
const deviceLetters = { C: "hd", D: "cdrom", N: "network" } as const;
const letterOf = { hd: "C", cdrom: "D", network: "N" } as const;

const flags = {
  parse: (text: string): boolean | undefined =>
    /^(true|false)$/i.test(text) ? text.toLowerCase() === "true" : undefined,
  print: (flag: boolean): string => String(flag),
};
const wholes = {
  parse: (text: string): number | undefined => (/^\d{1,15}$/.test(text) ? Number(text) : undefined),
  print: (value: number): string => String(value),
};
const mebibytes = {
  parse: (text: string): number | undefined => (/^\d{1,9}$/.test(text) ? Number(text) * MiB : undefined),
  print: (bytes: number): string => String(bytes / MiB),
};
const texts = { parse: (text: string): string | undefined => text, print: (text: string): string => text };

interface Codec<Value> {
  parse: (text: string) => Value | undefined;
  print: (value: Value) => string | undefined;
}

/** One property of a machine: how it stands in the `Content` of an OVF. */
interface Field<Key extends keyof MachineConfiguration> {
  key: Key;
  /** Undefined: the OVF does not say, or says it in a way that is not understood. */
  read: (content: XmlElement) => MachineConfiguration[Key] | undefined;
  write: (content: XmlElement, value: MachineConfiguration[Key]) => void;
}

/** A property in a child of its own. Null is said by the child's absence. */
function leaf<Key extends keyof MachineConfiguration>(
  key: Key,
  name: string,
  codec: Codec<NonNullable<MachineConfiguration[Key]>>,
): Field<Key> {
  return {
    key,
    read: (content) => {
      const text = childText(content, name);
      return text === undefined ? undefined : codec.parse(text);
    },
    write: (content, value) => setChild(content, name, value === null ? null : (codec.print(value as never) ?? null)),
  };
}

export const xsiType = (of: XmlElement): string => of.attributes.get("xsi:type") ?? of.attributes.get("type") ?? "";

/** A section of the content by the type that it says it has, or by its name. */
export const sectionOf = (content: XmlElement, kind: string): XmlElement | undefined =>
  elementsOf(content).find((child) => child.name === kind || xsiType(child) === `ovf:${kind}_Type`);

function needSection(content: XmlElement, kind: string, info: string): XmlElement {
  const found = sectionOf(content, kind);
  if (found) return found;
  const made = element("Section", { "xsi:type": `ovf:${kind}_Type` }, [element("Info", {}, [info])]);
  content.children.push(made);
  return made;
}

export const hardwareOf = (content: XmlElement): XmlElement =>
  needSection(content, "VirtualHardwareSection", "Virtual hardware");
export const systemOf = (content: XmlElement): XmlElement =>
  needSection(content, "OperatingSystemSection", "Guest Operating System");

/** Kinds of virtual hardware, as CIM numbers them. */
export const resourceTypes = { cpu: "3", memory: "4", nic: "10", disk: "17" } as const;

export const itemsOf = (content: XmlElement, type: string): XmlElement[] => {
  const hardware = sectionOf(content, "VirtualHardwareSection");
  const items = hardware ? elementsOf(hardware).filter(({ name }) => name === "Item") : [];
  return items.filter((item) => childText(item, "rasd:ResourceType") === type);
};

function needItem(content: XmlElement, type: string, instanceId: string): XmlElement {
  const [found] = itemsOf(content, type);
  if (found) return found;
  const made = element("Item", {}, [
    element("rasd:InstanceId", {}, [instanceId]),
    element("rasd:ResourceType", {}, [type]),
  ]);
  hardwareOf(content).children.push(made);
  return made;
}

/** Units of memory in bytes: oVirt's word, and the form of the standard, such as `byte * 2^20`. */
function unitOf(text: string | undefined): number | undefined {
  if (text === undefined || /^megabytes?$/i.test(text)) return MiB;
  const power = /^byte \* 2\^(10|20|30|40)$/.exec(text)?.[1];
  return power === undefined ? undefined : 2 ** Number(power);
}

const memoryField: Field<"memory"> = {
  key: "memory",
  read: (content) => {
    const [item] = itemsOf(content, resourceTypes.memory);
    const unit = unitOf(item && childText(item, "rasd:AllocationUnits"));
    const quantity = item && wholes.parse(childText(item, "rasd:VirtualQuantity") ?? "");
    return unit === undefined || quantity === undefined ? undefined : unit * quantity;
  },
  write: (content, value) => {
    const item = needItem(content, resourceTypes.memory, "2");
    setChild(item, "rasd:Caption", `${value / MiB} MB of memory`);
    setChild(item, "rasd:AllocationUnits", "MegaBytes");
    setChild(item, "rasd:VirtualQuantity", String(value / MiB));
  },
};

const cpuField: Field<"cpu"> = {
  key: "cpu",
  read: (content) => {
    const [item] = itemsOf(content, resourceTypes.cpu);
    if (!item) return undefined;
    const read = (name: string): number | undefined => wholes.parse(childText(item, name) ?? "");
    const sockets = read("rasd:num_of_sockets") ?? read("rasd:VirtualQuantity");
    if (sockets === undefined) return undefined;
    return { sockets, cores: read("rasd:cpu_per_socket") ?? 1, threads: read("rasd:threads_per_cpu") ?? 1 };
  },
  write: (content, { sockets, cores, threads }) => {
    const item = needItem(content, resourceTypes.cpu, "1");
    setChild(item, "rasd:Caption", `${sockets * cores * threads} virtual cpu`);
    setChild(item, "rasd:Description", "Number of virtual CPU");
    setChild(item, "rasd:num_of_sockets", String(sockets));
    setChild(item, "rasd:cpu_per_socket", String(cores));
    setChild(item, "rasd:threads_per_cpu", String(threads));
  },
};

const osField: Field<"os"> = {
  key: "os",
  read: (content) => {
    const section = sectionOf(content, "OperatingSystemSection");
    return (section && childText(section, "Description")) || undefined;
  },
  write: (content, value) => setChild(systemOf(content), "Description", value),
};

const availabilityField: Field<"highAvailability"> = {
  key: "highAvailability",
  read: (content) => {
    const enabled = flags.parse(childText(content, "AutoStartup") ?? "");
    const priority = wholes.parse(childText(content, "Priority") ?? "");
    return enabled === undefined && priority === undefined
      ? undefined
      : { enabled: enabled ?? false, priority: priority ?? 1 };
  },
  write: (content, { enabled, priority }) => {
    setChild(content, "AutoStartup", String(enabled));
    setChild(content, "Priority", String(priority));
  },
};

const bootField: Field<"bootDevices"> = {
  key: "bootDevices",
  read: (content) => {
    const letters = sequences[wholes.parse(childText(content, "default_boot_sequence") ?? "") ?? -1];
    return letters === undefined ? undefined : [...letters].map((letter) => deviceLetters[letter as "C" | "D" | "N"]);
  },
  write: (content, devices) => {
    const at = sequences.indexOf(devices.map((device) => letterOf[device]).join(""));
    setChild(content, "default_boot_sequence", String(Math.max(0, at)));
  },
};

const propertiesField: Field<"customProperties"> = {
  key: "customProperties",
  read: (content) => {
    const text = childText(content, "UserDefinedProperties");
    if (text === undefined) return undefined;
    const pairs = text.split(";").filter((pair) => pair !== "");
    return pairs.map((pair) => {
      const at = pair.indexOf("=");
      return at < 0 ? { name: pair, value: "" } : { name: pair.slice(0, at), value: pair.slice(at + 1) };
    });
  },
  write: (content, properties) =>
    setChild(content, "UserDefinedProperties", properties.map(({ name, value }) => `${name}=${value}`).join(";")),
};

/** Every property of the configuration, in the order in which a new OVF has them. */
const fields: { readonly [Key in keyof MachineConfiguration]: Field<Key> } = {
  description: leaf("description", "Description", texts),
  comment: leaf("comment", "Comment", texts),
  deleteProtected: leaf("deleteProtected", "DeleteProtected", flags),
  timeZone: leaf("timeZone", "TimeZone", texts),
  bootDevices: bootField,
  type: leaf("type", "VmType", machineNumbers as Codec<MachineConfiguration["type"]>),
  memoryGuaranteed: leaf("memoryGuaranteed", "MinAllocatedMem", mebibytes),
  memoryMax: leaf("memoryMax", "MaxMemorySizeMb", mebibytes),
  stateless: leaf("stateless", "IsStateless", flags),
  ioThreads: leaf("ioThreads", "NumOfIoThreads", wholes),
  highAvailability: availabilityField,
  origin: leaf("origin", "Origin", originNumbers as Codec<string>),
  bios: leaf("bios", "BiosType", biosNumbers as Codec<MachineConfiguration["bios"]>),
  emulatedMachine: leaf("emulatedMachine", "CustomEmulatedMachine", texts),
  cpuModel: leaf("cpuModel", "CustomCpuName", texts),
  customProperties: propertiesField,
  os: osField,
  cpu: cpuField,
  memory: memoryField,
};

const all = Object.values(fields) as unknown as Field<keyof MachineConfiguration>[];

/** What the content says; what it does not say, or in a way that is not understood, is left out. */
export function readFields(content: XmlElement): Partial<MachineConfiguration> {
  const read = all.map(({ key, read: of }) => [key, of(content)] as const);
  return Object.fromEntries(read.filter(([, value]) => value !== undefined));
}

const same = (one: unknown, other: unknown): boolean => JSON.stringify(one) === JSON.stringify(other);

/** Writes what the content does not say already: whatever stands there in another form stays as it is. */
export function writeFields(content: XmlElement, configuration: MachineConfiguration): void {
  for (const { key, read, write } of all) {
    const value = configuration[key];
    if (!same(read(content) ?? null, value)) write(content, value);
  }
}

/** The identity of a piece of hardware, under both of its names. */
export const instanceIdOf = (item: XmlElement): string => childText(item, "rasd:InstanceId", "rasd:InstanceID") ?? "";

export function setInstanceId(item: XmlElement, id: string): void {
  const name = elementsOf(item).find((child) => child.name === "rasd:InstanceID")?.name ?? "rasd:InstanceId";
  setChild(item, name, id);
}

export const flagOf = (text: string | undefined, otherwise: boolean): boolean => flags.parse(text ?? "") ?? otherwise;

export const sizeOf = (text: string | undefined): number | undefined => wholes.parse(text ?? "");
