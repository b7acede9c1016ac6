import {
  assertInstanceGroup,
  deleteInstanceGroup,
  getGroup,
  isUuid,
  listGroupBackups,
  listInstanceGroups,
  requestGroupBackup,
  requestGroupBackupDelete,
  requestGroupRestore,
} from "@tephra/control";
import type { Context } from "../context.ts";
import { badRequest } from "../http/refusals.ts";
import { type Call, defineAction } from "../openstack/call.ts";
import { backupBody, namedBackupBody } from "./schemas.ts";
import { backedUpView, deletedView, groupBackupView, groupView, restoredView } from "./views.ts";
import { answerWhenDone } from "./wait.ts";

/** @throws Refusal 400 for a malformed id */
function groupIdOf({ params }: Call): string {
  const id = params["id"] ?? "";
  if (!isUuid(id)) throw badRequest(`Group id ${id} is not a uuid.`);
  return id.toLowerCase();
}

const load = (context: Context, call: Call) => getGroup(context.database, call.principal, groupIdOf(call));

interface NamedBackup {
  instance_id: string;
  group_snapshot_id: string;
  name: string;
}

const namedOf = (call: Call<NamedBackup>) => ({
  groupId: groupIdOf(call),
  instanceId: call.body.instance_id,
  groupSnapshotId: call.body.group_snapshot_id,
  name: call.body.name,
});

/** Virtual machines backed up and restored as a unit: the API of IBM Cloud Infrastructure Center. Works at every microversion. */
export const instanceGroups = {
  /** Our addition: there is no other way to find a group's id. */
  list: defineAction({
    handle: async ({ database }, { principal }) => {
      const rows = await listInstanceGroups(database, principal);
      return { status: 200, body: rows.map(groupView) };
    },
  }),

  show: defineAction({
    load,
    handle: async (context, call) => {
      const group = await load(context, call);
      assertInstanceGroup(group);
      const rows = await listGroupBackups(context.database, group.id);
      return { status: 200, body: rows.map(groupBackupView) };
    },
  }),

  backup: defineAction({
    body: backupBody,
    load,
    handle: async (context, call) => {
      const { body } = call;
      const accepted = await requestGroupBackup(context.database, context.config, call.principal, {
        groupId: groupIdOf(call),
        instanceId: body.instance_id,
        name: body.name,
        description: body.description,
        incremental: body.incremental,
        metadata: body.metadata,
      });
      const answer = { async: body.async, submitted: "Backup request submitted", view: backedUpView };
      return answerWhenDone(context, call, accepted, answer);
    },
  }),

  restore: defineAction({
    body: namedBackupBody,
    load,
    handle: async (context, call) => {
      const accepted = await requestGroupRestore(context.database, call.principal, namedOf(call));
      const answer = { async: call.body.async, submitted: "Restore request submitted", view: restoredView };
      return answerWhenDone(context, call, accepted, answer);
    },
  }),

  deleteBackup: defineAction({
    body: namedBackupBody,
    load,
    handle: async (context, call) => {
      const accepted = await requestGroupBackupDelete(context.database, context.config, call.principal, namedOf(call));
      const answer = { async: call.body.async, submitted: "Delete backup request submitted", view: deletedView };
      return answerWhenDone(context, call, accepted, answer);
    },
  }),

  /** The instance and its volumes are kept. No response body. */
  remove: defineAction({
    load,
    handle: async ({ database }, call) => {
      await deleteInstanceGroup(database, call.principal, groupIdOf(call));
      return { status: 200 };
    },
  }),
};
