import { dirname } from "node:path";
import { HypervisorRefusedError } from "../../../errors.ts";
import { unlinkIfThere } from "../../../volume/file/copy-file.ts";
import type { DiskExport, PluggedDisk } from "../../machine-disks.ts";
import { createImage } from "../create-image.ts";
import { listNodes } from "../nodes.ts";
import type { QmpClient } from "../qmp-client.ts";
import type { BackupPlaces } from "./backup.ts";
import { findChain, nameFor, openChain } from "./chain.ts";
import { addExport, hasExport, removeExport, stopIdleServer } from "./exports.ts";

/*
 * A process without devices, such as a storage daemon, shows a disk that is plugged in as an export with the disk's id as its name. A
 * snapshot gets a temporary layer, so that what the other machine writes to it is gone when it is unplugged.
 */

/** See MachineDisks.plug. */
export async function plug(qmp: QmpClient, plugged: PluggedDisk, places: BackupPlaces): Promise<DiskExport> {
  const { image, temporaryPath } = plugged;
  const exportId = nameFor(`plug ${plugged.id}`);
  if (await hasDevices(qmp)) {
    throw new HypervisorRefusedError(
      "Disks cannot be plugged into a machine with devices; a storage daemon exports them.",
    );
  }
  const wanted = { roots: [...places.roots, dirname(image.path)] };
  if (!(await hasExport(qmp, exportId)) && temporaryPath !== null) {
    await removeTemporary(qmp, temporaryPath);
    const [{ sizeBytes, cache }] = await openChain(qmp, image, { ...wanted, writable: false });
    const backing = { path: image.path, format: image.format };
    await createImage(qmp, { node: nameFor(temporaryPath), path: temporaryPath, sizeBytes, cache, backing });
  }
  const top = temporaryPath === null ? image : ({ path: temporaryPath, format: "qcow2" } as const);
  const [{ node, sizeBytes }] = await openChain(qmp, top, { ...wanted, writable: true });
  if (!(await hasExport(qmp, exportId))) {
    await addExport(qmp, places.exportSocket, { id: exportId, node, name: image.id, writable: true, bitmaps: [] });
  }
  return { diskId: image.id, socketPath: places.exportSocket, name: image.id, sizeBytes, changes: null };
}

/**
 * See MachineDisks.unplug. `close`: with all layers that nothing else uses.
 *
 * @throws HypervisorRefusedError when the machine has the disk otherwise than by plugging
 */
export async function unplug(
  qmp: QmpClient,
  { id, image, temporaryPath }: PluggedDisk,
  { close, ...places }: BackupPlaces & { close: boolean },
): Promise<void> {
  await removeExport(qmp, nameFor(`plug ${id}`));
  await stopIdleServer(qmp);
  if (temporaryPath !== null) await removeTemporary(qmp, temporaryPath);
  if (!close) return;
  const chain = await findChain(qmp, image, places).catch((error: unknown) => {
    if (error instanceof HypervisorRefusedError) return []; // It is not open any more.
    throw error;
  });
  for (const { node, path } of chain) {
    try {
      await qmp.execute("blockdev-del", { "node-name": node });
    } catch (error) {
      if (!(error instanceof HypervisorRefusedError)) throw error;
      // A layer that something else uses, and with it all below, stays. A disk is then not unplugged.
      if (temporaryPath !== null || path !== chain[0]?.path) return;
      throw new HypervisorRefusedError(`The machine was started with ${path}: only its hypervisor can take it away.`);
    }
  }
}

async function removeTemporary(qmp: QmpClient, path: string): Promise<void> {
  const ours = [nameFor(path), `${nameFor(path)}-f`];
  for (const { "node-name": name } of await listNodes(qmp)) {
    if (ours.includes(name)) await qmp.execute("blockdev-del", { "node-name": name });
  }
  await unlinkIfThere(path);
}

async function hasDevices(qmp: QmpClient): Promise<boolean> {
  const commands = (await qmp.execute("query-commands")) as { name: string }[];
  return commands.some(({ name }) => name === "device_add");
}
