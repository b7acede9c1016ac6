import { badRequest, NoRouteError } from "../../http/refusals.ts";
import { defineAction } from "../../openstack/call.ts";
import { versionText } from "../../openstack/microversions.ts";
import { createVolumeBesideBody } from "../volumes/schemas.ts";
import { restoreBeside } from "./restore.ts";
import { cinderOf, passOn } from "./see-volume.ts";

/** A new volume of a Cinder from a backup of ours (3.47): a restore, whose volume Cinder makes as the request says. Without a backup it is Cinder's alone. */
export const volumeFromBackup = defineAction({
  body: createVolumeBesideBody,
  handle: async (context, call) => {
    const { backup_id: backupId, size, ...fields } = call.body.volume;
    if (backupId === null) throw new NoRouteError();
    if (fields.snapshot_id !== null || fields.source_volid !== null || fields.imageRef) {
      const sources = "backup, imageRef, snapshot, source volume";
      throw badRequest(`Invalid input received: May specify only one of ${sources}`);
    }
    const target = { fields, sizeGib: size ?? null };
    const { volumeId } = await restoreBeside(context, call, { backupId, volumeId: null, name: null, target });
    const cinder = cinderOf(context).as(call.token, call.principal.projectId, versionText(call.version));
    const shown = await passOn(cinder.shownVolume(volumeId));
    // It is reserved, and may be written already: for who asked it is being made, until it is available.
    const volume = { ...shown, status: "creating", metadata: fields.metadata ?? {} };
    return { status: 202, body: { volume } };
  },
});
