/** The record with which one service imports another's backup. */
export interface BackupRecord {
  backup_service: string;
  backup_url: string;
}

/** The input is not a record; no request was sent. */
export class RecordError extends Error {
  readonly code = "bad_record";
}

/** The answer of an export, or only the record inside it. @throws RecordError */
export function recordIn(value: unknown): BackupRecord {
  const outer = (value as { "backup-record"?: unknown } | null)?.["backup-record"] ?? value;
  const { backup_service: service, backup_url: url } = (outer ?? {}) as Partial<BackupRecord>;
  if (typeof service !== "string" || typeof url !== "string") {
    throw new RecordError("The record has no backup_service and backup_url.");
  }
  return { backup_service: service, backup_url: url };
}
