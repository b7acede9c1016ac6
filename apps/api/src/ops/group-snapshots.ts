import { getGroupSnapshot } from "@tephra/control";
import { defineOps } from "./serve.ts";

export const opsGroupSnapshots = {
  /** What no other form of a backup of an instance has a place for: how it was taken, and what the instance was like. */
  show: defineOps({
    handle: async ({ database }, { principal, params }) => {
      const row = await getGroupSnapshot(database, principal, params["id"] ?? "");
      const snapshot = {
        id: row.id,
        group_id: row.groupId,
        status: row.status,
        taken_at: row.takenAt?.toISOString() ?? null,
        frozen_ms: row.frozenMs,
        consistency: row.consistency,
        instance: row.instance,
      };
      return { status: 200, body: { group_snapshot: snapshot } };
    },
  }),
};
