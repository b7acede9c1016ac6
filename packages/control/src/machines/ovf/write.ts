import type { MachineConfiguration } from "../configuration.ts";
import { systemOf, writeFields } from "./fields.ts";
import {
  type DiskInterface,
  diskInterfaces,
  type OvfDisk,
  type OvfNic,
  ovfTime,
  writeDisks,
  writeNics,
} from "./hardware.ts";
import { childText, element, ownNamespaces, parseXml, printXml, setChild, type XmlElement } from "./xml.ts";

const GiB = 1024 ** 3;
const blank = "00000000-0000-0000-0000-000000000000";
const declaration = '<?xml version="1.0" encoding="UTF-8"?>';
const cow = "http://www.gnome.org/~markmc/qcow-image-format.html";
const raw = "http://en.wikipedia.org/wiki/Byte";

export interface OvfSnapshot {
  id: string;
  kind: "active" | "regular";
  description: string;
  createdAt: Date;
}

/** Everything that the OVF of a machine says. */
export interface MachineDescription {
  id: string;
  name: string;
  createdAt: Date;
  configuration: MachineConfiguration;
  nics: readonly OvfNic[];
  disks: readonly OvfDisk[];
  snapshots: readonly OvfSnapshot[];
  /** The content that the machine was made of (`readOvf`). */
  content: string | null;
}

function references(disks: readonly OvfDisk[]): XmlElement {
  const files = disks.map(({ id, imageId, sizeBytes }) =>
    element("File", {
      "ovf:href": `${id}/${imageId}`,
      "ovf:id": imageId,
      "ovf:size": String(sizeBytes),
      "ovf:description": "Active VM",
      "ovf:disk_storage_type": "IMAGE",
    }),
  );
  return element("References", {}, files);
}

function networks(nics: readonly OvfNic[]): XmlElement {
  const names = [...new Set(nics.flatMap(({ network }) => network ?? []))];
  const list = names.map((name) => element("Network", { "ovf:name": name }));
  return element("NetworkSection", {}, [element("Info", {}, ["List of networks"]), ...list]);
}

/** Sizes are whole GiB in oVirt's document, rounded up: the exact one stands beside it, and is read first. */
function diskSection(disks: readonly OvfDisk[]): XmlElement {
  const list = disks.map((disk) => {
    const gib = String(Math.max(1, Math.ceil(disk.sizeBytes / GiB)));
    return element("Disk", {
      "ovf:diskId": disk.imageId,
      "ovf:size": gib,
      "ovf:actual_size": gib,
      "bk:size-bytes": String(disk.sizeBytes),
      "ovf:vm_snapshot_id": disk.snapshotId,
      "ovf:parentRef": "",
      "ovf:fileRef": `${disk.id}/${disk.imageId}`,
      "ovf:format": disk.format === "cow" ? cow : raw,
      "ovf:volume-format": disk.format === "cow" ? "COW" : "RAW",
      "ovf:volume-type": "Sparse",
      "ovf:disk-interface": diskInterfaces[disk.interface as DiskInterface] ?? diskInterfaces.virtio,
      "ovf:read-only": String(disk.readOnly),
      "ovf:shareable": "false",
      "ovf:boot": String(disk.bootable),
      "ovf:pass-discard": "false",
      "ovf:incremental-backup": String(disk.incremental),
      "ovf:disk-alias": disk.alias,
      "ovf:wipe-after-delete": "false",
    });
  });
  return element("Section", { "xsi:type": "ovf:DiskSection_Type" }, [
    element("Info", {}, ["List of Virtual Disks"]),
    ...list,
  ]);
}

function snapshotsSection(snapshots: readonly OvfSnapshot[]): XmlElement {
  const list = snapshots.map(({ id, kind, description, createdAt }) =>
    element("Snapshot", { "ovf:id": id }, [
      element("Type", {}, [kind.toUpperCase()]),
      element("Description", {}, [description]),
      element("CreationDate", {}, [ovfTime(createdAt)]),
    ]),
  );
  return element("Section", { "xsi:type": "ovf:SnapshotsSection_Type" }, list);
}

/** What oVirt's reader expects and nothing here decides; only where the content does not say it. */
const expected = {
  Generation: "1",
  ClusterCompatibilityVersion: "4.7",
  ClusterName: "Default",
  TemplateId: blank,
  TemplateName: "Blank",
};

function newContent(): XmlElement {
  return element("Content", { "ovf:id": "out", "xsi:type": "ovf:VirtualSystem_Type" });
}

/** The OVF of a machine, with everything that it was made of and that nobody here understands. */
export function writeOvf(machine: MachineDescription, now: Date): string {
  const document = machine.content === null ? null : parseXml(machine.content);
  const content = document?.root ?? newContent();
  setChild(content, "Name", machine.name);
  if (childText(content, "CreationDate") === undefined) setChild(content, "CreationDate", ovfTime(machine.createdAt));
  setChild(content, "ExportDate", ovfTime(now));
  for (const [name, text] of Object.entries(expected)) {
    if (childText(content, name) === undefined) setChild(content, name, text);
  }
  writeFields(content, machine.configuration);
  const system = systemOf(content);
  system.attributes.set("ovf:id", machine.id);
  if (!system.attributes.has("ovf:required")) system.attributes.set("ovf:required", "false");
  writeNics(content, machine.nics);
  writeDisks(content, machine.disks);
  content.children.push(snapshotsSection(machine.snapshots));
  const envelope = element("ovf:Envelope", { "ovf:version": "4.4.0.0" }, [
    references(machine.disks),
    networks(machine.nics),
    diskSection(machine.disks),
    content,
  ]);
  return `${declaration}${printXml(envelope, document?.namespaces ?? ownNamespaces)}`;
}
