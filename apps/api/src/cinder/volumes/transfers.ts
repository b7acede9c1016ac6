import {
  acceptTransfer,
  createTransfer,
  deleteTransfer,
  getTransfer,
  getVolume,
  listTransfers,
  QuotaExceededError,
  seesAll,
  type TransferFilter,
  type TransferRow,
  type TransferSortKey,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { type Answer, type Call, defineAction } from "../../openstack/call.ts";
import { asPlainQuotaError } from "../../openstack/errors.ts";
import { resourceLinks } from "../../openstack/links.ts";
import { booleanWord, type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { timeText } from "../../openstack/times.ts";
import { acceptTransferBody, createPlainTransferBody, createTransferBody } from "./transfer-schemas.ts";

const idOf = (call: Call): string => call.params["id"] ?? "";

const load = ({ database }: Context, call: Call) => getTransfer(database, call.principal, idOf(call));

const summary = (call: Call, row: TransferRow): Record<string, unknown> => ({
  id: row.id,
  volume_id: row.volumeId,
  name: row.name,
  links: resourceLinks(call.place, "os-volume-transfer", row.id),
});

/** Fields added by later microversions. */
const additions = (call: Call, row: TransferRow): Record<string, unknown> => ({
  ...(call.version >= since.transferSnapshots && { no_snapshots: row.noSnapshots }),
  ...(call.version >= since.transferHistory && {
    destination_project_id: row.destinationProjectId,
    source_project_id: row.projectId,
    accepted: row.status === "accepted",
  }),
});

const detail = (call: Call, row: TransferRow): Record<string, unknown> => ({
  id: row.id,
  created_at: timeText(row.createdAt),
  name: row.name,
  volume_id: row.volumeId,
  links: resourceLinks(call.place, "os-volume-transfer", row.id),
  ...additions(call, row),
});

const listSpec: ListSpec<TransferSortKey> = {
  sortKeys: { id: "id", created_at: "createdAt", name: "name", display_name: "name", volume_id: "volumeId" },
  filters: ["name", "display_name", "volume_id", "id", "no_snapshots"],
  adminFilters: ["project_id"],
  notBoolean: () => false,
};

function filterOf(filters: Readonly<Record<string, string>>): TransferFilter {
  const {
    name,
    display_name: display,
    volume_id: volumeId,
    id,
    no_snapshots: noSnapshots,
    project_id: project,
  } = filters;
  const text = name ?? display;
  return {
    ...(text !== undefined && { name: text }),
    ...(volumeId !== undefined && { volumeId }),
    ...(id !== undefined && { id }),
    ...(noSnapshots !== undefined && { noSnapshots: booleanWord(noSnapshots) ?? false }),
    ...(project !== undefined && { projectId: project }),
  };
}

/**
 * The query without the parameters that a list ignores before their microversion; until then, its order is fixed. An unknown filter
 * matches nothing.
 */
function readable(call: Call): { call: Call; nothing: boolean } {
  const known = [...listSpec.filters, "all_tenants", "limit", "offset", "project_id"];
  const paging = ["marker", "sort", "sort_key", "sort_dir"];
  const taken = call.version >= since.transferPages ? [...known, ...paging] : known;
  const [own, others] = [new URLSearchParams(), new Set(call.query.keys())];
  for (const [key, value] of call.query) {
    if (!taken.includes(key)) continue;
    others.delete(key);
    if (key !== "project_id" || seesAll(call.principal)) own.append(key, value);
  }
  if (call.version < since.transferPages) own.set("sort", "created_at:asc,id:asc");
  return { call: { ...call, query: own }, nothing: others.size > 0 };
}

const listAs =
  (view: typeof detail) =>
  async ({ database }: Context, call: Call): Promise<Answer> => {
    const read = readable(call);
    const query = parseList(read.call, listSpec);
    const { page, allProjects } = query;
    const rows =
      query.nothing || read.nothing
        ? []
        : await listTransfers(database, call.principal, { filter: filterOf(query.filters), allProjects, page });
    return listAnswer(call, { page, withCount: false }, { name: "transfers", rows, count: 0, view });
  };

const createWith = (body: typeof createTransferBody | typeof createPlainTransferBody) =>
  defineAction({
    body,
    load: ({ database }, call) => getVolume(database, call.principal, call.body.transfer.volume_id),
    handle: async ({ database }, call) => {
      const { volume_id: volumeId, name, no_snapshots: noSnapshots = false } = call.body.transfer;
      const { transfer, authKey } = await createTransfer(database, call.principal, { volumeId, name, noSnapshots });
      const { links, ...rest } = detail(call, transfer);
      return { status: 202, body: { transfer: { ...rest, auth_key: authKey, links } } };
    },
  });

/** Cinder's route handles only the gigabytes quota error, whose message then lacks the exception name. */
const plainly = (error: unknown): unknown =>
  error instanceof QuotaExceededError && error.resource.startsWith("gigabytes") ? asPlainQuotaError(error, 413) : error;

const common = {
  list: defineAction({ handle: listAs(summary) }),
  detail: defineAction({ handle: listAs(detail) }),
  show: defineAction({
    load,
    handle: async (context, call) => ({ status: 200, body: { transfer: detail(call, await load(context, call)) } }),
  }),
  accept: defineAction({
    body: acceptTransferBody,
    handle: async ({ database, config }, call) => {
      const authKey = call.body.accept.auth_key;
      const accepted = acceptTransfer(database, config, call.principal, { id: idOf(call), authKey });
      const row = await accepted.catch((error: unknown) => {
        throw plainly(error);
      });
      return { status: 202, body: { transfer: summary(call, row) } };
    },
  }),
  remove: defineAction({
    load,
    handle: async ({ database }, call) => {
      await deleteTransfer(database, call.principal, idOf(call));
      return { status: 202 };
    },
  }),
};

/** The older of the two names; transfers through it always include the snapshots. */
export const osVolumeTransfers = { ...common, create: createWith(createPlainTransferBody) };
export const volumeTransfers = { ...common, create: createWith(createTransferBody) };
