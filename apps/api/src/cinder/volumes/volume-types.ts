import { seesAll } from "@tephra/control";
import { badRequest, Refusal } from "../../http/refusals.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { booleanWord, type ListSpec, listAnswer, parseList } from "../../openstack/listing.ts";
import { defaultVolumeType, volumeTypeDetail } from "./views.ts";

/** There is only one type, which every volume has. @throws Refusal 404 for any other */
function checkType(call: Call, names: readonly string[]): void {
  const id = call.params["id"] ?? "";
  if (!names.includes(id)) throw new Refusal(404, `Volume type ${id} could not be found.`);
}

/** The order does not matter for a single item. */
const typeList: ListSpec<"any"> = {
  sortKeys: { id: "any", name: "any", created_at: "any", updated_at: "any", is_public: "any", description: "any" },
  filters: enabledFilters.volume_type,
};

/** Whether the public type is requested; only the filter of who sees all counts. @throws Refusal 400 */
function wantsPublic({ principal, query }: Call): boolean {
  const text = query.get("is_public") ?? "None";
  if (!seesAll(principal) || text.toLowerCase() === "none") return true;
  const wanted = booleanWord(text);
  if (wanted === null) throw badRequest(`Invalid is_public filter [${text}]`);
  return wanted;
}

/** Routes of the one volume type (cinder-api 7.6). */
export const volumeTypes = {
  list: defineAction({
    handle: async (_, call) => {
      const query = parseList(call, typeList);
      const { limit, offset } = query.page;
      const rows = query.nothing || !wantsPublic(call) ? [] : [defaultVolumeType].slice(offset, offset + limit);
      const view = () => volumeTypeDetail(call);
      // In Cinder, the key of the links lacks the plural.
      return listAnswer(call, query, {
        name: "volume_types",
        links: "volume_type_links",
        rows,
        count: rows.length,
        view,
      });
    },
  }),
  show: defineAction({
    handle: async (_, call) => {
      checkType(call, [defaultVolumeType.id, "default"]);
      const asDefault = call.params["id"] === "default";
      return { status: 200, body: { volume_type: volumeTypeDetail(call, { asDefault }) } };
    },
  }),
  extraSpecs: defineAction({
    handle: async (_, call) => {
      checkType(call, [defaultVolumeType.id]);
      return { status: 200, body: { extra_specs: {} } };
    },
  }),
  extraSpec: defineAction({
    handle: async (_, call) => {
      checkType(call, [defaultVolumeType.id]);
      const { id, key } = call.params;
      throw new Refusal(404, `Volume Type ${id} has no extra specs with key ${key}.`);
    },
  }),
  /** Cinder's response for a type without encryption. */
  encryption: defineAction({
    handle: async (_, call) => {
      checkType(call, [defaultVolumeType.id]);
      return { status: 200, body: {} };
    },
  }),
  access: defineAction({
    handle: async (_, call) => {
      checkType(call, [defaultVolumeType.id]);
      throw new Refusal(404, "Access list not available for public volume types.");
    },
  }),
};
