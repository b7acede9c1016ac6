import { getGroupSnapshot } from "@tephra/control";
import type { AnswerOf, GroupSnapshot } from "@tephra/wire";
import { defineOps } from "./serve.ts";

export const opsGroupSnapshots = {
  /** What other representations of an instance backup lack: how it was taken, and the instance's properties. */
  show: defineOps({
    handle: async ({ database }, { principal, params }) => {
      const row = await getGroupSnapshot(database, principal, params["id"] ?? "");
      const snapshot: GroupSnapshot = {
        id: row.id,
        group_id: row.groupId,
        status: row.status,
        taken_at: row.takenAt?.toISOString() ?? null,
        frozen_ms: row.frozenMs,
        consistency: row.consistency,
        instance: row.instance,
      };
      return { status: 200, body: { group_snapshot: snapshot } satisfies AnswerOf<"GET /ops/group-snapshots/:id"> };
    },
  }),
};
