import {
  createGroupType,
  deleteGroupType,
  type GroupType,
  type GroupTypeSortKey,
  getGroupType,
  instanceGroupType,
  isUuid,
  listGroupTypes,
  NotFoundError,
  seesAll,
  updateGroupType,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { badRequest, Refusal } from "../../http/refusals.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { booleanWord, type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { createGroupTypeBody, groupSpecsBody, oneSpecBody, updateGroupTypeBody } from "./schemas.ts";
import { groupTypeView } from "./views.ts";

const listSpec: ListSpec<GroupTypeSortKey> = {
  sortKeys: {
    id: "id",
    name: "name",
    created_at: "createdAt",
    updated_at: "updatedAt",
    is_public: "isPublic",
    description: "description",
  },
  filters: ["is_public"],
};

/** The `is_public` filter: non-public types are visible to those who see all projects, who may choose. @throws Refusal 400 */
function publicOf({ principal, query }: Call): boolean | null {
  if (!seesAll(principal)) return true;
  const text = query.get("is_public");
  if (text === null) return true;
  if (text.toLowerCase() === "none") return null;
  const wanted = booleanWord(text);
  if (wanted === null) throw badRequest(`Invalid is_public filter [${text}]`);
  return wanted;
}

/** The default type is that of instance groups; there is no other default. @throws NotFoundError */
async function load({ database }: Context, call: Call): Promise<GroupType> {
  const id = call.params["id"] ?? "";
  if (id !== "default" && !isUuid(id)) throw new NotFoundError("Group type", id);
  const type = await getGroupType(database, id === "default" ? instanceGroupType : id);
  if (!type.isPublic && !seesAll(call.principal)) throw new NotFoundError("Group type", id);
  return type;
}

const specsOf = (type: GroupType) => type.groupSpecs as Record<string, string>;
const keyOf = (call: Call): string => call.params["key"] ?? "";
const noSpec = (type: GroupType, key: string) =>
  new Refusal(404, `Group Type ${type.id} has no specs with key ${key}.`);

/** Group types; their specs are visible to admins only. */
export const groupTypes = {
  list: defineAction({
    since: since.groupTypes,
    handle: async ({ database }, call) => {
      const query = parseList(call, listSpec);
      const rows = query.nothing ? [] : await listGroupTypes(database, { isPublic: publicOf(call), page: query.page });
      const links = "group_type_links";
      return listAnswer(call, query, { name: "group_types", links, rows, count: rows.length, view: groupTypeView });
    },
  }),
  show: defineAction({
    since: since.groupTypes,
    load,
    handle: async (context, call) => {
      return { status: 200, body: { group_type: groupTypeView(call, await load(context, call)) } };
    },
  }),
  create: defineAction({
    since: since.groupTypes,
    body: createGroupTypeBody,
    handle: async ({ database }, call) => {
      const { name, description, is_public: isPublic, group_specs: groupSpecs = {} } = call.body.group_type;
      const row = await createGroupType(database, { name, description, isPublic: isPublic ?? true, groupSpecs });
      return { status: 202, body: { group_type: groupTypeView(call, row) } };
    },
  }),
  update: defineAction({
    since: since.groupTypes,
    body: updateGroupTypeBody,
    load,
    handle: async (context, call) => {
      const { name, description, is_public: isPublic } = call.body.group_type;
      const { id } = await load(context, call);
      const row = await updateGroupType(context.database, id, {
        ...(name !== undefined && { name }),
        ...(description !== undefined && { description }),
        ...(isPublic !== null && { isPublic }),
      });
      return { status: 200, body: { group_type: groupTypeView(call, row) } };
    },
  }),
  remove: defineAction({
    since: since.groupTypes,
    load,
    handle: async (context, call) => {
      await deleteGroupType(context.database, (await load(context, call)).id);
      return { status: 202 };
    },
  }),
  specs: defineAction({
    since: since.groupTypes,
    load,
    handle: async (context, call) => ({ status: 200, body: { group_specs: specsOf(await load(context, call)) } }),
  }),
  addSpecs: defineAction({
    since: since.groupTypes,
    body: groupSpecsBody,
    load,
    handle: async (context, call) => {
      const type = await load(context, call);
      const groupSpecs = { ...specsOf(type), ...call.body.group_specs };
      await updateGroupType(context.database, type.id, { groupSpecs });
      return { status: 202, body: { group_specs: call.body.group_specs } };
    },
  }),
  spec: defineAction({
    since: since.groupTypes,
    load,
    handle: async (context, call) => {
      const type = await load(context, call);
      const [key, value] = [keyOf(call), specsOf(type)[keyOf(call)]];
      if (value === undefined) throw noSpec(type, key);
      return { status: 200, body: { [key]: value } };
    },
  }),
  setSpec: defineAction({
    since: since.groupTypes,
    body: oneSpecBody,
    load,
    handle: async (context, call) => {
      const key = keyOf(call);
      if (!Object.hasOwn(call.body, key)) throw badRequest("Request body and URI mismatch.");
      const type = await load(context, call);
      await updateGroupType(context.database, type.id, { groupSpecs: { ...specsOf(type), ...call.body } });
      return { status: 200, body: call.body };
    },
  }),
  removeSpec: defineAction({
    since: since.groupTypes,
    load,
    handle: async (context, call) => {
      const type = await load(context, call);
      const { [keyOf(call)]: removed, ...groupSpecs } = specsOf(type);
      if (removed === undefined) throw noSpec(type, keyOf(call));
      await updateGroupType(context.database, type.id, { groupSpecs });
      return { status: 202 };
    },
  }),
};
