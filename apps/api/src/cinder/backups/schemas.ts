import type { BackupChange } from "@tephra/control";
import { z } from "zod";
import {
  backupStatus,
  base64Text,
  byVersion,
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
  uuid,
  wrapped,
} from "../../openstack/fields.ts";
import { since } from "../../openstack/microversions.ts";

const backupFields = {
  volume_id: uuid(),
  container: optionalText(),
  description: printableText(),
  incremental: flag(),
  force: flag(),
  name: strippedText(),
  snapshot_id: optionalUuid(),
};

/** The common form of all microversions' bodies: fields that a version lacks have their defaults. */
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

/** Create a backup (cinder-api 6.2). */
export const createBackupBody = byVersion<z.ZodType<CreateBackupBody>>([
  [0, strict({ backup: strict(backupFields) })],
  [since.backupMetadata, strict({ backup: strict({ ...backupFields, metadata: metadata() }) })],
  [
    since.backupZone,
    strict({ backup: strict({ ...backupFields, metadata: metadata(), availability_zone: optionalText() }) }),
  ],
]);

/** Fields that are not sent stay unchanged; null is a change. */
const changedFields = {
  name: changedText(),
  description: changedPrintableText(),
};

export interface UpdateBackupBody {
  backup: BackupChange;
}

/** gophercloud sends the fields without the enclosing object (cinder-api 6.5); null is an empty object. */
const updateBackup = <Shape extends z.ZodRawShape>(shape: Shape) =>
  z.preprocess(
    (body) => wrapped(body, "backup", Object.keys(shape)),
    strict({ backup: nullableObject(shape) }),
  ) as unknown as z.ZodType<UpdateBackupBody>;

/** Update a backup (cinder-api 6.5). */
export const updateBackupBody = byVersion<z.ZodType<UpdateBackupBody>>([
  [0, updateBackup(changedFields)],
  [since.backupMetadata, updateBackup({ ...changedFields, metadata: requiredMetadata().optional() })],
]);

const ResetBackup = strict({ "os-reset_status": strict({ status: backupStatus() }) });

/** Reset a backup's status (cinder-api 6.10). */
export const resetBackupBody = () => ResetBackup;

const ForceDeleteBackup = strict({ "os-force_delete": z.unknown() });

/** The value of the key is ignored (cinder-api 6.10). */
export const forceDeleteBackupBody = () => ForceDeleteBackup;

const RestoreBackup = strict({ restore: nullableObject({ name: optionalText(), volume_id: optionalUuid() }) });

/** Restore a backup (cinder-api 6.7). */
export const restoreBackupBody = () => RestoreBackup;

const ImportRecord = strict({ "backup-record": strict({ backup_service: text(), backup_url: base64Text() }) });

/** Import a record (cinder-api 6.9). */
export const importRecordBody = () => ImportRecord;
