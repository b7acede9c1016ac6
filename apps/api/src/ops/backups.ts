import {
  type Backup,
  type BackupHealth as BackupHealthRow,
  type ChainMember,
  checkRestore,
  getBackupHealth,
  holdBackup,
  listHidden,
  readBackupChain,
  releaseHold,
  requestHiddenRemoval,
  requestSquash,
  requestVerify,
  undeleteBackup,
} from "@tephra/control";
import { type AnswerOf, type BackupChain, type BackupHealth, type DeletedBackup, requests } from "@tephra/wire";
import { defineOps, type OpsCall } from "./serve.ts";

const numberOrNull = (value: bigint | null): number | null => (value === null ? null : Number(value));

/** `damage` is the backup's own; a backup with damaged parents cannot be restored either if it needs the damaged parts. */
const view = ({ backup, damagedParents }: BackupHealthRow): BackupHealth => ({
  id: backup.id,
  status: backup.status,
  repository: backup.repository,
  parent_id: backup.parentId,
  bytes: numberOrNull(backup.volumeBytes),
  stored_bytes: numberOrNull(backup.storedBytes),
  damage: backup.damage,
  damaged_parents: damagedParents,
  verified_at: backup.verifiedAt?.toISOString() ?? null,
  verified_mode: backup.verifiedMode,
  hold: backup.holdUntil === null ? null : { until: backup.holdUntil.toISOString(), reason: backup.holdReason },
  policy_id: backup.policyId,
});

/** Both times are those of a backup that can be brought back. */
const viewDeleted = (backup: Backup): DeletedBackup => ({
  id: backup.id,
  project_id: backup.projectId,
  name: backup.name,
  volume_id: backup.volumeId,
  parent_id: backup.parentId,
  policy_id: backup.policyId,
  repository: backup.repository,
  bytes: numberOrNull(backup.volumeBytes),
  stored_bytes: numberOrNull(backup.storedBytes),
  data_timestamp: backup.dataTimestamp.toISOString(),
  created_at: backup.createdAt.toISOString(),
  deleted_at: backup.deletedAt?.toISOString() ?? "",
  undelete_until: backup.undeleteUntil?.toISOString() ?? "",
  removing: backup.status === "deleting",
});

const viewMember = (row: ChainMember): BackupChain["members"][number] => ({
  id: row.id,
  name: row.name,
  project_id: row.projectId,
  volume_id: row.volumeId,
  status: row.status,
  kind: row.parentId === null ? "full" : "incremental",
  parent_id: row.parentId,
  depth: row.depth,
  data_timestamp: row.dataTimestamp.toISOString(),
  created_at: row.createdAt.toISOString(),
  bytes: numberOrNull(row.volumeBytes),
  stored_bytes: numberOrNull(row.storedBytes),
  objects: row.objectCount,
  repository: row.repository,
  damage: row.damage,
  sound: row.sound,
  read: row.isRead,
  proof: row.verifiedAt === null ? null : { at: row.verifiedAt.toISOString(), mode: row.verifiedMode },
});

const idOf = ({ params }: OpsCall): string => params["id"] ?? "";

export const opsBackups = {
  /** What Cinder's representation of a backup lacks: its exact sizes and its health. */
  show: defineOps({
    handle: async ({ database }, { principal, params }) => {
      const backup = view(await getBackupHealth(database, principal, params["id"] ?? ""));
      return { status: 200, body: { backup } satisfies AnswerOf<"GET /ops/backups/:id"> };
    },
  }),

  /** What it builds on, what builds on that, and what a restore would read. */
  chain: defineOps({
    handle: async ({ database }, call) => {
      const { members, restore } = await readBackupChain(database, call.principal, idOf(call));
      const body: BackupChain = {
        members: members.map(viewMember),
        restore: restore && {
          members: restore.members,
          objects: restore.objects,
          stored_bytes: restore.storedBytes,
        },
      };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/backups/:id/chain"> };
    },
  }),

  /** Whether a restore would work, before anything starts. */
  checkRestore: defineOps({
    ...requests["GET /ops/backups/:id/restore-check"],
    handle: async ({ database, config }, call) => {
      const { volume_id: volumeId = null, bytes = null } = call.query;
      const body = await checkRestore(database, config, call.principal, { backupId: idOf(call), volumeId, bytes });
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/backups/:id/restore-check"> };
    },
  }),

  /** Nobody deletes it before the time, whatever the API; not even by force. */
  hold: defineOps({
    ...requests["PUT /ops/backups/:id/hold"],
    handle: async ({ database }, call) => {
      await holdBackup(database, call.principal, idOf(call), call.body.hold);
      const backup = view(await getBackupHealth(database, call.principal, idOf(call)));
      return { status: 200, body: { backup } satisfies AnswerOf<"PUT /ops/backups/:id/hold"> };
    },
  }),

  release: defineOps({
    handle: async ({ database }, call) => {
      await releaseHold(database, call.principal, idOf(call));
      return { status: 204 };
    },
  }),

  /** Deleted backups that can be brought back. */
  deleted: defineOps({
    ...requests["GET /ops/deleted-backups"],
    handle: async ({ database }, { principal, query }) => {
      const { id, volume_id: volumeId, limit } = query;
      const rows = await listHidden(database, principal, { id, volumeId, limit });
      return { status: 200, body: { backups: rows.map(viewDeleted) } satisfies AnswerOf<"GET /ops/deleted-backups"> };
    },
  }),

  undelete: defineOps({
    handle: async ({ database }, call) => {
      const ids = await undeleteBackup(database, call.principal, idOf(call));
      const backups = ids.map((id) => ({ id }));
      return { status: 200, body: { backups } satisfies AnswerOf<"POST /ops/backups/:id/undelete"> };
    },
  }),

  /** Removes a deleted backup before its delay is over. */
  purge: defineOps({
    handle: async ({ database }, call) => {
      await requestHiddenRemoval(database, call.principal, idOf(call));
      return { status: 202, body: {} satisfies AnswerOf<"DELETE /ops/deleted-backups/:id"> };
    },
  }),

  verify: defineOps({
    ...requests["POST /ops/backups/:id/verify"],
    handle: async ({ database, config }, { principal, params, body }) => {
      const request = { backupId: params["id"] ?? "", mode: body.mode };
      const { id } = await requestVerify(database, config, principal, request);
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/backups/:id/verify"> };
    },
  }),

  /** The backup and what it builds on become one full backup. */
  squash: defineOps({
    ...requests["POST /ops/backups/:id/squash"],
    handle: async ({ database, config }, { principal, params }) => {
      const { id } = await requestSquash(database, config, principal, { backupId: params["id"] ?? "" });
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/backups/:id/squash"> };
    },
  }),
};
