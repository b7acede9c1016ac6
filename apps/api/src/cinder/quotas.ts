import { getQuota, InvalidError, type QuotaAmounts, setQuota } from "@tephra/control";
import { badRequest } from "../refusals.ts";
import { type Call, defineAction } from "./call.ts";
import { isStorable } from "./fields.ts";
import { booleanWord } from "./listing.ts";
import { pythonRepr, pythonStr } from "./python-text.ts";
import { updateQuotaBody } from "./schemas.ts";
import { fixedQuotas, quotaKeys, quotaSet } from "./views.ts";

const limitMax = 2_147_483_647;

/** The project that the last part of the path names. */
function projectOf(call: Call): string {
  const id = call.params["project"] ?? "";
  if (id.length > 255 || !isStorable(id)) throw badRequest("Invalid input received: that is no project id");
  return id;
}

function limitOf(key: string, value: unknown): number {
  const number =
    typeof value === "number" || (typeof value === "string" && /^-?\d{1,10}$/.test(value)) ? Number(value) : Number.NaN;
  const place = `Invalid input for field/attribute ${key}. Value: ${pythonStr(value)}.`;
  if (!Number.isInteger(number)) throw badRequest(`${place} ${pythonRepr(value)} is not of type 'integer', 'string'`);
  if (number < -1) throw badRequest(`${place} ${number} is less than the minimum of -1`);
  if (number > limitMax) throw badRequest(`${place} ${number} is greater than the maximum of ${limitMax}`);
  return number;
}

/** Limits that a body names. Those that cannot be changed may be repeated as they are. */
function limitsOf(body: Readonly<Record<string, unknown>>): QuotaAmounts {
  const unknown = Object.keys(body).filter((key) => !quotaKeys.includes(key as (typeof quotaKeys)[number]));
  if (unknown.length > 0) throw badRequest(`Bad key(s) in quota set: ${unknown.join(",")}`);
  const limits = Object.entries(body).map(([key, value]) => [key, limitOf(key, value)] as const);
  for (const [key, limit] of limits) {
    if (fixedQuotas[key] !== undefined && fixedQuotas[key] !== limit) {
      throw badRequest(`Invalid input received: Quota ${key} cannot be changed here.`);
    }
  }
  return Object.fromEntries(limits.filter(([key]) => fixedQuotas[key] === undefined));
}

export const quotas = {
  show: defineAction({
    projectOf,
    handle: async ({ database, config }, call) => {
      const project = projectOf(call);
      const usage = booleanWord(call.query.get("usage") ?? "false") ?? false;
      const lines = await getQuota(database, config, project);
      return { status: 200, body: { quota_set: { ...quotaSet(lines, usage), id: project } } };
    },
  }),
  update: defineAction({
    projectOf,
    body: updateQuotaBody,
    handle: async ({ database, config }, call) => {
      const limits = limitsOf(call.body.quota_set);
      const lines = await setQuota(database, config, projectOf(call), limits).catch((error: unknown) => {
        // Cinder says this one without the prefix of its class.
        throw error instanceof InvalidError ? badRequest(error.message) : error;
      });
      return { status: 200, body: { quota_set: quotaSet(lines, false) } };
    },
  }),
};
