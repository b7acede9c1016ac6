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

export function placesOf(
  { machine_backups: settings, data_dir: data }: Config,
  { id, instanceId }: MachineBackupRow,
): BackupPlaces {
  const sockets = settings.socket_dir ?? resolve(data, "run");
  return {
    scratchFolder: settings.scratch_dir ?? resolve(data, "scratch"),
    runFolder: join(sockets, `b-${id.replaceAll("-", "").slice(0, digits)}`),
    exportSocket: join(sockets, `nbd-${instanceId}`),
  };
}

/** How the disks of the machine are opened. */
export function settingsOf(
  config: Config,
  { instance }: BackedUpMachine,
  { runFolder, exportSocket }: BackupPlaces,
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
