import {
  type Database,
  formatIn,
  GiB,
  getVolume,
  gibOf,
  IdTakenError,
  InvalidError,
  isUuid,
  listVolumes,
  type Principal,
  requestVolume,
  requestVolumeDelete,
  requestVolumeExtend,
  updateVolume,
  type VolumeRow,
} from "@tephra/control";
import type { Context } from "../context.ts";
import type { Body } from "./body.ts";
import {
  type Call,
  created,
  creationStatus,
  done,
  emptyBelow,
  type Handle,
  type Route,
  shown,
  whenSettled,
} from "./call.ts";
import { type Element, type Fields, listOf, reference } from "./element.ts";
import { BareStatus, incomplete, invalidValue, refused } from "./faults.ts";
import { refuseFollow } from "./follow.ts";
import { type Searchable, searched } from "./search.ts";
import { storageDomainId } from "./storage-domains.ts";

/** Disks are whole sectors; other sizes are rounded up. */
const sectorBytes = 512;
/** Largest size of a disk: 64 TiB. */
const sizeMax = 64 * 1024 * GiB;
const nameMax = 255;
const descriptionMax = 4_096;

type DiskRow = Omit<VolumeRow, "metadata">;

/** Statuses of a volume in which the disk is `ok`; after failures it is `illegal`, otherwise something is being done to it. */
const usable = new Set(["available", "in-use", "reserved", "attaching", "detaching"]);

export const diskStatus = ({ status }: Pick<DiskRow, "status">): "ok" | "locked" | "illegal" => {
  if (usable.has(status)) return "ok";
  return status.startsWith("error") ? "illegal" : "locked";
};

/** The format of the disks of a backend. */
export const diskFormat = ({ config }: Context, backend: string): "cow" | "raw" =>
  formatIn(config.volume_backends, backend);

const aliasOf = ({ id, name }: Pick<DiskRow, "id" | "name">): string => name ?? id;

/**
 * What every representation of a disk has, of the layer that is written or of another. Its allocated bytes are not known here: the sizes
 * that stand for them are the upper bound.
 */
export function diskFields(
  context: Context,
  row: Omit<DiskRow, "attachments">,
  layer = { id: row.imageId, bytes: row.sizeBytes },
): Fields {
  const { id: imageId, bytes: size } = layer;
  return {
    name: aliasOf(row),
    description: row.description ?? "",
    actual_size: size,
    alias: aliasOf(row),
    backup: row.tracksChanges ? "incremental" : "none",
    content_type: "data",
    format: diskFormat(context, row.backend),
    image_id: imageId,
    initial_size: size,
    propagate_errors: false,
    provisioned_size: size,
    shareable: false,
    sparse: true,
    status: diskStatus(row),
    storage_type: "image",
    total_size: size,
    wipe_after_delete: false,
    storage_domains: listOf("storage_domain", [reference("storagedomains", storageDomainId(row.backend))]),
  };
}

/** A volume as a disk. */
export const diskView = (context: Context, row: DiskRow): Element => ({
  id: row.id,
  path: `/disks/${row.id}`,
  links: ["permissions", "disksnapshots", "statistics"],
  fields: diskFields(context, row),
});

interface ListedDisk {
  row: DiskRow;
  vmNames: readonly string[];
}

/** Every disk of the project, with the names of the machines that it is attached to. */
async function disksOf(database: Database, principal: Principal): Promise<ListedDisk[]> {
  const page = { sort: [{ key: "createdAt", direction: "asc" }], limit: listedMax, offset: 0 } as const;
  const query = { filter: {}, allProjects: false, withCount: false, page };
  const [{ rows }, machines] = await Promise.all([
    listVolumes(database, principal, query),
    database.instance.findMany({ where: { projectId: principal.projectId }, select: { id: true, name: true } }),
  ]);
  const names = new Map(machines.map(({ id, name }) => [id, name]));
  return rows.map((row) => ({
    row,
    vmNames: row.attachments.flatMap(({ serverId }) => names.get(serverId ?? "") ?? []),
  }));
}

/** Disks of a project that a list can have. */
const listedMax = 100_000;

const searchable: Searchable<ListedDisk> = {
  fields: {
    name: ({ row }) => [aliasOf(row)],
    alias: ({ row }) => [aliasOf(row)],
    id: ({ row }) => [row.id],
    description: ({ row }) => [row.description],
    status: ({ row }) => [diskStatus(row)],
    vm_names: ({ vmNames }) => vmNames,
    "storage.name": ({ row }) => [row.backend],
  },
  bare: ["alias", "description"],
};

const list: Handle = async (context, call) => {
  refuseFollow(call.follow);
  const domain = call.params["domain"]?.toLowerCase();
  const domains = context.config.volume_backends.map(({ name }) => storageDomainId(name));
  if (domain !== undefined && !domains.includes(domain)) throw new BareStatus(404);
  const all = await disksOf(context.database, call.principal);
  const inDomain = all.filter(({ row }) => domain === undefined || storageDomainId(row.backend) === domain);
  const found = searched(call, inDomain, searchable);
  return shown(
    "disks",
    listOf(
      "disk",
      found.map(({ row }) => diskView(context, row)),
    ),
  );
};

const idOf = ({ params }: Call): string => params["id"] ?? "";

const creations = { ok: "complete", locked: "in_progress", illegal: "failed" } as const;

const showCreation: Handle = async ({ database }, call) => {
  const row = await getVolume(database, call.principal, idOf(call));
  return creationStatus(
    row.status === "creating" || row.status.startsWith("error") ? creations[diskStatus(row)] : "complete",
  );
};

/** Whether a backup of its machine, which has the disk now, reads all of it. Clients ask the disk itself for that. */
async function backupMode({ database }: Context, { id, machineBackupId }: DiskRow): Promise<Fields> {
  if (machineBackupId === null) return {};
  const where = { backupId_volumeId: { backupId: machineBackupId, volumeId: id } };
  const part = await database.machineBackupDisk.findUnique({ where, select: { sinceId: true } });
  return part === null ? {} : { backup_mode: backupModeOf(part) };
}

/** `sinceId`: the checkpoint since which changes are told. */
export const backupModeOf = ({ sinceId }: { sinceId: string | null }): "full" | "incremental" =>
  sinceId === null ? "full" : "incremental";

const show: Handle = async (context, call) => {
  refuseFollow(call.follow);
  const row = await getVolume(context.database, call.principal, idOf(call));
  const view = diskView(context, row);
  return shown("disk", { ...view, fields: { ...view.fields, ...(await backupMode(context, row)) } });
};

/** A text that is not longer than it may be. @throws OvirtFault 400 */
function shortText(body: Body, name: string, max: number): string | undefined {
  const text = body.string(name);
  if (text !== undefined && text.length > max) throw invalidValue(`${name}: longer than ${max} characters`);
  return text;
}

/** The size, under its name of either version, in whole sectors. @throws OvirtFault 400 */
function sizeOf(body: Body): number | undefined {
  const name = body.has("provisioned_size") ? "provisioned_size" : "size";
  const size = body.integer([name], { min: 1, max: sizeMax });
  return size === undefined ? undefined : Math.ceil(size / sectorBytes) * sectorBytes;
}

const isOf = (domain: Body, backend: string): boolean =>
  domain.id === undefined ? domain.string("name") === backend : domain.id.toLowerCase() === storageDomainId(backend);

/**
 * The backend that a new disk goes to: that of the storage domain which the request names, else the first that has disks of the format.
 *
 * @throws OvirtFault 400 for an unknown domain, or one whose disks have another format
 */
function backendFor({ config }: Context, body: Body, format: "cow" | "raw"): string {
  const [named] = body.items("storage_domains", "storage_domain") ?? body.all("storage_domain");
  // Ansible sends an empty element where its user has named none.
  const domain = named?.id === undefined && !named?.has("name") ? undefined : named;
  const known = config.volume_backends.filter(({ name }) => !domain || isOf(domain, name));
  if (known.length === 0) {
    throw refused(["bad-parameters", "Cannot add Virtual Disk. The specified Storage Domain does not exist."]);
  }
  const fitting = known.find(({ name }) => formatIn(config.volume_backends, name) === format);
  if (!fitting) {
    const configuration = `${format.toUpperCase()} Sparse`;
    throw refused([
      "bad-parameters",
      `Cannot add Virtual Disk. Disk configuration (${configuration}) is incompatible with the storage domain type.`,
    ]);
  }
  return fitting.name;
}

/** @throws OvirtFault 400 */
function refuseRawTracking(format: "cow" | "raw", backup: string | undefined): void {
  if (backup === "incremental" && format === "raw") {
    throw refused(["bad-parameters", "Incremental backup is not supported for RAW format disks."]);
  }
}

/** What a request says of a new disk. @throws OvirtFault 400 */
function newDiskOf(context: Context, body: Body) {
  const sizeBytes = sizeOf(body);
  const format = body.oneOf(["format"], ["cow", "raw"]);
  const missing = [
    ...(sizeBytes === undefined ? ["provisioned_size"] : []),
    ...(format === undefined ? ["format"] : []),
  ];
  if (sizeBytes === undefined || format === undefined) throw incomplete("Disk", missing, "add");
  const backup = body.oneOf(["backup"], ["none", "incremental"]);
  refuseRawTracking(format, backup);
  for (const flag of ["sparse", "shareable", "bootable", "propagate_errors", "wipe_after_delete"]) body.boolean(flag);
  const { id } = body;
  if (id !== undefined && !isUuid(id)) throw invalidValue(`id: '${id.slice(0, 64)}' is not a UUID`);
  return {
    ...(id !== undefined && { id: id.toLowerCase() }),
    name: shortText(body, "alias", nameMax) ?? shortText(body, "name", nameMax) ?? null,
    description: shortText(body, "description", descriptionMax) ?? null,
    metadata: {},
    backend: backendFor(context, body, format),
    tracksChanges: backup === "incremental",
    sizeBytes,
    sizeGib: gibOf(sizeBytes),
    source: null,
  };
}

/** The disk once it is no longer being made, or as it is when the client has waited long enough. */
export const whenMade = ({ database }: Context, call: Call, row: VolumeRow): Promise<VolumeRow> =>
  whenSettled(
    call,
    row,
    ({ status }) => status !== "creating",
    () => getVolume(database, call.principal, row.id),
  );

/** Makes a disk as a request describes it. @throws OvirtFault, QuotaExceededError */
export async function addDisk(context: Context, call: Call, body: Body): Promise<VolumeRow> {
  try {
    return await requestVolume(context.database, context.config, call.principal, newDiskOf(context, body));
  } catch (error) {
    if (!(error instanceof IdTakenError)) throw error;
    throw refused(["bad-parameters", "Cannot add Virtual Disk. The disk ID already exists."]);
  }
}

const add: Handle = async (context, call) => {
  const row = await addDisk(context, call, call.body);
  const seen = call.waits ? await whenMade(context, call, row) : row;
  return created("disk", diskView(context, seen), seen.status === "creating");
};

/** Why a disk cannot be changed or removed now, in oVirt's words. @throws OvirtFault 400, 409 */
function refuseUnready(row: DiskRow, verb: "remove" | "edit"): void {
  const cannot = `Cannot ${verb} Virtual Disk`;
  if (diskStatus(row) !== "locked") return;
  const locked = `The following disks are locked: ${aliasOf(row)}. Please try again in a few minutes.`;
  throw refused(["conflict", `${cannot}: ${locked}`]);
}

/**
 * Reads what a request changes of a disk; the returned function does it.
 *
 * @throws NotFoundError; OvirtFault 400, 409
 */
export async function diskEdit(
  { database, config }: Context,
  principal: Principal,
  id: string,
  body: Body,
): Promise<() => Promise<VolumeRow>> {
  const row = await getVolume(database, principal, id);
  const backup = body.oneOf(["backup"], ["none", "incremental"]);
  const sizeBytes = sizeOf(body);
  const name = shortText(body, "alias", nameMax) ?? shortText(body, "name", nameMax);
  const description = shortText(body, "description", descriptionMax);
  for (const flag of ["shareable", "propagate_errors", "wipe_after_delete"]) body.boolean(flag);
  refuseRawTracking(formatIn(config.volume_backends, row.backend), backup);
  if (sizeBytes !== undefined && BigInt(sizeBytes) < row.sizeBytes) {
    throw refused([
      "bad-parameters",
      "Cannot edit Virtual Disk. New disk size cannot be smaller than the current one.",
    ]);
  }
  refuseUnready(row, "edit");
  return async () => {
    if (sizeBytes !== undefined && BigInt(sizeBytes) > row.sizeBytes) {
      const sizeGib = Math.max(row.sizeGib, gibOf(sizeBytes));
      await requestVolumeExtend(database, config, principal, row.id, { sizeGib, sizeBytes, inUse: true });
    }
    const change = {
      ...(name !== undefined && { name }),
      ...(description !== undefined && { description }),
      ...(backup !== undefined && { tracksChanges: backup === "incremental" }),
    };
    if (Object.keys(change).length > 0) await updateVolume(database, principal, row.id, change);
    return getVolume(database, principal, row.id);
  };
}

const update: Handle = async (context, call) => {
  const edit = await diskEdit(context, call.principal, idOf(call), call.body);
  return shown("disk", diskView(context, await edit()));
};

const remove: Handle = async ({ database }, call) => {
  const { principal } = call;
  const row = await getVolume(database, principal, idOf(call));
  try {
    return done(await requestVolumeDelete(database, principal, row.id, { cascade: false }));
  } catch (error) {
    if (!(error instanceof InvalidError)) throw error;
    const seen = await getVolume(database, principal, row.id);
    refuseUnready(seen, "remove");
    const why =
      seen.attachments.length > 0
        ? "The disk is attached to a VM. Detach it first."
        : "The disk has snapshots, or is part of a group or of a transfer.";
    throw refused(["conflict", `Cannot remove Virtual Disk. ${why}`]);
  }
};

/** Nobody is named there, nothing is measured. */
const nothingBelow = emptyBelow(({ database }, call) => getVolume(database, call.principal, idOf(call)));

/** Volumes, in oVirt's words and in bytes. */
export const diskRoutes: readonly Route[] = [
  ["GET", "/disks", "ovirt:get", list],
  ["POST", "/disks", "ovirt:change", add],
  ["GET", "/disks/:id", "ovirt:get", show],
  ["PUT", "/disks/:id", "ovirt:change", update],
  ["DELETE", "/disks/:id", "ovirt:change", remove],
  ["GET", "/disks/:id/creation_status", "ovirt:get", showCreation],
  ["GET", "/disks/:id/permissions", "ovirt:get", nothingBelow("permissions", "permission")],
  ["GET", "/disks/:id/statistics", "ovirt:get", nothingBelow("statistics", "statistic")],
  ["GET", "/storagedomains/:domain/disks", "ovirt:get", list],
];
