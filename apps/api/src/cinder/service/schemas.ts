import { z } from "zod";
import { optionalText, strict, text, typePhrase } from "../../openstack/fields.ts";
import { pythonRepr } from "../../openstack/python-text.ts";

const UpdateQuota = strict({
  quota_set: z
    .record(z.string(), z.unknown(), { error: typePhrase("object") })
    .refine((set) => Object.keys(set).length > 0, { error: "{} does not have enough properties" }),
});

/** Update a quota set (cinder-api 9.4); the values are checked by the route, which knows the keys. */
export const updateQuotaBody = () => UpdateQuota;

const UpdateQuotaClass = strict({
  quota_class_set: z.record(z.string(), z.unknown(), { error: typePhrase("object") }),
});

export const updateQuotaClassBody = () => UpdateQuotaClass;

const host = z
  .string({ error: typePhrase("string", "null") })
  .min(1, { error: "'' is too short" })
  .max(255, { error: (i) => `${pythonRepr(i.input)} is too long` })
  .regex(/^[a-zA-Z0-9-._#@:/+[\]]*$/, {
    error: (i) => `${pythonRepr(i.input)} does not match '^[a-zA-Z0-9-._#@:/+\\\\[\\\\]]*$'`,
  });

const serviceName = text().min(1, { error: "'' is too short" });

const serviceFields = {
  binary: serviceName.optional(),
  service: serviceName.optional(),
  host: host.nullish(),
  cluster: optionalText().optional(),
};

const named = {
  error: (i: { input?: unknown }) => `${pythonRepr(i.input)} is not valid under any of the given schemas`,
};

const isNamed = (body: { binary?: string | undefined; service?: string | undefined }): boolean =>
  (body.binary ?? body.service) !== undefined;

const reason = text()
  .min(1, { error: "'' is too short" })
  .refine((v) => v.trim() !== "", { error: (i) => `${pythonRepr(i.input)} is not a 'disabled_reason'` });

const SwitchService = strict(serviceFields).refine(isNamed, named);

const DisableService = strict({ ...serviceFields, disabled_reason: reason.optional() }).refine(isNamed, named);

/** Enable or disable a service (cinder-api 9.1). */
export const switchServiceBody = () => SwitchService;

export const disableServiceBody = () => DisableService;
