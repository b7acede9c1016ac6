import { defineAction } from "../../openstack/call.ts";
import { enabledFilters } from "../../openstack/enabled-filters.ts";
import { since } from "../../openstack/microversions.ts";

export const resourceFilters = {
  list: defineAction({
    since: since.resourceFilters,
    handle: async (_context, { query }) => {
      const asked = query.get("resource") || null;
      const found = Object.entries(enabledFilters).filter(([resource]) => asked === null || resource === asked);
      return { status: 200, body: { resource_filters: found.map(([resource, filters]) => ({ resource, filters })) } };
    },
  }),
};
