import { assertImportable, countDependents, getBackup, InvalidError, requestBackupImport } from "@tephra/control";
import type { Context } from "../../context.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { parseRecord, recordOf } from "./export-record.ts";
import { importRecordBody } from "./schemas.ts";
import { backupSummary } from "./views.ts";

const load = (context: Context, call: Call) => getBackup(context.database, call.principal, call.params["id"] ?? "");

/** Export and import of backup records (cinder-api 6.8, 6.9). */
export const records = {
  export: defineAction({
    load,
    handle: async (context, call) => {
      const row = await load(context, call);
      if (row.status !== "available") {
        throw new InvalidError("backup", `Backup status must be available and not ${row.status}.`);
      }
      return { status: 200, body: recordOf(row, await countDependents(context.database, row.id)) };
    },
  }),
  import: defineAction({
    body: importRecordBody,
    handle: async ({ database, config }, call) => {
      const { backup_service: service, backup_url: url } = call.body["backup-record"];
      await assertImportable(database, config, service);
      const request = { service, ...parseRecord(url) };
      const row = await requestBackupImport(database, config, call.principal, request);
      return { status: 201, body: { backup: backupSummary(call, row) } };
    },
  }),
};
