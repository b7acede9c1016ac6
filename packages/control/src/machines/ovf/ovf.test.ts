import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RefusedError } from "../../errors.ts";
import { biosTypes, bootDevices, defaultConfiguration, machineTypes } from "../configuration.ts";
import { diskInterfaces, nicInterfaces } from "./hardware.ts";
import { readOvf } from "./read.ts";
import { type MachineDescription, writeOvf } from "./write.ts";
import { parseXml, printXml, type XmlElement } from "./xml.ts";

const MiB = 1024 ** 2;
const now = new Date("2026-03-04T05:06:07Z");
const seed = Date.now() % 2 ** 31;
const check = <T>(property: fc.IProperty<T>): void => fc.assert(property, { seed, numRuns: 40 });

const word = fc.string({ maxLength: 20, unit: "binary" }).filter((text) => {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: characters that no XML can hold
  return !/[\u0000-\u001f\ufffe\uffff]/.test(text) && text.isWellFormed() && text === text.trim();
});
const plain = fc.stringMatching(/^[a-z][a-z0-9]{0,8}$/);
const memory = fc.integer({ min: 1, max: 64 * 1024 * 1024 }).map((mebibytes) => mebibytes * MiB);
const cores = fc.integer({ min: 1, max: 16 });

const configuration = fc.record({
  description: word,
  comment: word,
  memory,
  memoryGuaranteed: fc.option(memory),
  memoryMax: fc.option(memory),
  cpu: fc.record({ sockets: cores, cores, threads: cores }),
  cpuModel: fc.option(word),
  os: word.filter((text) => text !== ""),
  bios: fc.constantFrom(...biosTypes),
  emulatedMachine: fc.option(word),
  type: fc.constantFrom(...machineTypes),
  ioThreads: fc.integer({ min: 0, max: 8 }),
  deleteProtected: fc.boolean(),
  stateless: fc.boolean(),
  highAvailability: fc.record({ enabled: fc.boolean(), priority: fc.integer({ min: 0, max: 100 }) }),
  timeZone: fc.option(word),
  bootDevices: fc.constantFrom(...bootDevices.map((device) => [device])),
  customProperties: fc.array(fc.record({ name: plain, value: plain }), { maxLength: 3 }),
  origin: fc.constantFrom("ovirt", "kvm", "vmware"),
});

const macOf = (numbers: readonly number[]): string =>
  numbers.map((number) => number.toString(16).padStart(2, "0")).join(":");

const nic = fc.record({
  id: fc.uuid(),
  mac: fc.array(fc.integer({ min: 0, max: 255 }), { minLength: 6, maxLength: 6 }).map(macOf),
  network: fc.option(plain),
  interface: fc.constantFrom(...Object.keys(nicInterfaces)),
  linked: fc.boolean(),
  plugged: fc.boolean(),
});

const disk = fc.record({
  id: fc.uuid(),
  imageId: fc.uuid(),
  sizeBytes: fc.integer({ min: 1, max: 2 ** 32 }).map((sectors) => sectors * 512),
  alias: plain,
  format: fc.constantFrom("cow" as const, "raw" as const),
  interface: fc.constantFrom(...Object.keys(diskInterfaces)),
  bootable: fc.boolean(),
  plugged: fc.boolean(),
  readOnly: fc.boolean(),
  incremental: fc.boolean(),
  snapshotId: fc.uuid(),
  createdAt: fc.constant(now),
});

const machine: fc.Arbitrary<MachineDescription> = fc.record({
  id: fc.uuid(),
  name: word.filter((text) => text !== ""),
  createdAt: fc.constant(now),
  configuration,
  nics: fc
    .uniqueArray(nic, { maxLength: 4, selector: ({ id }) => id })
    .map((nics) => nics.map((each, at) => ({ ...each, name: `nic${at + 1}` }))),
  disks: fc.uniqueArray(disk, { maxLength: 4, selector: ({ id }) => id }),
  snapshots: fc.constant([]),
  content: fc.constant(null),
});

/** Elements that nobody here knows, at any depth, with attributes of several namespaces. */
const { unknown } = fc.letrec<{ unknown: XmlElement }>((tie) => ({
  unknown: fc.record({
    name: plain.map((name) => `x:${name}Unknown`),
    attributes: fc.dictionary(plain, word, { maxKeys: 2 }).map((all) => new Map(Object.entries(all))),
    children: fc.oneof(
      { depthSize: "small" },
      word.map((text) => (text === "" ? [] : [text])),
      fc.array(tie("unknown"), { maxLength: 2 }),
    ),
  }),
}));

const never = (): boolean => false;
const print = (each: XmlElement): string => printXml(each, new Map([["x", "urn:other"]]));

/** All elements of a document of the namespace that is not known here, as text. */
function foreign(of: XmlElement): string[] {
  const own = of.name.startsWith("x:") ? [print(of)] : [];
  return own.length > 0 ? own : of.children.flatMap((child) => (typeof child === "string" ? [] : foreign(child)));
}

/** Puts elements into a written OVF: into its content, its hardware, and the first of the items. */
function withForeign(ovf: string, elements: readonly XmlElement[]): string {
  const { root, namespaces } = parseXml(ovf);
  const content = root.children.find(
    (child): child is XmlElement => typeof child !== "string" && child.name === "Content",
  );
  const hardware = content?.children.find(
    (child): child is XmlElement =>
      typeof child !== "string" && child.attributes.get("xsi:type") === "ovf:VirtualHardwareSection_Type",
  );
  const item = hardware?.children.find(
    (child): child is XmlElement => typeof child !== "string" && child.name === "Item",
  );
  const places = [content, hardware, item];
  for (const [at, each] of elements.entries()) places[at % 3]?.children.push(each);
  return printXml({ ...root, name: "ovf:Envelope" }, new Map([...namespaces, ["x", "urn:other"]]));
}

describe(`the description of a machine (seed ${seed})`, () => {
  it("says everything that is known of it", () => {
    check(
      fc.property(machine, (given) => {
        const read = readOvf(writeOvf(given, now), never);
        expect(read).toMatchObject({ id: given.id, name: given.name, configuration: given.configuration });
        expect(read.nics).toEqual(given.nics);
        expect(read.disks.map(({ candidates, sizeBytes }) => ({ id: candidates[0], sizeBytes }))).toEqual(
          given.disks.map(({ id, sizeBytes }) => ({ id, sizeBytes })),
        );
        for (const [at, each] of read.disks.entries()) {
          const { alias, interface: kind, bootable, plugged, readOnly } = given.disks[at] ?? {};
          expect(each).toMatchObject({ alias, interface: kind, bootable, plugged, readOnly });
        }
      }),
    );
  });

  it("keeps what nobody here understands, whatever is changed of the rest", () => {
    check(
      fc.property(
        machine,
        configuration,
        fc.array(unknown, { minLength: 1, maxLength: 6 }),
        (given, changed, elements) => {
          const ovf = withForeign(writeOvf(given, now), elements);
          const { content, name, nics } = readOvf(ovf, never);
          const again = writeOvf({ ...given, name, nics, configuration: changed, content }, now);
          expect(foreign(parseXml(again).root).sort()).toEqual(foreign(parseXml(ovf).root).sort());
          expect(readOvf(again, never).configuration).toEqual(changed);
        },
      ),
    );
  });

  it("is the same when it is written from what was read", () => {
    check(
      fc.property(machine, fc.array(unknown, { maxLength: 4 }), (given, elements) => {
        const ovf = withForeign(writeOvf(given, now), elements);
        const { content, name, nics, configuration: read } = readOvf(ovf, never);
        const again = writeOvf({ ...given, name, nics, configuration: read, content }, now);
        const third = writeOvf(
          { ...given, name, nics, configuration: read, content: readOvf(again, never).content },
          now,
        );
        expect(third).toBe(again);
      }),
    );
  });
});

const envelope = (inside: string, more = ""): string =>
  `<?xml version="1.0"?>${more}<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ovf:version="0.9">${inside}</ovf:Envelope>`;

it("documents of other writers are read: namespaces without a slash, InstanceID, sections by their names", () => {
  const [diskId, nicId, vmId] = [
    "11111111-2222-4333-8444-555555555555",
    "21111111-2222-4333-8444-555555555555",
    "31111111-2222-4333-8444-555555555555",
  ];
  const read = readOvf(
    envelope(`<References><File ovf:href="${diskId}" ovf:id="${diskId}"/></References>
      <DiskSection><Disk ovf:diskId="${diskId}" ovf:fileRef="${diskId}" ovf:size="11" ovf:boot="True"/></DiskSection>
      <VirtualSystem ovf:id="out"><Name>v2v</Name><nvramData>c2VjcmV0</nvramData>
      <VmInit ovf:hostname="h" ovf:rootPassword="secret"/>
      <OperatingSystemSection ovf:id="${vmId}"><Description>rhel_9x64</Description></OperatingSystemSection>
      <VirtualHardwareSection>
        <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
        <Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
        <Item><rasd:InstanceID>${nicId}</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType><rasd:MACAddress>52:54:00:AA:BB:CC</rasd:MACAddress></Item>
      </VirtualHardwareSection></VirtualSystem>`),
    never,
  );
  expect(read).toMatchObject({
    id: vmId,
    name: "v2v",
    configuration: {
      ...defaultConfiguration,
      os: "rhel_9x64",
      memory: 2048 * MiB,
      cpu: { sockets: 4, cores: 1, threads: 1 },
    },
    nics: [{ id: nicId, mac: "52:54:00:aa:bb:cc", name: "nic1" }],
    disks: [{ candidates: [diskId], sizeBytes: 11 * 1024 ** 3, bootable: true }],
  });
  expect(read.content).toContain("c2VjcmV0");
  expect(read.content).not.toContain("secret");
});

const deep = (depth: number): string => `${"<a>".repeat(depth)}${"</a>".repeat(depth)}`;
const hardware = (item: string): string =>
  `<Content><Section xsi:type="ovf:VirtualHardwareSection_Type">${item}</Section></Content>`;
const item = (type: number, more: string): string =>
  `<Item><rasd:InstanceId>1</rasd:InstanceId><rasd:ResourceType>${type}</rasd:ResourceType>${more}</Item>`;

it.each([
  ["nothing", ""],
  ["no XML", "memory=12"],
  ["a document that ends early", envelope("<Content>").slice(0, -20)],
  ["another root", "<vm/>"],
  ["no content", envelope("<References/>")],
  ["a DOCTYPE", envelope("<Content/>", '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>')],
  ["an entity", envelope("<Content><Name>&a;</Name></Content>")],
  ["a processing instruction", envelope("<Content><?php x ?></Content>")],
  ["a character that XML does not allow", envelope("<Content><Name>&#1;</Name></Content>")],
  ["half of a pair", envelope("<Content><Name>\ud800</Name></Content>")],
  ["too much depth", envelope(`<Content>${deep(70)}</Content>`)],
  ["too many elements", envelope(`<Content>${"<a/>".repeat(100_001)}</Content>`)],
  ["too much of everything", envelope(`<Content><Name>${"x".repeat(9 * MiB)}</Name></Content>`)],
  ["too much memory", envelope(hardware(item(4, "<rasd:VirtualQuantity>99999999999</rasd:VirtualQuantity>")))],
  ["too many processors", envelope(hardware(item(3, "<rasd:num_of_sockets>5000</rasd:num_of_sockets>")))],
  ["no processor", envelope(hardware(item(3, "<rasd:num_of_sockets>0</rasd:num_of_sockets>")))],
  ["a name that is too long", envelope(`<Content><Name>${"n".repeat(256)}</Name></Content>`)],
  ["a description that is too long", envelope(`<Content><Description>${"n".repeat(4097)}</Description></Content>`)],
  ["too many interfaces", envelope(hardware(item(10, "").repeat(65)))],
  ["a disk beyond all bounds", envelope('<DiskSection><Disk ovf:size="99999999999"/></DiskSection><Content/>')],
])("an OVF with %s is refused as one that cannot be read", (_what, ovf) => {
  expect(() => readOvf(ovf, never)).toThrow(RefusedError);
  expect(() => readOvf(ovf, never)).toThrow(expect.objectContaining({ rule: "ovf-unreadable" }));
});
