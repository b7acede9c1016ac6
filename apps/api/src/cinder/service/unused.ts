import { defineAction } from "../../openstack/call.ts";

const emptyList = (name: string) => defineAction({ handle: async () => ({ status: 200, body: { [name]: [] } }) });

/** Lists of what nobody can make here: clients and dashboards ask for them before they show anything. */
export const unused = {
  qosSpecs: emptyList("qos_specs"),
  consistencyGroups: emptyList("consistencygroups"),
  consistencySnapshots: emptyList("cgsnapshots"),
};
