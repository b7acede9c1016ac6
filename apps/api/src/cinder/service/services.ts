import { listServices, listZones, setService } from "@tephra/control";
import type { Context } from "../../context.ts";
import { badRequest, Refusal } from "../../http/refusals.ts";
import { type Answer, type Call, defineAction } from "../../openstack/call.ts";
import { anyBody } from "../../openstack/fields.ts";
import { disableServiceBody, switchServiceBody } from "./schemas.ts";
import { serviceView } from "./views.ts";

interface Named {
  binary?: string | undefined;
  service?: string | undefined;
  host?: string | null | undefined;
  disabled_reason?: string | undefined;
}

async function switchService({ database, config }: Context, body: Named, disabled: boolean): Promise<Answer> {
  const { binary = "", service = "", disabled_reason: reason } = body;
  const name = binary || service;
  if (!body.host) throw badRequest("Invalid input received: Host field is missing.");
  const host = body.host;
  const found = await setService(database, config, { binary: name, host, disabled, reason });
  if (!found) throw new Refusal(404, `Service ${name} could not be found on host ${host}.`);
  return { status: 200, body: { disabled, host, service, binary, status: disabled ? "disabled" : "enabled" } };
}

/** Services, and enabling and disabling them (cinder-api 9.1). */
export const services = {
  list: defineAction({
    handle: async ({ database, config }, call) => {
      const { query } = call;
      const filter = { binary: query.get("binary") ?? undefined, host: query.get("host") ?? undefined };
      const rows = await listServices(database, config, filter);
      return { status: 200, body: { services: rows.map((row) => serviceView(call, row)) } };
    },
  }),
  enable: defineAction({
    body: switchServiceBody,
    handle: async (context, { body }) => switchService(context, body, false),
  }),
  disable: defineAction({
    body: switchServiceBody,
    handle: async (context, { body }) => switchService(context, body, true),
  }),
  disableWithReason: defineAction({
    body: disableServiceBody,
    handle: async (context, { body }) => {
      const answer = await switchService(context, body, true);
      return { ...answer, body: { disabled_reason: body.disabled_reason ?? null, ...(answer.body as object) } };
    },
  }),
  other: defineAction({
    body: anyBody,
    handle: async () => {
      throw badRequest("Invalid input received: Unknown action");
    },
  }),
};

/** Availability zones (cinder-api 9.2). */
export const zones = {
  list: defineAction({
    handle: async ({ database, config }) => {
      const rows = await listZones(database, config);
      const info = rows.map(({ name, available }) => ({ zoneName: name, zoneState: { available } }));
      return { status: 200, body: { availabilityZoneInfo: info } };
    },
  }),
};

/** Parts of Cinder's API that were added one by one as extensions: alias → name, description, date. */
const extensionTable: Readonly<Record<string, readonly [name: string, description: string, updated: string]>> = {
  backups: ["Backups", "Backups support.", "2012-12-12T00:00:00+00:00"],
  capabilities: ["Capabilities", "Capabilities support.", "2015-08-31T00:00:00+00:00"],
  "os-admin-actions": ["AdminActions", "Enable admin actions.", "2012-08-25T00:00:00+00:00"],
  "os-availability-zone": ["AvailabilityZones", "Describe Availability Zones.", "2013-06-27T00:00:00+00:00"],
  "os-extended-services": ["ExtendedServices", "Extended services support.", "2014-01-10T00:00:00-00:00"],
  "os-extended-snapshot-attributes": [
    "ExtendedSnapshotAttributes",
    "Extended SnapshotAttributes support.",
    "2012-06-19T00:00:00+00:00",
  ],
  "os-hosts": ["Hosts", "Admin-only host administration.", "2011-06-29T00:00:00+00:00"],
  "os-quota-class-sets": ["QuotaClasses", "Quota classes management support.", "2012-03-12T00:00:00+00:00"],
  "os-quota-sets": ["Quotas", "Quota management support.", "2011-08-08T00:00:00+00:00"],
  "os-services": ["Services", "Services support.", "2012-10-28T00:00:00-00:00"],
  "os-snapshot-actions": ["SnapshotActions", "Enable snapshot manager actions.", "2013-07-16T00:00:00+00:00"],
  "os-types-extra-specs": ["TypesExtraSpecs", "Type extra specs support.", "2011-08-24T00:00:00+00:00"],
  "os-used-limits": [
    "UsedLimits",
    "Provide data on limited resources that are being used.",
    "2013-10-03T00:00:00+00:00",
  ],
  "os-vol-host-attr": ["VolumeHostAttribute", "Expose host as an attribute of a volume.", "2011-11-03T00:00:00+00:00"],
  "os-vol-mig-status-attr": [
    "VolumeMigStatusAttribute",
    "Expose migration_status as an attribute of a volume.",
    "2013-08-08T00:00:00+00:00",
  ],
  "os-vol-tenant-attr": [
    "VolumeTenantAttribute",
    "Expose the internal project_id as an attribute of a volume.",
    "2011-11-03T00:00:00+00:00",
  ],
  "os-volume-actions": ["VolumeActions", "Enable volume actions.", "2012-05-31T00:00:00+00:00"],
  "os-volume-encryption-metadata": [
    "VolumeEncryptionMetadata",
    "Volume encryption metadata retrieval support.",
    "2013-07-10T00:00:00+00:00",
  ],
  "os-volume-transfer": ["VolumeTransfer", "Volume transfer management support.", "2013-05-29T00:00:00+00:00"],
  "scheduler-stats": ["Scheduler_stats", "Scheduler stats support.", "2014-09-07T00:00:00+00:00"],
};

function extensionView(alias: string): Record<string, unknown> | null {
  const found = Object.hasOwn(extensionTable, alias) ? extensionTable[alias] : undefined;
  if (!found) return null;
  const [name, description, updated] = found;
  return { name, alias, description, updated, links: [] };
}

/** Cinder's extensions that are supported here (cinder-api 9.5). */
export const extensions = {
  list: defineAction({
    handle: async () => ({ status: 200, body: { extensions: Object.keys(extensionTable).map(extensionView) } }),
  }),
  show: defineAction({
    handle: async (_context: Context, call: Call) => {
      const extension = extensionView(call.params["alias"] ?? "");
      if (!extension) throw new Refusal(404, "The resource could not be found.");
      return { status: 200, body: { extension } };
    },
  }),
};
