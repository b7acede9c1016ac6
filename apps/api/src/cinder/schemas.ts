import type { BackupChange } from "@tephra/control";
import { z } from "zod";
import {
  backupStatus,
  base64Text,
  changedPrintableText,
  changedText,
  flag,
  metadata,
  nullableObject,
  optionalText,
  optionalUuid,
  printableText,
  requiredMetadata,
  strict,
  strippedText,
  text,
  typePhrase,
  uuid,
  wrapped,
} from "../openstack/fields.ts";
import { type Microversion, since } from "../openstack/microversions.ts";
import { pythonRepr } from "../openstack/python-text.ts";

/** One schema per body and range of microversions; each is built once. */
export const byVersion =
  <Schema>(versions: readonly [Microversion, Schema][]) =>
  (version: Microversion): Schema => {
    const found = versions.findLast(([from]) => version >= from) ?? versions[0];
    if (!found) throw new Error("a body needs at least one schema");
    return found[1];
  };

const backupFields = {
  volume_id: uuid(),
  container: optionalText(),
  description: printableText(),
  incremental: flag(),
  force: flag(),
  name: strippedText(),
  snapshot_id: optionalUuid(),
};

/** What every microversion's body becomes: fields that a version does not know have their defaults. */
export interface CreateBackupBody {
  backup: {
    volume_id: string;
    container: string | null;
    description: string | null;
    incremental: boolean;
    force: boolean;
    name: string | null;
    snapshot_id: string | null;
    metadata?: Record<string, string>;
    availability_zone?: string | null;
  };
}

/** API spec 6.3. */
export const createBackupBody = byVersion<z.ZodType<CreateBackupBody>>([
  [0, strict({ backup: strict(backupFields) })],
  [since.backupMetadata, strict({ backup: strict({ ...backupFields, metadata: metadata() }) })],
  [
    since.backupZone,
    strict({ backup: strict({ ...backupFields, metadata: metadata(), availability_zone: optionalText() }) }),
  ],
]);

/** Fields that are not sent are not changed; null changes them. */
const changedFields = {
  name: changedText(),
  description: changedPrintableText(),
};

export interface UpdateBackupBody {
  backup: BackupChange;
}

/** gophercloud sends the fields without the object around them (API spec 6.4); null is an empty object. */
const updateBackup = <Shape extends z.ZodRawShape>(shape: Shape) =>
  z.preprocess(
    (body) => wrapped(body, "backup", Object.keys(shape)),
    strict({ backup: nullableObject(shape) }),
  ) as unknown as z.ZodType<UpdateBackupBody>;

/** API spec 6.4. */
export const updateBackupBody = byVersion<z.ZodType<UpdateBackupBody>>([
  [0, updateBackup(changedFields)],
  [since.backupMetadata, updateBackup({ ...changedFields, metadata: requiredMetadata().optional() })],
]);

const ResetBackup = strict({ "os-reset_status": strict({ status: backupStatus() }) });
/** API spec 6.9. */
export const resetBackupBody = () => ResetBackup;

const ForceDeleteBackup = strict({ "os-force_delete": z.unknown() });
/** API spec 6.9: whatever the key holds. */
export const forceDeleteBackupBody = () => ForceDeleteBackup;

const RestoreBackup = strict({ restore: nullableObject({ name: optionalText(), volume_id: optionalUuid() }) });
/** API spec 6.6. */
export const restoreBackupBody = () => RestoreBackup;

const ImportRecord = strict({ "backup-record": strict({ backup_service: text(), backup_url: base64Text() }) });
/** API spec 6.8. */
export const importRecordBody = () => ImportRecord;

const UpdateQuota = strict({
  quota_set: z
    .record(z.string(), z.unknown(), { error: typePhrase("object") })
    .refine((set) => Object.keys(set).length > 0, { error: "{} does not have enough properties" }),
});
/** API spec 7.10; the values are looked at by the route, which knows the keys. */
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
/** API spec 7.7. */
export const switchServiceBody = () => SwitchService;
export const disableServiceBody = () => DisableService;

const Anything = z.unknown();
/** Where a body is expected, and nothing of it matters. */
export const anyBody = () => Anything;
