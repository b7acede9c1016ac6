import { randomInt, randomUUID } from "node:crypto";
import { fixedId, zeroId } from "../../../apps/api/src/ovirt/fixed-ids.ts";
import type { Instance } from "../../kit/instance.ts";
import { setStatus } from "../api-only.ts";
import { ask } from "./engine.ts";

/** One of everything, all of one user's project, with words in it that no other project may ever read. */
export interface World {
  machine: string;
  /** Attached to the machine, and in its snapshot. */
  disk: string;
  /** Attached to nothing. */
  free: string;
  nic: string;
  mac: string;
  snapshot: string;
  /** What the snapshot keeps of the disk. */
  layer: string;
  transfer: string;
  /** Of the machine by changed blocks, and ended. */
  backup: string;
  checkpoint: string;
  /** Of the free disk, in a repository. */
  stored: string;
  job: string;
  /** A client's own. */
  event: string;
  /** In every name and description. */
  secret: string;
}

/** Ids that name nothing: what a stranger is told of a real one must be what he is told of these. */
export const emptyWorld = (): World => ({
  machine: randomUUID(),
  disk: randomUUID(),
  free: randomUUID(),
  nic: randomUUID(),
  mac: randomMac(),
  snapshot: randomUUID(),
  layer: randomUUID(),
  transfer: randomUUID(),
  backup: randomUUID(),
  checkpoint: randomUUID(),
  stored: randomUUID(),
  job: randomUUID(),
  event: String(randomInt(2 ** 40, 2 ** 45)),
  secret: randomSecret(),
});

const base = "/ovirt-engine/api";

const randomSecret = (): string => `secret-${randomUUID().slice(0, 8)}`;
const randomMac = (): string => `56:6f:${randomUUID().slice(0, 8).replace(/../g, "$&:").slice(0, 11)}`;

/** A server of images that is heard of whenever this is called. */
export async function beatImageServer(instance: Instance): Promise<void> {
  await instance.sql(
    `INSERT INTO image_servers (id, host, pid, url, backends) VALUES ('11111111-1111-4111-8111-111111111111', 'here', 1, 'http://127.0.0.1:9', '{files}')
     ON CONFLICT (id) DO UPDATE SET heartbeat_at = now()`,
  );
}

/** Whatever the project has asked for has been done, as if workers had been there. */
export async function rest(instance: Instance, project: string): Promise<void> {
  const settle = (table: string, more = ""): Promise<unknown> =>
    instance.sql(`UPDATE ${table} SET status = 'available'${more} WHERE project_id = $1 AND status = 'creating'`, [
      project,
    ]);
  await instance.sql(
    "UPDATE operations SET state = 'succeeded', finished_at = now() WHERE project_id = $1 AND state IN ('queued', 'running')",
    [project],
  );
  await instance.sql("UPDATE groups SET operation_id = NULL WHERE project_id = $1", [project]);
  await settle("volumes");
  await settle("snapshots");
  await settle("group_snapshots", ", taken_at = now()");
}

/** Nothing of a project is left, so that names, ids and addresses are free again. */
export async function forgetProject(instance: Instance, project: string): Promise<void> {
  for (const table of [
    ...["image_transfers", "machine_backups", "machine_checkpoints", "backups"],
    ...["snapshot_attachments", "snapshots", "group_snapshots", "volumes"],
  ]) {
    await instance.sql(`DELETE FROM ${table} WHERE project_id = $1`, [project]);
  }
  await instance.sql("DELETE FROM tasks WHERE operation_id IN (SELECT id FROM operations WHERE project_id = $1)", [
    project,
  ]);
  for (const table of ["operations", "groups", "instances", "ovirt_events"]) {
    await instance.sql(`DELETE FROM ${table} WHERE project_id = $1`, [project]);
  }
}

/** Makes a new world of the user's, at rest: whatever is done to it is allowed by its states. */
export async function makeWorld(instance: Instance, project: string, user: string): Promise<World> {
  const secret = randomSecret();
  const mac = randomMac();
  const make = async (path: string, xml: string): Promise<string> => {
    const reply = await ask(instance, "POST", base + path, { as: user, xml });
    if (![201, 202].includes(reply.status)) throw new Error(`${path}: ${reply.status} ${reply.text}`);
    return String(reply.headers["location"]).split("/").at(-1) ?? "";
  };
  const makeDisk = async (): Promise<string> => {
    const about = `<alias>${secret}</alias><description>${secret}</description>`;
    const id = await make(
      "/disks",
      `<disk>${about}<provisioned_size>512</provisioned_size><format>raw</format></disk>`,
    );
    await setStatus(instance, "volumes", id, "available");
    return id;
  };
  const machine = await make(
    "/vms",
    `<vm><name>${secret}</name><description>${secret}</description><cluster><name>Default</name></cluster></vm>`,
  );
  const disk = await makeDisk();
  await make(`/vms/${machine}/diskattachments`, `<disk_attachment><disk id="${disk}"/></disk_attachment>`);
  const nic = await make(
    `/vms/${machine}/nics`,
    `<nic><name>${secret}</name><mac><address>${mac}</address></mac></nic>`,
  );
  const snapshot = await make(`/vms/${machine}/snapshots`, `<snapshot><description>${secret}</description></snapshot>`);
  await rest(instance, project);
  const moved = await makeDisk();
  await beatImageServer(instance);
  const transfer = await make("/imagetransfers", `<image_transfer><disk id="${moved}"/></image_transfer>`);
  const free = await makeDisk();
  await rest(instance, project);
  const [job] = await instance.sql("SELECT id FROM operations WHERE volume_id = $1", [free]);
  const [kept] = await instance.sql("SELECT id FROM snapshots WHERE group_snapshot_id = $1", [snapshot]);
  const event = await make("/events", eventOf(machine, secret));
  const backups = await addBackups(instance, project, { machine, disk, free, secret });
  return { machine, disk, free, nic, mac, snapshot, layer: kept.id, transfer, ...backups, job: job.id, event, secret };
}

/** What workers would have left behind. */
async function addBackups(
  instance: Instance,
  project: string,
  { machine, disk, free, secret }: Pick<World, "machine" | "disk" | "free" | "secret">,
): Promise<Pick<World, "backup" | "checkpoint" | "stored">> {
  const [backup, checkpoint, stored] = [randomUUID(), randomUUID(), randomUUID()];
  await instance.sql(
    `INSERT INTO machine_backups (id, project_id, user_id, request_id, instance_id, description, status, to_checkpoint_id, worker_id,
       worker_host, lease_until, ended_at) VALUES ($1, $2, 'u', 'r', $3, $4, 'succeeded', $5, 'w', 'here', now(), now())`,
    [backup, project, machine, secret, checkpoint],
  );
  await instance.sql(
    "INSERT INTO machine_backup_disks (backup_id, volume_id, position, recorded) VALUES ($1, $2, 0, true)",
    [backup, disk],
  );
  await instance.sql(
    `INSERT INTO machine_checkpoints (id, project_id, instance_id, description, status) VALUES ($1, $2, $3, $4, 'created')`,
    [checkpoint, project, machine, secret],
  );
  await instance.sql("INSERT INTO machine_checkpoint_disks (checkpoint_id, volume_id, position) VALUES ($1, $2, 0)", [
    checkpoint,
    disk,
  ]);
  await instance.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, name, status, size_gib, availability_zone, repository, container,
       service_metadata, volume_bytes, data_timestamp) VALUES ($1, $2, 'u', $3, $4, 'available', 1, 'nova', 'main', 'c', 'p', 512, now())`,
    [stored, project, free, secret],
  );
  return { backup, checkpoint, stored };
}

const eventOf = (machine: string, secret: string): string =>
  `<event><origin>${secret}</origin><custom_id>1</custom_id><severity>normal</severity><description>${secret}</description><vm id="${machine}"/></event>`;

const ovfOf = ({ machine, free, mac }: World): string =>
  `<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ovf:version="4.4.0.0">` +
  `<Section xsi:type="ovf:DiskSection_Type"><Disk ovf:diskId="${free}" ovf:size="1"/></Section>` +
  `<Content ovf:id="${machine}" xsi:type="ovf:VirtualSystem_Type"><Name>kept</Name><Section xsi:type="ovf:VirtualHardwareSection_Type">` +
  `<Item><rasd:InstanceId>${free}</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType></Item>` +
  `<Item><rasd:Name>nic1</rasd:Name><rasd:ResourceType>10</rasd:ResourceType><rasd:MACAddress>${mac}</rasd:MACAddress></Item>` +
  `</Section></Content></ovf:Envelope>`;

const action = (): string[] => ["<action/>"];

/**
 * What each route is sent, as XML; the first is a good one for the world's own project. Those of a route that name nothing of the world are
 * functions without parameters.
 */
export const sampleBodies: Readonly<Record<string, (world: World) => string[]>> = {
  "POST /disks": () => [
    `<disk><alias>other</alias><provisioned_size>512</provisioned_size><format>raw</format></disk>`,
    `<disk><storage_domains><storage_domain id="${zeroId}"/></storage_domains><provisioned_size>512</provisioned_size><format>raw</format></disk>`,
  ],
  "PUT /disks/:id": () => ["<disk><alias>changed</alias><provisioned_size>1024</provisioned_size></disk>"],
  "POST /events": ({ machine, secret }) => [
    `<event><origin>${randomUUID()}</origin><custom_id>1</custom_id><severity>normal</severity><description>other</description></event>`,
    eventOf(machine, secret),
    eventOf(machine, randomUUID()),
  ],
  "POST /imagetransfers": ({ free, disk, layer, stored, backup }) => [
    `<image_transfer><disk id="${free}"/></image_transfer>`,
    `<image_transfer><image id="${free}"/></image_transfer>`,
    `<image_transfer><direction>download</direction><disk id="${disk}"/></image_transfer>`,
    `<image_transfer><direction>download</direction><snapshot id="${layer}"/></image_transfer>`,
    `<image_transfer><direction>download</direction><backup id="${stored}"/></image_transfer>`,
    `<image_transfer><direction>download</direction><disk id="${disk}"/><backup id="${backup}"/></image_transfer>`,
  ],
  "ACTION /imagetransfers/:id/cancel": action,
  "ACTION /imagetransfers/:id/extend": action,
  "ACTION /imagetransfers/:id/finalize": action,
  "ACTION /imagetransfers/:id/pause": action,
  "ACTION /imagetransfers/:id/resume": action,
  "POST /vms/:vm/backups": ({ disk, checkpoint, backup }) => [
    `<backup><disks><disk id="${disk}"/></disks></backup>`,
    `<backup><from_checkpoint_id>${checkpoint}</from_checkpoint_id><disks><disk id="${disk}"/></disks></backup>`,
    `<backup id="${backup}"><disks><disk id="${disk}"/></disks></backup>`,
  ],
  "ACTION /vms/:vm/backups/:id/finalize": action,
  "POST /vms/:vm/diskattachments": ({ free, disk, snapshot }) => [
    `<disk_attachment><disk id="${free}"/></disk_attachment>`,
    `<disk_attachment><disk id="${disk}"><snapshot id="${snapshot}"/></disk></disk_attachment>`,
  ],
  "PUT /vms/:vm/diskattachments/:disk": () => ["<disk_attachment><bootable>true</bootable></disk_attachment>"],
  "POST /vms/:vm/disks": ({ free, disk, snapshot }) => [
    `<disk id="${free}"/>`,
    `<disk id="${disk}"><snapshot id="${snapshot}"/></disk>`,
  ],
  "PUT /vms/:vm/disks/:disk": () => ["<disk><bootable>true</bootable></disk>"],
  "ACTION /vms/:vm/disks/:disk/activate": action,
  "ACTION /vms/:vm/disks/:disk/deactivate": action,
  "POST /vms/:vm/nics": ({ mac }) => [
    `<nic><name>${randomUUID()}</name></nic>`,
    `<nic><name>${randomUUID()}</name><mac><address>${mac}</address></mac></nic>`,
  ],
  "PUT /vms/:vm/nics/:nic": ({ mac }) => [
    "<nic><linked>false</linked></nic>",
    `<nic><mac><address>${mac}</address></mac></nic>`,
  ],
  "ACTION /vms/:vm/nics/:nic/activate": action,
  "ACTION /vms/:vm/nics/:nic/deactivate": action,
  "POST /vms/:vm/snapshots": ({ disk }) => [
    "<snapshot><description>other</description></snapshot>",
    `<snapshot><description>other</description><disk_attachments><disk_attachment><disk id="${disk}"/></disk_attachment></disk_attachments></snapshot>`,
  ],
  "ACTION /vms/:vm/snapshots/:snapshot/restore": action,
  "ACTION /vms/:vm/previewsnapshot": ({ snapshot }) => [`<action><snapshot id="${snapshot}"/></action>`],
  "ACTION /vms/:vm/commitsnapshot": action,
  "ACTION /vms/:vm/undosnapshot": action,
  "POST /vms": (world) => [
    `<vm><name>${randomUUID()}</name><cluster><name>Default</name></cluster></vm>`,
    `<vm><name>${world.secret}</name><cluster><name>Default</name></cluster><initialization><configuration><type>ovf</type>` +
      `<data>${ovfOf(world).replaceAll("&", "&amp;").replaceAll("<", "&lt;")}</data></configuration></initialization></vm>`,
  ],
  "PUT /vms/:vm": ({ secret }) => ["<vm><description>changed</description></vm>", `<vm><name>${secret}</name></vm>`],
  "ACTION /vms/:vm/freezefilesystems": action,
  "ACTION /vms/:vm/thawfilesystems": action,
  "ACTION /vms/:vm/start": action,
  "ACTION /vms/:vm/stop": action,
  "ACTION /vms/:vm/shutdown": action,
};

/** What the variable parts of a path are called in a world; those that no project has are the same in all. */
const parts: Readonly<Record<string, (world: World) => string>> = {
  "/disks/:id": ({ free }) => free,
  "/imagetransfers/:id": ({ transfer }) => transfer,
  "/backups/:id": ({ backup }) => backup,
  "/checkpoints/:id": ({ checkpoint }) => checkpoint,
  "/jobs/:id": ({ job }) => job,
  "/events/:id": ({ event }) => event,
  "/datacenters/:id": () => fixedId("data-center", "Default"),
  "/clusters/:id": () => fixedId("cluster", "Default"),
  "/networks/:id": () => fixedId("network", "ovirtmgmt"),
  "/vnicprofiles/:id": () => fixedId("vnic-profile", "ovirtmgmt"),
  "/hosts/:id": () => fixedId("host", "here"),
  "/tags/:id": () => zeroId,
  "/templates/:id": () => zeroId,
  ":domain": () => fixedId("storage-domain", "files"),
  ":vm": ({ machine }) => machine,
  ":disk": ({ disk }) => disk,
  ":nic": ({ nic }) => nic,
  ":snapshot": ({ snapshot }) => snapshot,
  ":layer": ({ layer }) => layer,
};

/** The variable parts of a route's path. */
export const partsOf = (path: string): string[] => path.match(/\/\w+\/:id|:(?!id)\w+/g) ?? [];

/** The path with each variable part as `worldOf` says for it. */
export const fillPath = (path: string, worldOf: (part: string) => World): string =>
  path.replace(/\/\w+\/:id|:(?!id)\w+/g, (part) => {
    const value = parts[part];
    if (!value) throw new Error(`nothing stands for ${part} in ${path}: tell the tenant matrix`);
    const id = value(worldOf(part));
    return part.startsWith(":") ? id : part.replace(":id", id);
  });
