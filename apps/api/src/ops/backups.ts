import {
  type Backup,
  type BackupHealth as BackupHealthRow,
  browseBackups,
  type ChainMember,
  checkRestore,
  getBackupHealth,
  getListedBackup,
  holdBackup,
  type ListedBackup as ListedBackupRow,
  listHidden,
  readBackupChain,
  readDamagedParents,
  releaseHold,
  requestHiddenRemoval,
  requestSquash,
  requestVerify,
  undeleteBackup,
  whyNotDeleted,
  whyNotRestored,
  whyNotVerified,
} from "@tephra/control";
import {
  type AnswerOf,
  type BackupChain,
  type BackupDetails,
  type BackupHealth,
  type DeletedBackup,
  type ListedBackup,
  requests,
} from "@tephra/wire";
import { may, type Rule } from "../http/policy.ts";
import { defineOps, type OpsCall } from "./serve.ts";

const numberOrNull = (value: bigint | null): number | null => (value === null ? null : Number(value));

/** `damage` is the backup's own; a backup with damaged parents cannot be restored either if it needs the damaged parts. */
const view = ({
  backup,
  damagedParents,
}: Pick<BackupHealthRow, "damagedParents"> & { backup: ListedBackupRow | Backup }): BackupHealth => ({
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

const viewListed = (row: ListedBackupRow): ListedBackup => ({
  id: row.id,
  name: row.name,
  project_id: row.projectId,
  volume: { id: row.volumeId, name: row.volumeName, gone: row.volumeGone },
  machine: row.machineId === null ? null : { id: row.machineId, name: row.machineName ?? "" },
  status: row.status,
  kind: row.parentId === null ? "full" : "incremental",
  parent_id: row.parentId,
  chain_depth: row.depth,
  data_timestamp: row.dataTimestamp.toISOString(),
  created_at: row.createdAt.toISOString(),
  bytes: numberOrNull(row.volumeBytes),
  stored_bytes: numberOrNull(row.storedBytes),
  objects: row.objectCount,
  repository: row.repository,
  encrypted: row.encrypted,
  damage: row.damage,
  sound: row.sound,
  proof: row.verifiedAt === null ? null : { at: row.verifiedAt.toISOString(), mode: row.verifiedMode },
  fail_reason: row.failReason,
  operation_id: row.operationId,
  keep_until: row.holdUntil?.toISOString() ?? null,
  policy_id: row.policyId,
});

/** What may be done with a backup: by which rule, and why it cannot be done now (null: it can). */
const actions: readonly {
  name: BackupDetails["actions"][number]["name"];
  rule: Rule;
  whyNot: (row: ListedBackupRow) => string | null;
}[] = [
  { name: "restore", rule: "backup:restore", whyNot: whyNotRestored },
  { name: "verify", rule: "ops:verify", whyNot: whyNotVerified },
  { name: "delete", rule: "backup:delete", whyNot: (row) => whyNotDeleted(row, new Date()) },
];

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
  /** Those that match, and how many there are. */
  list: defineOps({
    ...requests["GET /ops/backups"],
    handle: async ({ database, backupCounts }, { principal, query }) => {
      const asked = {
        statuses: query.status ?? null,
        repositories: query.repository ?? null,
        proofs: query.proof ?? null,
        volumeId: query.volume_id ?? null,
        policyId: query.policy_id ?? null,
        text: query.q ?? null,
        isDamaged: query.damage,
        isOrphan: query.orphan,
        from: query.from ?? null,
        to: query.to ?? null,
      };
      const { sort, limit, marker = null } = query;
      // One more than is shown tells whether there is a next page.
      const rows = await browseBackups(database, principal, { ...asked, sort, marker, limit: limit + 1 });
      const shown = rows.slice(0, limit);
      const counts = query.facets ? await backupCounts(principal, asked) : null;
      const body = {
        backups: shown.map(viewListed),
        facets: counts && { status: counts.status, repository: counts.repository, proof: counts.proof },
        total: counts?.total ?? null,
        next: rows.length > limit ? (shown.at(-1)?.id ?? null) : null,
      };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/backups"> };
    },
  }),

  /** What a list shows of it, its health, and what may be done with it. */
  show: defineOps({
    handle: async ({ database }, call) => {
      const { principal } = call;
      const row = await getListedBackup(database, principal, idOf(call));
      const backup = {
        ...viewListed(row),
        ...view({ backup: row, damagedParents: await readDamagedParents(database, row) }),
        actions: actions.map(({ name, rule, whyNot }) => {
          const why = may(principal, rule) ? whyNot(row) : `Your role may not ${name} backups.`;
          return { name, allowed: why === null, why };
        }),
      };
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
