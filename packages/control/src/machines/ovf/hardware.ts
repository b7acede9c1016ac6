import { hardwareOf, instanceIdOf, itemsOf, resourceTypes, setInstanceId } from "./fields.ts";
import { childText, element, setChild, type XmlElement } from "./xml.ts";

/** Words for controllers, and what an OVF has for them. */
export const diskInterfaces = {
  virtio: "VirtIO",
  virtio_scsi: "VirtIO_SCSI",
  ide: "IDE",
  sata: "SATA",
  spapr_vscsi: "SPAPR_VSCSI",
} as const;
export type DiskInterface = keyof typeof diskInterfaces;

export const nicInterfaces = {
  rtl8139_virtio: "0",
  rtl8139: "1",
  e1000: "2",
  virtio: "3",
  spapr_vlan: "4",
  pci_passthrough: "5",
  e1000e: "6",
} as const;
export type NicInterface = keyof typeof nicInterfaces;

/** A disk, as an OVF describes it. Sizes in bytes. */
export interface OvfDisk {
  id: string;
  imageId: string;
  sizeBytes: number;
  alias: string;
  format: "cow" | "raw";
  interface: string;
  bootable: boolean;
  plugged: boolean;
  readOnly: boolean;
  incremental: boolean;
  /** The machine's snapshot that the layer belongs to. */
  snapshotId: string;
  createdAt: Date;
}

export interface OvfNic {
  id: string;
  name: string;
  mac: string;
  network: string | null;
  interface: string;
  linked: boolean;
  plugged: boolean;
}

/** `2026/01/02 03:04:05`: how oVirt writes times in an OVF. */
export const ovfTime = (time: Date): string => time.toISOString().slice(0, 19).replaceAll("-", "/").replace("T", " ");

function newItem(content: XmlElement, type: string, id: string): XmlElement {
  const item = element("Item", {}, [element("rasd:InstanceId", {}, [id]), element("rasd:ResourceType", {}, [type])]);
  hardwareOf(content).children.push(item);
  return item;
}

function drop(content: XmlElement, items: readonly XmlElement[]): void {
  const hardware = hardwareOf(content);
  hardware.children = hardware.children.filter((child) => typeof child === "string" || !items.includes(child));
}

/** The word for one of the codes of a map, whatever its case. */
export const keyOf = (map: Readonly<Record<string, string>>, value: string | undefined): string | undefined =>
  Object.entries(map).find(([, other]) => other.toLowerCase() === value?.toLowerCase())?.[0];

export const nicInterfaceOf = (item: XmlElement): string =>
  keyOf(nicInterfaces, childText(item, "rasd:ResourceSubType")) ?? "virtio";

/** Brings the network interfaces of the content to those of the machine: what else is said of one that stays, stays. */
export function writeNics(content: XmlElement, nics: readonly OvfNic[]): void {
  const known = itemsOf(content, resourceTypes.nic);
  drop(
    content,
    known.filter((item) => !nics.some(({ id }) => id === instanceIdOf(item))),
  );
  for (const nic of nics) {
    const kept = known.find((item) => instanceIdOf(item) === nic.id);
    const item = kept ?? newItem(content, resourceTypes.nic, nic.id);
    const network = nic.network ?? "";
    if ((childText(item, "rasd:Connection") ?? null) !== network) {
      setChild(item, "rasd:Caption", network === "" ? "Ethernet adapter" : `Ethernet adapter on ${network}`);
      setChild(item, "rasd:OtherResourceType", network);
      setChild(item, "rasd:Connection", network);
    }
    // One of a kind that is not known here is read as virtio, and stays what it is.
    if (!kept || nicInterfaceOf(item) !== nic.interface) {
      setChild(item, "rasd:ResourceSubType", nicInterfaces[nic.interface as NicInterface] ?? nicInterfaces.virtio);
    }
    setChild(item, "rasd:Linked", String(nic.linked));
    setChild(item, "rasd:Name", nic.name);
    setChild(item, "rasd:ElementName", nic.name);
    if (childText(item, "rasd:MACAddress")?.toLowerCase() !== nic.mac) setChild(item, "rasd:MACAddress", nic.mac);
    if (!kept) for (const [name, text] of Object.entries(newNic)) setChild(item, name, text);
    setChild(item, "IsPlugged", String(nic.plugged));
  }
}

const newNic = { "rasd:speed": "10000", Type: "interface", Device: "bridge", "rasd:Address": "", BootOrder: "0" };

const blank = "00000000-0000-0000-0000-000000000000";
const newDisk = {
  "rasd:Parent": blank,
  "rasd:Template": blank,
  "rasd:ApplicationList": "",
  Type: "disk",
  Device: "disk",
  "rasd:Address": "",
};

/** The disk that an item is about: the first part of its file's name. */
const diskOf = (item: XmlElement): string =>
  (/([0-9a-f-]{36})\/[0-9a-f-]{36}$/i.exec(hostResourceOf(item))?.[1] ?? instanceIdOf(item)).toLowerCase();

export const hostResourceOf = (item: XmlElement): string => childText(item, "rasd:HostResource") ?? "";

/** As `writeNics`, for disks. */
export function writeDisks(content: XmlElement, disks: readonly OvfDisk[]): void {
  const known = itemsOf(content, resourceTypes.disk);
  drop(
    content,
    known.filter((item) => !disks.some(({ id }) => id === diskOf(item))),
  );
  for (const [at, disk] of disks.entries()) {
    const kept = known.find((item) => diskOf(item) === disk.id);
    const item = kept ?? newItem(content, resourceTypes.disk, disk.imageId);
    setInstanceId(item, disk.imageId);
    setChild(item, "rasd:Caption", disk.alias);
    setChild(item, "rasd:HostResource", `${disk.id}/${disk.imageId}`);
    if (!kept) for (const [name, text] of Object.entries(newDisk)) setChild(item, name, text);
    if (!kept) setChild(item, "rasd:CreationDate", ovfTime(disk.createdAt));
    if (!kept) setChild(item, "BootOrder", disk.bootable ? String(at + 1) : "0");
    setChild(item, "IsPlugged", String(disk.plugged));
    setChild(item, "IsReadOnly", String(disk.readOnly));
    if (!kept) setChild(item, "Alias", "");
  }
}
