import {
  deleteMessage,
  getMessage,
  keptUntil,
  listMessages,
  type MessageFilter,
  type MessageRow,
  type MessageSortKey,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { type Answer, type Call, defineAction } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { messageDetail } from "./views.ts";

const listSpec: ListSpec<MessageSortKey> = {
  sortKeys: {
    id: "id",
    created_at: "createdAt",
    event_id: "eventId",
    message_level: "messageLevel",
    request_id: "requestId",
    resource_type: "resourceType",
    resource_uuid: "resourceUuid",
  },
  filters: enabledFilters.message,
};

const filterOf = (filters: Readonly<Record<string, string>>): MessageFilter => ({
  ...(filters["resource_uuid"] !== undefined && { resourceUuid: filters["resource_uuid"] }),
  ...(filters["resource_type"] !== undefined && { resourceType: filters["resource_type"] }),
  ...(filters["event_id"] !== undefined && { eventId: filters["event_id"] }),
  ...(filters["request_id"] !== undefined && { requestId: filters["request_id"] }),
  ...(filters["message_level"] !== undefined && { messageLevel: filters["message_level"] }),
});

/** Before 3.5 the whole query is ignored (cinder-api 9.6). */
async function list({ database, config }: Context, call: Call): Promise<Answer> {
  const read = call.version >= since.messageQueries ? call : { ...call, query: new URLSearchParams() };
  const query = parseList(read, listSpec);
  const { page } = query;
  const filter = filterOf(query.filters);
  const rows = query.nothing ? [] : await listMessages(database, call.principal, { filter, page });
  const view = (_call: Call, row: MessageRow) => messageDetail(call, row, keptUntil(config, row));
  return listAnswer(read, { page, withCount: false }, { name: "messages", rows, count: 0, view });
}

const load = ({ database }: Context, call: Call) => getMessage(database, call.principal, call.params["id"] ?? "");

/** Messages that inform users of failures (cinder-api 9.6). */
export const messages = {
  list: defineAction({ since: since.messages, handle: list }),
  show: defineAction({
    since: since.messages,
    load,
    handle: async (context, call) => {
      const row = await load(context, call);
      return { status: 200, body: { message: messageDetail(call, row, keptUntil(context.config, row)) } };
    },
  }),
  remove: defineAction({
    since: since.messages,
    load,
    handle: async ({ database }, call) => {
      await deleteMessage(database, call.principal, call.params["id"] ?? "");
      return { status: 204 };
    },
  }),
};
