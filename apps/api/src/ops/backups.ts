import { type BackupHealth as BackupHealthRow, getBackupHealth, requestVerify } from "@tephra/control";
import { type AnswerOf, type BackupHealth, requests } from "@tephra/wire";
import { defineOps } from "./serve.ts";

/** `damage` is the backup's own; a backup with damaged parents cannot be restored either if it needs the damaged parts. */
const view = ({ backup, damagedParents }: BackupHealthRow): BackupHealth => ({
  id: backup.id,
  status: backup.status,
  repository: backup.repository,
  parent_id: backup.parentId,
  bytes: backup.volumeBytes === null ? null : Number(backup.volumeBytes),
  stored_bytes: backup.storedBytes === null ? null : Number(backup.storedBytes),
  damage: backup.damage,
  damaged_parents: damagedParents,
  verified_at: backup.verifiedAt?.toISOString() ?? null,
  verified_mode: backup.verifiedMode,
});

export const opsBackups = {
  /** What Cinder's representation of a backup lacks: its exact sizes and its health. */
  show: defineOps({
    handle: async ({ database }, { principal, params }) => {
      const backup = view(await getBackupHealth(database, principal, params["id"] ?? ""));
      return { status: 200, body: { backup } satisfies AnswerOf<"GET /ops/backups/:id"> };
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
};
