import { randomUUID } from "node:crypto";
import { isUuid } from "../../db/listing.ts";
import { RefusedError } from "../../errors.ts";
import { checkConfiguration, defaultConfiguration, type MachineConfiguration } from "../configuration.ts";
import {
  flagOf,
  instanceIdOf,
  itemsOf,
  readFields,
  resourceTypes,
  sectionOf,
  setInstanceId,
  sizeOf,
  xsiType,
} from "./fields.ts";
import { diskInterfaces, hostResourceOf, keyOf, nicInterfaceOf, type OvfNic } from "./hardware.ts";
import { attributeOf, childOf, childText, elementsOf, parseXml, printXml, unreadable, type XmlElement } from "./xml.ts";

const GiB = 1024 ** 3;
const nicsMax = 64;
const disksMax = 256;
const bytesMax = 2 ** 50;

/** A disk that an OVF names. `candidates` are ids that it may have: writers do not agree on where it stands. */
export interface ReadDisk {
  candidates: string[];
  alias: string;
  sizeBytes: number | null;
  interface: string;
  bootable: boolean;
  plugged: boolean;
  readOnly: boolean;
}

export interface ReadMachine {
  /** Null: the OVF does not say. */
  id: string | null;
  name: string;
  configuration: MachineConfiguration;
  nics: OvfNic[];
  disks: ReadDisk[];
  /** What is to be kept of it, for `writeOvf`. */
  content: string;
}

const macPattern = /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i;

/** @throws RefusedError where it is longer than anything that is stored */
function bounded(text: string, what: string, max = 255): string {
  if (text.length > max) throw unreadable(`${what} is too long`);
  return text;
}

/**
 * A document of the standard's own form (`ova`) has a VirtualSystem, and sections that are named by their kind: they become the form that
 * oVirt writes.
 */
function contentOf(envelope: XmlElement): XmlElement {
  const content = childOf(envelope, "Content", "VirtualSystem");
  if (!content) throw unreadable("it has no Content");
  content.name = "Content";
  content.attributes.set("xsi:type", "ovf:VirtualSystem_Type");
  for (const section of elementsOf(content)) {
    if (!/^\w+Section$/.test(section.name)) continue;
    section.attributes.set("xsi:type", `ovf:${section.name}_Type`);
    section.name = "Section";
  }
  return content;
}

/** Passwords are not kept in the clear. */
function dropSecrets(content: XmlElement): void {
  const isSecret = (name: string): boolean => /password/i.test(name);
  for (const init of elementsOf(content).filter(({ name }) => name === "VmInit")) {
    for (const name of [...init.attributes.keys()]) if (isSecret(name)) init.attributes.delete(name);
    init.children = init.children.filter((child) => typeof child === "string" || !isSecret(child.name));
  }
}

function readNics(content: XmlElement, isTaken: (id: string) => boolean): OvfNic[] {
  const items = itemsOf(content, resourceTypes.nic);
  if (items.length > nicsMax) throw unreadable("it has too many network interfaces");
  const names = new Set<string>();
  return items.map((item, at) => {
    const given = instanceIdOf(item).toLowerCase();
    const id = isUuid(given) && !isTaken(given) ? given : randomUUID();
    setInstanceId(item, id);
    const said = childText(item, "rasd:Name", "rasd:ElementName") || `nic${at + 1}`;
    let name = bounded(said, "the name of a network interface");
    for (let other = 2; names.has(name); other += 1) name = `${said.slice(0, 250)}-${other}`;
    names.add(name);
    const mac = childText(item, "rasd:MACAddress") ?? "";
    return {
      id,
      name,
      mac: macPattern.test(mac) ? mac.toLowerCase() : "",
      network: bounded(childText(item, "rasd:Connection") ?? "", "the name of a network") || null,
      interface: nicInterfaceOf(item),
      linked: flagOf(childText(item, "rasd:Linked"), true),
      plugged: flagOf(childText(item, "IsPlugged"), true),
    };
  });
}

const uuids = /[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}/gi;

function readDisks(envelope: XmlElement, content: XmlElement): ReadDisk[] {
  const section = elementsOf(envelope).find(
    (child) => child.name === "DiskSection" || xsiType(child) === "ovf:DiskSection_Type",
  );
  const disks = section ? elementsOf(section).filter(({ name }) => name === "Disk") : [];
  if (disks.length > disksMax) throw unreadable("it has too many disks");
  const items = itemsOf(content, resourceTypes.disk);
  const files = elementsOf(childOf(envelope, "References") ?? { name: "", attributes: new Map(), children: [] });
  return disks.map((disk) => {
    const diskId = attributeOf(disk, "diskId") ?? "";
    const fileRef = attributeOf(disk, "fileRef") ?? "";
    const file = files.find((f) => [attributeOf(f, "id"), attributeOf(f, "href")].includes(fileRef));
    const isIts = (item: XmlElement): boolean =>
      instanceIdOf(item) === diskId ||
      (fileRef !== "" && hostResourceOf(item) === fileRef) ||
      (diskId !== "" && hostResourceOf(item).endsWith(`/${diskId}`));
    const item = items.find(isIts);
    const places = [item ? hostResourceOf(item) : "", fileRef, diskId, attributeOf(file ?? disk, "href") ?? ""];
    const candidates = [...new Set(places.flatMap((place) => place.toLowerCase().match(uuids) ?? []))];
    const exact = sizeOf(disk.attributes.get("bk:size-bytes"));
    const gib = sizeOf(attributeOf(disk, "size"));
    const sizeBytes = exact ?? (gib === undefined ? null : gib * GiB);
    if (sizeBytes !== null && sizeBytes > bytesMax) throw unreadable("a disk is too large");
    return {
      candidates,
      alias: bounded(attributeOf(disk, "disk-alias") ?? "", "the name of a disk"),
      sizeBytes,
      interface: keyOf(diskInterfaces, attributeOf(disk, "disk-interface")) ?? "virtio",
      bootable: flagOf(attributeOf(disk, "boot"), false),
      plugged: flagOf(item && childText(item, "IsPlugged"), true),
      readOnly: flagOf(attributeOf(disk, "read-only"), false),
    };
  });
}

function configurationOf(content: XmlElement): MachineConfiguration {
  try {
    return checkConfiguration({ ...defaultConfiguration, ...readFields(content) });
  } catch (error) {
    if (error instanceof RefusedError) throw unreadable(error.message);
    throw error;
  }
}

/**
 * Reads the description of a machine, in oVirt's own form and in the standard's. Network interfaces whose id `isTaken` get a new one.
 *
 * @throws RefusedError (`ovf-unreadable`) for what is not an OVF, and for numbers, names and lists that are out of bounds
 */
export function readOvf(text: string, isTaken: (nicId: string) => boolean): ReadMachine {
  const { root, namespaces } = parseXml(text.trim());
  if (root.name !== "Envelope") throw unreadable("its root is no Envelope");
  const content = contentOf(root);
  dropSecrets(content);
  const disks = readDisks(root, content);
  const nics = readNics(content, isTaken);
  const system = sectionOf(content, "OperatingSystemSection");
  const id = (system && attributeOf(system, "id"))?.toLowerCase();
  const configuration = configurationOf(content);
  const name = bounded(childText(content, "Name") ?? attributeOf(content, "id") ?? "", "the name");
  content.children = content.children.filter(
    (child) => typeof child === "string" || xsiType(child) !== "ovf:SnapshotsSection_Type",
  );
  return {
    id: id !== undefined && isUuid(id) ? id : null,
    name,
    configuration,
    nics,
    disks,
    content: printXml(content, namespaces),
  };
}
