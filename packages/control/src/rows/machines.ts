import type { Transaction } from "../db/database.ts";
import { RefusedError } from "../errors.ts";
import type { GroupSnapshot, Machine, MachineNic, SnapshotAttachment } from "../generated/client.ts";

export type { Machine as MachineRecord, MachineNic, SnapshotAttachment };

/**
 * A snapshot whose disks are attached to a machine is read by it, and cannot be deleted. The snapshot is locked: attaching takes the same
 * lock.
 *
 * @throws RefusedError that names disk, snapshot and machine of each, one a line
 */
export async function refuseAttachedSnapshot(
  tx: Transaction,
  { id, description }: Pick<GroupSnapshot, "id" | "description">,
): Promise<void> {
  const attached = await tx.snapshotAttachment.findMany({
    where: { groupSnapshotId: id },
    include: { volume: true },
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
  });
  if (attached.length === 0) return;
  const machines = await tx.instance.findMany({
    where: { OR: attached.map(({ projectId, instanceId }) => ({ projectId, id: instanceId })) },
    select: { id: true, name: true },
  });
  const lines = attached.map(({ volume, instanceId }) => {
    const machine = machines.find((other) => other.id === instanceId)?.name ?? instanceId;
    return `${volume.name ?? volume.id}/${description ?? ""}/${machine}`;
  });
  const text = `Disks of snapshot ${id} are attached to machines: ${lines.join("; ")}.`;
  throw new RefusedError("snapshot-attached", text, { attached: lines.join("\n") });
}
