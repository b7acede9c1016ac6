import type { Transaction } from "../db/database.ts";
import { nameOf } from "./disks.ts";
import type { MachineRow } from "./machines.ts";
import type { OvfDisk, OvfNic } from "./ovf/hardware.ts";
import { type OvfSnapshot, writeOvf } from "./ovf/write.ts";

/** The id of the snapshot that stands for the machine as it is now: that of its group, where it has one. */
export const activeSnapshotId = ({ instance }: MachineRow): string => instance.group?.id ?? instance.id;

export const activeDescription = "Active VM";

/** Whether a volume of a backend is qcow2, which the dialect calls `cow`. */
export type FormatOf = (backend: string) => "cow" | "raw";

/** The disks of a machine for an OVF, each by the layer that the OVF is about. */
const ovfDisks = (machine: MachineRow, snapshotId: string, formatOf: FormatOf): OvfDisk[] =>
  machine.disks.map((disk) => ({
    id: disk.volumeId,
    imageId: disk.volume.imageId,
    sizeBytes: Number(disk.volume.sizeBytes),
    alias: nameOf(disk.volume),
    format: formatOf(disk.volume.backend),
    interface: disk.interface,
    bootable: disk.volumeId === machine.instance.bootVolumeId,
    plugged: disk.plugged,
    readOnly: disk.mode === "ro",
    incremental: disk.volume.tracksChanges,
    snapshotId,
    createdAt: disk.volume.createdAt,
  }));

const ovfNics = (machine: MachineRow): OvfNic[] =>
  machine.nics.map(({ id, name, mac, network, interface: kind, linked, plugged }) => ({
    id,
    name,
    mac,
    network,
    interface: kind,
    linked,
    plugged,
  }));

/**
 * The OVF of a machine: as it is now, or of a snapshot that is about to be taken, which gets the layers that are written now, or those of
 * them that are chosen.
 */
export async function describeMachine(
  tx: Pick<Transaction, "machine" | "groupSnapshot">,
  machine: MachineRow,
  formatOf: FormatOf,
  taken: { id: string; description: string; at: Date; volumeIds: readonly string[] } | null,
): Promise<string> {
  const { instance } = machine;
  const key = { projectId_instanceId: { projectId: instance.projectId, instanceId: instance.id } };
  const record = await tx.machine.findUnique({ where: key, select: { content: true } });
  const past = instance.group
    ? await tx.groupSnapshot.findMany({
        where: { groupId: instance.group.id, ovf: { not: null }, previewOfId: null },
        orderBy: [{ createdAt: "asc" }, { id: "asc" }],
        select: { id: true, description: true, createdAt: true },
      })
    : [];
  const snapshots: OvfSnapshot[] = [
    ...past.map(({ id, description, createdAt }) => ({
      id,
      kind: "regular" as const,
      description: description ?? "",
      createdAt,
    })),
    ...(taken ? [{ id: taken.id, kind: "regular" as const, description: taken.description, createdAt: taken.at }] : []),
    {
      id: activeSnapshotId(machine),
      kind: "active",
      description: activeDescription,
      createdAt: taken?.at ?? instance.createdAt,
    },
  ];
  const disks = ovfDisks(machine, taken?.id ?? activeSnapshotId(machine), formatOf);
  const described = {
    id: instance.id,
    name: instance.name,
    createdAt: instance.createdAt,
    configuration: machine.settings,
    nics: ovfNics(machine),
    disks: taken ? disks.filter(({ id }) => taken.volumeIds.includes(id)) : disks,
    snapshots,
    content: record?.content ?? null,
  };
  return writeOvf(described, taken?.at ?? new Date());
}
