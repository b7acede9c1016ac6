import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import type { VolumeSource } from "../queue/documents.ts";
import type { Group } from "../rows/groups.ts";
import { addGroup, getGroup } from "../rows/groups.ts";
import { reserveQuota } from "../rows/quotas.ts";
import { readSource, startVolume } from "../volumes/create.ts";
import { getGroupSnapshot } from "./snapshots.ts";

/** What the volumes of a new group are copied from. */
export type GroupSource = { groupSnapshotId: string } | { sourceGroupId: string };

/**
 * A new group with a volume for each snapshot of a group snapshot, or for each volume of another group: `creating` until all of them are
 * there. With another group as the source, each volume is copied at its own instant.
 *
 * @throws NotFoundError; InvalidError when the source is empty, or cannot be copied now; QuotaExceededError
 */
export async function requestGroupFromSource(
  database: Database,
  config: Config,
  principal: Principal,
  request: { name: string | null; description: string | null; source: GroupSource },
): Promise<Group> {
  const { name, description, source } = request;
  const { projectId, userId } = principal;
  return inTransaction(database, async (tx) => {
    const { groupTypeId, availabilityZone, members } = await readMembers(tx, principal, source);
    await reserveQuota(tx, config, projectId, { groups: 1 });
    const sources = [];
    for (const member of members) {
      const volume = await readSource(tx, principal, member);
      await reserveQuota(tx, config, projectId, { volumes: 1, gigabytes: volume.sizeGib });
      sources.push(volume);
    }
    const own = { projectId, userId, name, description, groupTypeId, availabilityZone, instanceId: null };
    const group = await addGroup(tx, config, { ...own, ...source }, "creating");
    for (const volume of sources) {
      const unnamed = { name: null, description: null, metadata: {}, groupId: group.id };
      await startVolume(tx, config, principal, { ...unnamed, sizeGib: volume.sizeGib, source: volume });
    }
    return group;
  });
}

async function readMembers(
  tx: Transaction,
  principal: Principal,
  source: GroupSource,
): Promise<Pick<Group, "groupTypeId" | "availabilityZone"> & { members: VolumeSource[] }> {
  if ("sourceGroupId" in source) {
    const { groupTypeId, availabilityZone, volumes } = await getGroup(tx, principal, source.sourceGroupId);
    if (volumes.length === 0) throw new InvalidError("group", "Source Group is empty. No group will be created.");
    return { groupTypeId, availabilityZone, members: volumes.map(({ id }) => ({ volumeId: id })) };
  }
  const snapshot = await getGroupSnapshot(tx, principal, source.groupSnapshotId);
  if (snapshot.status !== "available") {
    const text = `GroupSnapshot status must be available, but current status is: ${snapshot.status}.`;
    throw new InvalidError("group-snapshot", text);
  }
  const { availabilityZone } = await tx.group.findUniqueOrThrow({ where: { id: snapshot.groupId } });
  const snapshots = await tx.snapshot.findMany({
    where: { groupSnapshotId: snapshot.id },
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
  });
  if (snapshots.length === 0) {
    throw new InvalidError("group", "Group snapshot is empty. No group will be created.");
  }
  const members = snapshots.map(({ id }) => ({ snapshotId: id }));
  return { groupTypeId: snapshot.groupTypeId, availabilityZone, members };
}
