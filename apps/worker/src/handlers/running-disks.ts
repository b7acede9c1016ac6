import { needsSocket } from "@tephra/control";
import {
  HypervisorUnavailableError,
  type MachineDisks,
  type Moment,
  type MomentOptions,
  openRunningDisks,
  type RunContext,
  type RunningLayer,
  type VolumeBackend,
} from "@tephra/engine";
import type { WorkerContext } from "../context.ts";
import { exportSocketOf, settingsOf } from "../machine-backups/places.ts";

/*
 * Snapshots of disks that a machine has open while it runs: their storage prepares layers and names, and the machine's process is told to write
 * the new ones from one moment on (engine/src/volume/qemu/running-layers.ts).
 */

/** A member of a group snapshot. */
interface RunningDisk {
  volumeId: string;
  snapshotId: string;
  backend: VolumeBackend;
}

/** The process that has a machine's disks open; null where there is none, as far as can be known here. `isOff`: nor should there be. */
export interface MachineProcess {
  disks: MachineDisks | null;
  isOff: boolean;
}

/** That of the machine to which a group belongs; it is not looked for where no disk has layers. Nothing stays connected. */
export async function findProcess(
  groupId: string | null,
  disks: readonly RunningDisk[],
  { config, database }: WorkerContext,
): Promise<MachineProcess> {
  const none = { disks: null, isOff: true };
  if (groupId === null || disks.every(({ backend }) => backend.freezeRunning === undefined)) return none;
  const group = await database.group.findUnique({ where: { id: groupId }, include: { instance: true } });
  const instance = group?.instance;
  if (!instance || !needsSocket(instance.driver)) return none;
  const places = { runFolder: "", exportSocket: exportSocketOf(config, instance.id) };
  const process = await openRunningDisks(settingsOf(config, { instance }, places));
  return { disks: process, isOff: process === null && instance.powerState === "SHUTOFF" };
}

export const unreachable = (): Error =>
  new HypervisorUnavailableError("Nobody listens on the monitor of the machine, which is not off.");

/**
 * Takes the snapshots at one moment. `note` is told the length of each.
 *
 * @throws HypervisorUnavailableError when it ends meanwhile
 */
export async function freezeRunning(
  machine: MachineDisks,
  disks: readonly RunningDisk[],
  { note, ...options }: MomentOptions & { note: (of: readonly RunningDisk[], sizes: readonly number[]) => void },
  run: RunContext,
): Promise<Moment> {
  const writes = (path: string): Promise<boolean> => machine.writes(path);
  // One transaction switches the disks of all backends: each prepares its own, and then lets the next do so.
  const within = async (
    [backend, ...others]: readonly VolumeBackend[],
    ready: readonly RunningLayer[],
  ): Promise<Moment> => {
    if (backend === undefined) {
      const layers = ready.map(({ volumeId, path, keptPath, overlayPath }) => ({
        disk: { id: volumeId, path, format: "qcow2" as const },
        keptPath,
        overlayPath,
      }));
      return await machine.takeSnapshot(layers, options, run);
    }
    const own = disks.filter((disk) => disk.backend === backend);
    const switchOver = (layers: readonly RunningLayer[]): Promise<Moment> => within(others, [...ready, ...layers]);
    const frozen = await backend.freezeRunning?.(own, { writes, switchOver }, run);
    if (frozen === undefined)
      throw new HypervisorUnavailableError("The storage has no layers for a machine that runs.");
    note(own, frozen.sizesBytes);
    return frozen.taken;
  };
  return await within([...new Set(disks.map(({ backend }) => backend))], []);
}

/** After snapshots that were not taken: every disk's name leads to what the machine writes. */
export async function settleRunning(
  { disks: process, isOff }: MachineProcess,
  disks: readonly RunningDisk[],
): Promise<void> {
  const nobody = isOff ? null : { writes: () => Promise.reject(unreachable()) };
  for (const { backend, ...member } of disks) await backend.settleRunning?.(member, process ?? nobody);
}

/** Layers that nothing needs any more are written into the ones below, in disks that the machine has open. */
export async function mergeRunning(
  { disks: process }: MachineProcess,
  disks: readonly RunningDisk[],
  run: RunContext,
): Promise<void> {
  if (process === null) return;
  for (const { volumeId, backend } of disks) {
    const image = await backend.imageFile?.(volumeId);
    if (image === undefined) continue;
    await backend.mergeRunning?.(volumeId, async (layers) => {
      run.signal.throwIfAborted();
      run.fence();
      await process.mergeLayer({ id: volumeId, ...image }, { ...layers, keepName: true }, run);
    });
  }
}
