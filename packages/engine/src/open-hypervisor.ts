import { HypervisorUnavailableError } from "./errors.ts";
import type { Hypervisor, PowerState } from "./hypervisor/hypervisor.ts";
import type { MachineDisk, MachineDisks } from "./hypervisor/machine-disks.ts";
import { QmpMachineDisks } from "./hypervisor/qmp/disks/qmp-disks.ts";
import { QmpHypervisor } from "./hypervisor/qmp/qmp.ts";
import { RecordHypervisor } from "./hypervisor/record.ts";

/** The driver, and what is recorded of the machine; each driver uses the fields it needs. */
export interface HypervisorSettings {
  driver: "record" | "qmp";
  powerState: PowerState;
  /** The monitor's socket. */
  socket?: string | null;
  /** The guest agent's, where there is one. */
  agentSocket?: string | null;
  /** File systems that the agent freezes, by mount points in the guest; null: all. */
  freezeMountpoints?: string[] | null;
  /** Sockets must be beneath one of these folders. */
  socketRoots?: readonly string[];
}

/** Does not connect yet: a machine that is off can be opened too. */
export function openHypervisor(settings: HypervisorSettings): Hypervisor {
  const { driver, powerState, socket, agentSocket, freezeMountpoints, socketRoots } = settings;
  switch (driver) {
    case "record":
      return new RecordHypervisor(powerState);
    case "qmp":
      return new QmpHypervisor({
        socket: socket ?? "",
        agentSocket: agentSocket ?? null,
        freezeMountpoints: freezeMountpoints ?? null,
        socketRoots: socketRoots ?? [],
        powerState,
      });
    default:
      return driver satisfies never;
  }
}

export interface MachineDisksSettings extends HypervisorSettings {
  /** Where a process that this one starts gets its private folder; of at most 60 characters, since the paths of sockets have limits. */
  runFolder: string;
  /** Folders, besides an image's own, in which its backing files may be. */
  imageRoots?: readonly string[];
  /** Where a running machine exports disks: the socket of its NBD server, which is started there when it has none. */
  exportSocket?: string | null;
}

/** The disks of a machine through its own process. Null when that does not run, as far as can be known here. */
export async function openRunningDisks(settings: MachineDisksSettings): Promise<MachineDisks | null> {
  const { driver, socket, agentSocket, freezeMountpoints, socketRoots = [], imageRoots = [] } = settings;
  if (driver !== "qmp") return null;
  return await QmpMachineDisks.running({
    monitorPath: socket ?? "",
    agentSocket: agentSocket ?? null,
    freezeMountpoints: freezeMountpoints ?? null,
    socketRoots,
    imageRoots,
    exportSocket: settings.exportSocket ?? "",
  });
}

/**
 * Opens the disks of a machine: through its own process while that runs, else in one of this worker's, which must be ended.
 *
 * @throws HypervisorUnavailableError when the machine is not off, and cannot be reached; ImageInUseError when another process writes a disk
 */
export async function openMachineDisks(
  settings: MachineDisksSettings,
  disks: readonly MachineDisk[],
): Promise<MachineDisks> {
  const { powerState, imageRoots = [] } = settings;
  const running = await openRunningDisks(settings);
  if (running !== null) return running;
  if (powerState !== "SHUTOFF") {
    throw new HypervisorUnavailableError(
      `The machine cannot be reached, and it is not off: its state is ${powerState}.`,
    );
  }
  return await QmpMachineDisks.inPool(disks, { runFolder: settings.runFolder, imageRoots });
}
