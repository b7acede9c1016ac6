import { join, resolve } from "node:path";
import type { Config, InstanceDriver } from "@tephra/control";
import { type BackedUpMachine, imageRoots, type MachineBackupRow } from "@tephra/control/work";
import type { MachineDisksSettings, PowerState } from "@tephra/engine";

/** Where what belongs to a backup is on this host. Everything follows from ids, so that another process finds it. */
export interface BackupPlaces {
  /** What the machine overwrites meanwhile. */
  scratchFolder: string;
  /** The folder of a process that has the disks of a machine open that is off. */
  runFolder: string;
  /** Where a machine that runs exports its disks. */
  exportSocket: string;
}

/** Digits of an id in the name of a folder, since paths of sockets have limits. */
const digits = 16;

const socketsOf = ({ machine_backups: settings, data_dir: data }: Config): string =>
  settings.socket_dir ?? resolve(data, "run");

/** See BackupPlaces. */
export const exportSocketOf = (config: Config, instanceId: string): string =>
  join(socketsOf(config), `nbd-${instanceId}`);

export function placesOf(config: Config, { id, instanceId }: MachineBackupRow): BackupPlaces {
  const { machine_backups: settings, data_dir: data } = config;
  const sockets = socketsOf(config);
  return {
    scratchFolder: settings.scratch_dir ?? resolve(data, "scratch"),
    runFolder: join(sockets, `b-${id.replaceAll("-", "").slice(0, digits)}`),
    exportSocket: exportSocketOf(config, instanceId),
  };
}

/** How the disks of the machine are opened. */
export function settingsOf(
  config: Config,
  { instance }: Pick<BackedUpMachine, "instance">,
  { runFolder, exportSocket }: Pick<BackupPlaces, "runFolder" | "exportSocket">,
): MachineDisksSettings {
  return {
    driver: instance.driver as InstanceDriver,
    powerState: instance.powerState as PowerState,
    socket: instance.qmpSocket,
    agentSocket: instance.agentSocket,
    freezeMountpoints: instance.freezeMountpoints as string[] | null,
    socketRoots: config.instances.qmp_socket_roots,
    imageRoots: imageRoots(config.volume_backends).map((folder) => resolve(folder)),
    runFolder,
    exportSocket,
  };
}
