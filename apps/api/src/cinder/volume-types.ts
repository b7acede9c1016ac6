import { Refusal } from "../refusals.ts";
import { type Call, defineAction } from "./call.ts";
import { defaultVolumeType, volumeTypeDetail } from "./views.ts";

/** There is one type, which every volume has. @throws Refusal 404 for any other */
function checkType(call: Call, names: readonly string[]): void {
  const id = call.params["id"] ?? "";
  if (!names.includes(id)) throw new Refusal(404, `Volume type ${id} could not be found.`);
}

/** API spec 7.6. */
export const volumeTypes = {
  list: defineAction({
    handle: async (_, call) => ({ status: 200, body: { volume_types: [volumeTypeDetail(call)] } }),
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
};
