import {
  type Database,
  finalizeMachineBackup,
  getCheckpoint,
  getMachine,
  getMachineBackup,
  getVolume,
  isUuid,
  listCheckpoints,
  listMachineBackups,
  type MachineBackupRow,
  type MachineCheckpointRow,
  NotFoundError,
  type Principal,
  removeCheckpoint,
  requestMachineBackup,
  type VolumeRow,
} from "@tephra/control";
import type { Context } from "../context.ts";
import type { Body } from "./body.ts";
import { type Call, created, done, type Handle, type Route, shown } from "./call.ts";
import { backupModeOf, diskFields } from "./disks.ts";
import { type Element, listOf, reference } from "./element.ts";
import { BareStatus, incomplete, invalidValue, refused, whenRefused } from "./faults.ts";
import { type Followed, followed, refuseFollow } from "./follow.ts";
import { hostIdOf } from "./infrastructure.ts";

const descriptionMax = 1_024;
/** Disks that a request may name: more than a machine can have. */
const disksMax = 1_000;

/** The checkpoint of its moment is there once it is taken. */
const view = (backup: MachineBackupRow): Element => ({
  id: backup.id,
  path: `/vms/${backup.instanceId}/backups/${backup.id}`,
  actions: ["finalize"],
  links: ["disks"],
  fields: {
    description: backup.description,
    creation_date: backup.createdAt,
    modification_date: backup.updatedAt ?? backup.createdAt,
    phase: backup.status,
    host: reference("hosts", hostIdOf(backup.workerHost)),
    vm: reference("vms", backup.instanceId),
    from_checkpoint_id: backup.fromCheckpointId,
    to_checkpoint_id: backup.takenAt === null ? null : backup.toCheckpointId,
  },
});

const checkpointView = (checkpoint: MachineCheckpointRow): Element => ({
  id: checkpoint.id,
  path: `/vms/${checkpoint.instanceId}/checkpoints/${checkpoint.id}`,
  links: ["disks"],
  fields: {
    creation_date: checkpoint.createdAt,
    state: checkpoint.status,
    vm: reference("vms", checkpoint.instanceId),
    description: checkpoint.description,
    parent_id: checkpoint.parentId,
  },
});

const machineIdOf = ({ params }: Call): string => params["vm"] ?? "";
const idOf = ({ params }: Call): string => params["id"] ?? "";

const backupIn = ({ database }: Context, call: Call): Promise<MachineBackupRow> =>
  getMachineBackup(database, call.principal, machineIdOf(call), idOf(call));

const checkpointIn = ({ database }: Context, call: Call): Promise<MachineCheckpointRow> =>
  getCheckpoint(database, call.principal, machineIdOf(call), idOf(call));

const list: Handle = async (context, call) => {
  const rows = await listMachineBackups(context.database, call.principal, machineIdOf(call));
  const views = rows.map((row) => followed(view(row), row, call.follow, below(context, call, backupDisks)));
  return shown("backups", listOf("backup", await Promise.all(views)));
};

const show: Handle = async (context, call) => {
  const row = await backupIn(context, call);
  return shown("backup", await followed(view(row), row, call.follow, below(context, call, backupDisks)));
};

/** `backup_mode` `full` asks for all of a disk, whatever the checkpoint says of it. */
const wantedDisk = (disk: Body): { id: string; full: boolean } => ({
  id: disk.id ?? "",
  full: disk.oneOf(["backup_mode"], ["full", "incremental"]) === "full",
});

function newBackupOf({ body, parameters }: Call) {
  const disks = body.items("disks", "disk") ?? [];
  if (disks.length === 0) throw incomplete("Backup", ["disks"], "add");
  if (disks.length > disksMax) throw invalidValue(`disks: more than ${disksMax}`);
  const { id } = body;
  if (id !== undefined && !isUuid(id)) throw invalidValue(`id: '${id.slice(0, 64)}' is not a UUID`);
  const description = body.string("description") ?? null;
  if (description !== null && description.length > descriptionMax) {
    throw refused([
      "bad-parameters",
      `Cannot backup VM backup. The description is longer than ${descriptionMax} characters.`,
    ]);
  }
  const fromCheckpointId = body.string("from_checkpoint_id") ?? null;
  return {
    id: id?.toLowerCase() ?? null,
    description,
    fromCheckpointId: fromCheckpointId === "" ? null : fromCheckpointId,
    requireConsistency: parameters.flag("require_consistency") ?? false,
    disks: disks.map(wantedDisk),
  };
}

const add: Handle = async ({ database, config }, call) => {
  await getMachine(database, call.principal, machineIdOf(call));
  const request = newBackupOf(call);
  const made = await whenRefused("backup VM backup", () =>
    requestMachineBackup(database, config, call.principal, machineIdOf(call), request),
  );
  return created("backup", view(made), false);
};

const finalize: Handle = async ({ database }, call) => {
  await whenRefused("stop VM backup", () =>
    finalizeMachineBackup(database, call.principal, machineIdOf(call), idOf(call)),
  );
  return done();
};

/** A disk as it is now; null when it has been removed since. */
async function diskOf(database: Database, principal: Principal, id: string): Promise<VolumeRow | null> {
  try {
    return await getVolume(database, principal, id);
  } catch (error) {
    if (error instanceof NotFoundError) return null;
    throw error;
  }
}

async function disksOf<Part extends { volumeId: string }>(
  context: Context,
  { principal }: Call,
  parts: readonly Part[],
  more: (part: Part) => Element["fields"],
): Promise<Element[]> {
  const views: Element[] = [];
  for (const part of parts) {
    const row = await diskOf(context.database, principal, part.volumeId);
    if (row === null) continue;
    views.push({ ...reference("disks", row.id), fields: { ...diskFields(context, row), ...more(part) } });
  }
  return views;
}

/** The disks of a backup or a checkpoint that are there still. */
type DisksOf<Row> = (context: Context, call: Call, row: Row) => Promise<Element[]>;

const backupDisks: DisksOf<MachineBackupRow> = (context, call, { disks }) =>
  disksOf(context, call, disks, (part) => ({ backup_mode: backupModeOf(part) }));

const checkpointDisks: DisksOf<MachineCheckpointRow> = (context, call, { disks }) =>
  disksOf(context, call, disks, () => ({}));

const below = <Row>(context: Context, call: Call, load: DisksOf<Row>): Followed<Row> => ({
  disks: async (row, deeper) => {
    refuseFollow(deeper);
    return listOf("disk", await load(context, call, row));
  },
});

const listDisks =
  <Row>(rowIn: (context: Context, call: Call) => Promise<Row>, load: DisksOf<Row>): Handle =>
  async (context, call) => {
    refuseFollow(call.follow);
    return shown("disks", listOf("disk", await load(context, call, await rowIn(context, call))));
  };

const showDisk =
  <Row>(rowIn: (context: Context, call: Call) => Promise<Row>, load: DisksOf<Row>): Handle =>
  async (context, call) => {
    refuseFollow(call.follow);
    const disks = await load(context, call, await rowIn(context, call));
    const found = disks.find(({ id }) => id === call.params["disk"]?.toLowerCase());
    if (!found) throw new BareStatus(404);
    return shown("disk", found);
  };

const listAllCheckpoints: Handle = async (context, call) => {
  const rows = await listCheckpoints(context.database, call.principal, machineIdOf(call));
  const views = rows.map((row) =>
    followed(checkpointView(row), row, call.follow, below(context, call, checkpointDisks)),
  );
  return shown("checkpoints", listOf("checkpoint", await Promise.all(views)));
};

const showCheckpoint: Handle = async (context, call) => {
  const row = await checkpointIn(context, call);
  const view = followed(checkpointView(row), row, call.follow, below(context, call, checkpointDisks));
  return shown("checkpoint", await view);
};

const removeOne: Handle = async ({ database }, call) => {
  await whenRefused("remove checkpoint", () =>
    removeCheckpoint(database, call.principal, machineIdOf(call), idOf(call)),
  );
  return done();
};

/** Backups of machines by changed blocks, and the checkpoints that they can be incremental to (ovirt 4.5). */
export const machineBackupRoutes: readonly Route[] = [
  ["GET", "/vms/:vm/backups", "ovirt:get", list],
  ["POST", "/vms/:vm/backups", "ovirt:change", add],
  ["GET", "/vms/:vm/backups/:id", "ovirt:get", show],
  ["GET", "/vms/:vm/backups/:id/disks", "ovirt:get", listDisks(backupIn, backupDisks)],
  ["GET", "/vms/:vm/backups/:id/disks/:disk", "ovirt:get", showDisk(backupIn, backupDisks)],
  ["ACTION", "/vms/:vm/backups/:id/finalize", "ovirt:change", finalize],
  ["GET", "/vms/:vm/checkpoints", "ovirt:get", listAllCheckpoints],
  ["GET", "/vms/:vm/checkpoints/:id", "ovirt:get", showCheckpoint],
  ["GET", "/vms/:vm/checkpoints/:id/disks", "ovirt:get", listDisks(checkpointIn, checkpointDisks)],
  ["GET", "/vms/:vm/checkpoints/:id/disks/:disk", "ovirt:get", showDisk(checkpointIn, checkpointDisks)],
  ["DELETE", "/vms/:vm/checkpoints/:id", "ovirt:change", removeOne],
];
