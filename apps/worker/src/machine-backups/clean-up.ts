import { rm } from "node:fs/promises";
import { needsSocket } from "@tephra/control";
import { invalidateCheckpoints, type MachineBackupRow, machineOf } from "@tephra/control/work";
import { endDaemon, type MachineDisk, openRunningDisks, removeScratchFiles } from "@tephra/engine";
import type { OpenOptions } from "./held-backup.ts";
import { placesOf, settingsOf } from "./places.ts";

/** Removes what a backup has left on this host: jobs and exports of a machine that runs, another process, its files. Throws when it cannot. */
export async function cleanUp(row: MachineBackupRow, { database, config, sites }: OpenOptions): Promise<void> {
  const places = placesOf(config, row);
  const { daemonPid: pid, daemonStartTicks: ticks, daemonFolder: folder } = row;
  const ours = pid !== null && ticks !== null && folder !== null;
  if (ours) await endDaemon({ pid, startTicks: Number(ticks), folder });
  await rm(places.runFolder, { recursive: true, force: true });
  const machine = await machineOf(database, row);
  if (machine !== null && needsSocket(machine.instance.driver)) {
    await using running = await openRunningDisks(settingsOf(config, machine, places));
    if (running !== null) {
      const disks: MachineDisk[] = [];
      for (const { volumeId } of row.disks) {
        const backend = machine.backends.get(volumeId);
        const image = backend === undefined ? undefined : await (await sites.backend(backend)).imageFile?.(volumeId);
        if (image) disks.push({ id: volumeId, path: image.path, format: image.format });
      }
      const { scratchFolder } = places;
      const backup = { id: row.id, disks, checkpointId: row.toCheckpointId, scratchFolder, reserveBytes: 0 };
      await running.stopBackup(backup, { complete: false });
    } else {
      await rm(places.exportSocket, { force: true });
      // It was killed, and what it had recorded is gone with it.
      if (!ours && row.takenAt !== null) {
        await invalidateCheckpoints(
          database,
          machine.checkpoints.map(({ id }) => id),
        );
      }
    }
  }
  await removeScratchFiles({ id: row.id, scratchFolder: places.scratchFolder });
}
