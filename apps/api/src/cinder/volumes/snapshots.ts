import {
  forceDeleteSnapshot,
  getSnapshot,
  getVolume,
  requestSnapshot,
  requestSnapshotDelete,
  resetSnapshot,
  updateSnapshot,
  updateSnapshotStatus,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { badRequest } from "../../http/refusals.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { since } from "../../openstack/microversions.ts";
import { listSnapshotsAs } from "./list.ts";
import { createSnapshotBody, resetSnapshotBody, snapshotStatusBody, updateSnapshotBody } from "./schemas.ts";
import { snapshotCore, snapshotDetail, snapshotSummary } from "./views.ts";

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = (context: Context, call: Call) => getSnapshot(context.database, call.principal, idOf(call));

const forceRefusal =
  "Since microversion 3.66 the 'force' flag is invalid for this request.  For backward compatability, however, when the 'force' " +
  "flag is passed with a value evaluating to True, it is silently ignored.";

/** From 3.66 on an in-use volume needs no force, and `false` is refused (cinder-api 7.5). */
function forced(call: Call, force: boolean | null): boolean {
  if (call.version < since.snapshotInUse) return force ?? false;
  if (force === false) throw badRequest(forceRefusal);
  return true;
}

/** How Cinder prints a null volume id. */
const volumeOf = (id: string | null): string => id ?? "None";

export const snapshots = {
  list: defineAction({ handle: listSnapshotsAs(snapshotSummary) }),
  detail: defineAction({ handle: listSnapshotsAs(snapshotDetail) }),
  show: defineAction({
    load,
    handle: async (context, call) => {
      return { status: 200, body: { snapshot: snapshotDetail(call, await load(context, call)) } };
    },
  }),
  create: defineAction({
    body: createSnapshotBody,
    load: ({ database }, call) => getVolume(database, call.principal, volumeOf(call.body.snapshot.volume_id)),
    handle: async ({ database, config }, call) => {
      const { snapshot } = call.body;
      const volumeId = volumeOf(snapshot.volume_id);
      await getVolume(database, call.principal, volumeId);
      const row = await requestSnapshot(database, config, call.principal, {
        volumeId,
        name: snapshot.name ?? snapshot.display_name,
        description: snapshot.description,
        metadata: snapshot.metadata,
        force: forced(call, snapshot.force),
      });
      return { status: 202, body: { snapshot: snapshotCore(call, row) } };
    },
  }),
  update: defineAction({
    body: updateSnapshotBody,
    load,
    handle: async ({ database }, call) => {
      const { snapshot } = call.body;
      const name = snapshot.name === undefined ? snapshot.display_name : snapshot.name;
      const description = snapshot.description === undefined ? snapshot.display_description : snapshot.description;
      const row = await updateSnapshot(database, call.principal, idOf(call), {
        ...(name !== undefined && { name }),
        ...(description !== undefined && { description }),
      });
      return { status: 200, body: { snapshot: snapshotCore(call, row) } };
    },
  }),
  remove: defineAction({
    load,
    handle: async ({ database }, call) => {
      await requestSnapshotDelete(database, call.principal, idOf(call));
      return { status: 202 };
    },
  }),
  forceDelete: defineAction({
    load,
    handle: async ({ database }, call) => {
      await forceDeleteSnapshot(database, call.principal, idOf(call));
      return { status: 202 };
    },
  }),
  updateStatus: defineAction({
    body: snapshotStatusBody,
    load,
    handle: async ({ database }, call) => {
      const { status, progress } = call.body["os-update_snapshot_status"];
      await updateSnapshotStatus(database, call.principal, idOf(call), { status, progress: progress ?? null });
      return { status: 202 };
    },
  }),
  resetStatus: defineAction({
    body: resetSnapshotBody,
    load,
    handle: async ({ database }, call) => {
      await resetSnapshot(database, call.principal, idOf(call), call.body["os-reset_status"].status);
      return { status: 202 };
    },
  }),
};
