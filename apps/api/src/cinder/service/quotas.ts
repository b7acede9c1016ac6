import {
  getDefaultQuota,
  getQuota,
  getQuotaClass,
  type QuotaLimit,
  type QuotaLimits,
  type QuotaLine,
  resetQuota,
  seesAll,
  setQuota,
  setQuotaClass,
} from "@tephra/control";
import { badRequest } from "../../http/refusals.ts";
import { type Call, defineAction } from "../../openstack/call.ts";
import { isStorable } from "../../openstack/fields.ts";
import { flagOf } from "../../openstack/listing.ts";
import { since } from "../../openstack/microversions.ts";
import { pythonRepr, pythonStr } from "../../openstack/python-text.ts";
import { quotaKeys } from "../../openstack/quota-keys.ts";
import { updateQuotaBody, updateQuotaClassBody } from "./schemas.ts";
import { limitsView, quotaLimits, quotaUsage } from "./views.ts";

const limitMax = 2_147_483_647;

/** The project or quota class in the path. */
function nameOf(call: Call): string {
  const id = call.params["project"] ?? "";
  if (id.length > 255) throw badRequest(`quota_set_name has ${id.length} characters, more than 255.`);
  if (!isStorable(id)) throw badRequest("Invalid input received: that is no project id");
  return id;
}

/** Integers, also as strings in the form that Python's int() accepts. */
function limitOfProject(key: string, value: unknown): number {
  const text = typeof value === "number" || typeof value === "string" ? String(value) : "";
  if (!/^\s*[+-]?\d{1,20}\s*$/.test(text)) throw badRequest(`${key} must be an integer`);
  const limit = Number(text);
  if (limit < -1) throw badRequest(`${key} must be >= -1`);
  if (limit > limitMax) throw badRequest(`${key} must be <= ${limitMax}`);
  return limit;
}

/** As in the schema of quota classes: digits may be a string, but without a sign. */
function limitOfClass(key: string, value: unknown): number {
  const refuse = (why: string) =>
    badRequest(`Invalid input for field/attribute ${key}. Value: ${pythonStr(value)}. ${pythonRepr(value)} ${why}`);
  if (typeof value === "string" && !/^\d*$/.test(value)) throw refuse("does not match '^[0-9]*$'");
  if (value === "") throw refuse("is too short");
  const limit = typeof value === "number" || typeof value === "string" ? Number(value) : Number.NaN;
  if (!Number.isInteger(limit)) throw refuse("is not of type 'integer', 'string'");
  if (limit < -1) throw refuse("is less than the minimum of -1");
  if (limit > limitMax) throw refuse(`is greater than the maximum of ${limitMax}`);
  return limit;
}

const isQuotaKey = (key: string): key is keyof typeof quotaKeys => Object.hasOwn(quotaKeys, key);

/** The limits in a body, under our names. */
function limitsOf(
  body: Readonly<Record<string, unknown>>,
  what: "quota set" | "quota class set",
  limitOf: (key: string, value: unknown) => number,
): Partial<QuotaLimits> {
  const limits = Object.entries(body).flatMap(([key, value]) =>
    isQuotaKey(key) ? [[quotaKeys[key], limitOf(key, value)] as const] : [],
  );
  const unknown = Object.keys(body).filter((key) => !isQuotaKey(key));
  if (unknown.length > 0) throw badRequest(`Invalid input received: Bad key(s) in ${what}: ${unknown.join(", ")}`);
  return Object.fromEntries(limits);
}

const limitsIn = (lines: Readonly<Record<QuotaLimit, QuotaLine>>): QuotaLimits =>
  Object.fromEntries(Object.entries(lines).map(([key, line]) => [key, line.limit])) as QuotaLimits;

/** Keys of a quota set that are not quotas: clients may send them back unchanged. */
const noQuotas = ["id", "tenant_id"];

/** Quotas of projects (cinder-api 9.4). A user_id in the query is ignored: there are no per-user quotas. */
export const quotas = {
  show: defineAction({
    projectOf: nameOf,
    handle: async ({ database, config }, call) => {
      const project = nameOf(call);
      const usage = flagOf(call.query, "usage");
      const lines = await getQuota(database, config, project);
      const shown = usage ? quotaUsage(lines) : quotaLimits(limitsIn(lines));
      return { status: 200, body: { quota_set: { ...shown, id: project } } };
    },
  }),
  defaults: defineAction({
    projectOf: nameOf,
    handle: async ({ database, config }, call) => ({
      status: 200,
      body: { quota_set: { ...quotaLimits(await getDefaultQuota(database, config)), id: nameOf(call) } },
    }),
  }),
  update: defineAction({
    projectOf: nameOf,
    body: updateQuotaBody,
    handle: async ({ database, config }, call) => {
      const named = Object.entries(call.body.quota_set).filter(([key]) => !noQuotas.includes(key));
      const limits = limitsOf(Object.fromEntries(named), "quota set", limitOfProject);
      const lines = await setQuota(database, config, nameOf(call), limits);
      return { status: 200, body: { quota_set: quotaLimits(limitsIn(lines)) } };
    },
  }),
  remove: defineAction({
    projectOf: nameOf,
    handle: async ({ database }, call) => {
      await resetQuota(database, nameOf(call));
      return { status: 200 };
    },
  }),
};

export const quotaClasses = {
  show: defineAction({
    handle: async ({ database, config }, call) => {
      const limits = quotaLimits(await getQuotaClass(database, config, nameOf(call)));
      return { status: 200, body: { quota_class_set: { ...limits, id: nameOf(call) } } };
    },
  }),
  update: defineAction({
    body: updateQuotaClassBody,
    handle: async ({ database, config }, call) => {
      const wanted = limitsOf(call.body.quota_class_set, "quota class set", limitOfClass);
      const limits = await setQuotaClass(database, config, nameOf(call), wanted);
      return { status: 200, body: { quota_class_set: quotaLimits(limits) } };
    },
  }),
};

/** Limits of the caller's project; from 3.39 on who sees all projects may name another (cinder-api 9.3). */
export const limits = {
  show: defineAction({
    handle: async ({ database, config }, call) => {
      const named = call.query.get("project_id") ?? call.query.get("tenant_id");
      const may = seesAll(call.principal) && call.version >= since.limitsOfOthers;
      const project =
        may && named !== null ? nameOf({ ...call, params: { project: named } }) : call.principal.projectId;
      return { status: 200, body: { limits: limitsView(await getQuota(database, config, project)) } };
    },
  }),
};
