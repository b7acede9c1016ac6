import {
  type AttachmentFilter,
  type AttachmentRow,
  type AttachmentSortKey,
  completeAttachment,
  createAttachment,
  deleteAttachment,
  getAttachment,
  getVolume,
  InvalidError,
  listAttachments,
  updateAttachment,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { badRequest } from "../../http/refusals.ts";
import { type Answer, type Call, defineAction } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { faultOf } from "../../openstack/errors.ts";
import { type ListSpec, parseList } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { createAttachmentBody, updateAttachmentBody } from "./attachment-schemas.ts";
import { attachmentDetail, attachmentSummary } from "./attachment-views.ts";

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = ({ database }: Context, call: Call) => getAttachment(database, call.principal, idOf(call));

const listSpec: ListSpec<AttachmentSortKey> = {
  sortKeys: {
    id: "id",
    created_at: "createdAt",
    volume_id: "volumeId",
    instance_uuid: "serverId",
    attach_status: "status",
    attach_time: "attachedAt",
    mountpoint: "device",
  },
  filters: enabledFilters.attachment,
  adminFilters: ["id", "project_id"],
  // Cinder checks only whether the parameter is present, not its value.
  notBoolean: () => true,
};

const filterOf = (filters: Readonly<Record<string, string>>): AttachmentFilter => ({
  ...(filters["id"] !== undefined && { id: filters["id"] }),
  ...(filters["volume_id"] !== undefined && { volumeId: filters["volume_id"] }),
  ...(filters["instance_id"] !== undefined && { serverId: filters["instance_id"] }),
  ...(filters["attach_status"] !== undefined && { status: filters["attach_status"] }),
  ...(filters["project_id"] !== undefined && { projectId: filters["project_id"] }),
});

const listAs =
  (view: (context: Context, row: AttachmentRow) => unknown) =>
  async (context: Context, call: Call): Promise<Answer> => {
    const { page, filters, allProjects, nothing } = parseList(call, listSpec);
    // Cinder has no column of this name.
    const none = nothing || filters["status"] !== undefined;
    const query = { filter: filterOf(filters), allProjects, page };
    const rows = none ? [] : await listAttachments(context.database, call.principal, query);
    return { status: 200, body: { attachments: rows.map((row) => view(context, row)) } };
  };

/** Cinder answers 500 here to client errors; the message is its own. */
async function updating<Row>(update: Promise<Row>): Promise<Row> {
  try {
    return await update;
  } catch (error) {
    if (error instanceof InvalidError) throw badRequest(`Unable to update attachment.(${faultOf(error).message}).`);
    throw error;
  }
}

/** How Nova, Ironic and CSI attach a volume: reserve, connect, complete; one record per attachment. */
export const attachments = {
  list: defineAction({ since: since.attachments, handle: listAs((_context, row) => attachmentSummary(row)) }),
  detail: defineAction({ since: since.attachments, handle: listAs(attachmentDetail) }),
  show: defineAction({
    since: since.attachments,
    load,
    handle: async (context, call) => {
      const row = await load(context, call);
      return { status: 200, body: { attachment: attachmentDetail(context, row) } };
    },
  }),
  create: defineAction({
    since: since.attachments,
    body: createAttachmentBody,
    load: ({ database }, call) => getVolume(database, call.principal, call.body.attachment.volume_uuid),
    handle: async (context, call) => {
      const { volume_uuid: volumeId, instance_uuid: serverId, connector, mode } = call.body.attachment;
      const row = await createAttachment(context.database, call.principal, {
        volumeId,
        serverId: serverId ?? null,
        connector,
        mode: mode ?? null,
      });
      return { status: 200, body: { attachment: attachmentDetail(context, row) } };
    },
  }),
  update: defineAction({
    since: since.attachments,
    body: updateAttachmentBody,
    load,
    handle: async (context, call) => {
      const { connector } = call.body.attachment;
      const row = await updating(updateAttachment(context.database, call.principal, idOf(call), connector));
      return { status: 200, body: { attachment: attachmentDetail(context, row) } };
    },
  }),
  complete: defineAction({
    since: since.attachmentComplete,
    load,
    handle: async ({ database }, call) => {
      await completeAttachment(database, call.principal, idOf(call));
      return { status: 204 };
    },
  }),
  remove: defineAction({
    since: since.attachments,
    load,
    handle: async ({ database }, call) => {
      const left = await deleteAttachment(database, call.principal, idOf(call));
      return { status: 200, body: { attachments: left.map(attachmentSummary) } };
    },
  }),
};
