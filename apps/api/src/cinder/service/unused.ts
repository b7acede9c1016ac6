import { defineAction } from "../../openstack/call.ts";

const emptyList = (name: string) => defineAction({ handle: async () => ({ status: 200, body: { [name]: [] } }) });

/** Always-empty lists of resources that cannot be created here: clients and dashboards request them before they show anything. */
export const unused = {
  qosSpecs: emptyList("qos_specs"),
  consistencyGroups: emptyList("consistencygroups"),
  consistencySnapshots: emptyList("cgsnapshots"),
};
