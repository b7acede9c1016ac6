/**
 * Every error the engine can throw. Each has a literal `code`, and `retryable` says whether the same call may succeed later without
 * intervention. An abort is not an engine error: the signal's reason is thrown unchanged.
 */
export abstract class EngineError extends Error {
  abstract readonly code: string;
  abstract readonly retryable: boolean;

  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The URL or settings of a repository cannot be used. */
export class RepositoryConfigError extends EngineError {
  readonly code = "repository_config";
  readonly retryable = false;
}

/** The folder exists but has no repository marker: an unmounted share looks exactly like this. */
export class RepositoryUnmarkedError extends EngineError {
  readonly code = "repository_unmarked";
  readonly retryable = false;
}

/** The repository cannot be reached, read or written. */
export class RepositoryUnavailableError extends EngineError {
  readonly code = "repository_unavailable";
  readonly retryable: boolean;

  constructor(message: string, options: { cause?: unknown; retryable: boolean }) {
    super(message, options);
    this.retryable = options.retryable;
  }
}

/** The repository responds but denies these credentials the operation. */
export class RepositoryDeniedError extends EngineError {
  readonly code = "repository_denied";
  readonly retryable = false;
}

/** The repository asks for fewer requests. `retryAfterMs` is the pause it requests, if any. */
export class RepositoryThrottledError extends EngineError {
  readonly code = "repository_throttled";
  readonly retryable = true;
  readonly retryAfterMs: number | null;

  constructor(message: string, options: { cause?: unknown; retryAfterMs: number | null }) {
    super(message, options);
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** No space or quota left in the backup storage. */
export class RepositoryFullError extends EngineError {
  readonly code = "repository_full";
  readonly retryable = false;
}

export class InvalidContainerError extends EngineError {
  readonly code = "invalid_container";
  readonly retryable = false;
}

/** A name that cannot belong to a backup; nothing was read, written or removed. */
export class InvalidObjectNameError extends EngineError {
  readonly code = "invalid_object_name";
  readonly retryable = false;
}

export class ObjectMissingError extends EngineError {
  readonly code = "object_missing";
  readonly retryable = false;
  readonly container: string;
  readonly object: string;

  constructor(key: { container: string; name: string }, options?: { cause?: unknown }) {
    super(`Object ${key.name} is missing in container ${key.container}.`, options);
    this.container = key.container;
    this.object = key.name;
  }
}

/** The name is already taken by different bytes. Two writers disagree, which must never happen: nothing was changed. */
export class ObjectConflictError extends EngineError {
  readonly code = "object_conflict";
  readonly retryable = false;
  readonly container: string;
  readonly object: string;

  constructor(key: { container: string; name: string }) {
    super(`Object ${key.name} in container ${key.container} already exists with different contents.`);
    this.container = key.container;
    this.object = key.name;
  }
}

/** Stored bytes are not what was written, seen in two separate reads. */
export class DamagedObjectError extends EngineError {
  readonly code = "damaged_object";
  readonly retryable = false;
  readonly backupId: string;
  readonly object: string;
  readonly reason: string;

  constructor(damage: { backupId: string; object: string; reason: string }, options?: { cause?: unknown }) {
    super(`Backup ${damage.backupId} is damaged: object ${damage.object}: ${damage.reason}.`, options);
    this.backupId = damage.backupId;
    this.object = damage.object;
    this.reason = damage.reason;
  }
}

/** The storage had said that a part of the volume is as in the parent, and it is not: what else it said cannot be trusted, either. */
export class WrongChangesError extends EngineError {
  readonly code = "wrong_changes";
  readonly retryable = false;

  constructor({ offset, length }: { offset: number; length: number }) {
    super(
      `The storage does not report all changes: ${length} bytes at ${offset} differ from the parent backup, and were said to be the same. ` +
        "The next backup of this volume reads all of it.",
    );
  }
}

/** The backup is complete, but this build cannot decode it. The text is Cinder's. */
export class UnsupportedCompressionError extends EngineError {
  readonly code = "unsupported_compression";
  readonly retryable = false;
  readonly label: string;

  constructor(label: string) {
    super(`unsupported compression algorithm: ${label}`);
    this.label = label;
  }
}

/** The backup is encrypted, and the master key that unwraps its key is not available. The backup itself is intact. */
export class EncryptionKeyMissingError extends EngineError {
  readonly code = "encryption_key_missing";
  readonly retryable = false;
}

/**
 * The master key that a backup names is available but does not unwrap its data key: it is a different key, or the backup's key object is
 * damaged.
 */
export class EncryptionKeyWrongError extends EngineError {
  readonly code = "encryption_key_wrong";
  readonly retryable = false;
}

/** The codec is known, but this machine lacks what it needs. */
export class CodecUnavailableError extends EngineError {
  readonly code = "codec_unavailable";
  readonly retryable = false;
  readonly codec: string;

  constructor(codec: string, reason: string, options?: { cause?: unknown }) {
    super(`Compression ${codec} cannot be used here: ${reason}.`, options);
    this.codec = codec;
  }
}

/** The request cannot be carried out with this backup or parent; the text is Cinder's where Cinder has one. */
export class InvalidBackupError extends EngineError {
  readonly code = "invalid_backup";
  readonly retryable = false;

  constructor(reason: string, options?: { cause?: unknown }) {
    super(`Invalid backup: ${reason}`, options);
  }
}

/** Text that is not an export record, or the record of a backup that this repository cannot hold. */
export class InvalidRecordError extends EngineError {
  readonly code = "invalid_record";
  readonly retryable = false;

  constructor(reason: string, options?: { cause?: unknown }) {
    super(`Not a usable export record: ${reason}.`, options);
  }
}

/** An export record that lacks mandatory keys; the text is Cinder's. */
export class IncompleteRecordError extends EngineError {
  readonly code = "incomplete_record";
  readonly retryable = false;

  constructor(missing: readonly string[]) {
    super(`Driver successfully decoded imported backup data, but there are missing fields (${missing.join(", ")}).`);
  }
}

/** The sizes or names fixed at plan time contradict each other. */
export class InvalidLayoutError extends EngineError {
  readonly code = "invalid_layout";
  readonly retryable = false;
}

/** Indexes of ranges whose objects or slices are incomplete: copy these again, then seal again. */
export class RangesIncompleteError extends EngineError {
  readonly code = "ranges_incomplete";
  readonly retryable = true;
  readonly ranges: number[];

  constructor(ranges: number[]) {
    super(`Objects of ${ranges.length === 1 ? "range" : "ranges"} ${ranges.join(", ")} are missing or incomplete.`);
    this.ranges = ranges;
  }
}

/** Objects under the backup's prefix that no range has written: Cinder would reject such a backup. */
export class StrayObjectsError extends EngineError {
  readonly code = "stray_objects";
  readonly retryable = false;
  readonly objects: string[];

  constructor(objects: string[]) {
    super(`Objects that do not belong to the backup lie under its prefix: ${objects.join(", ")}.`);
    this.objects = objects;
  }
}

/** The source changed or shrank while it was read. */
export class SourceChangedError extends EngineError {
  readonly code = "source_changed";
  readonly retryable = false;
}

/** The source of a backup, snapshot or import does not exist or cannot be read. */
export class SourceMissingError extends EngineError {
  readonly code = "source_missing";
  readonly retryable = false;
}

/** A required volume does not exist, or one exists that must not. */
export class VolumeConflictError extends EngineError {
  readonly code = "volume_conflict";
  readonly retryable = false;
}

/** The volume's own storage failed; the backup is not at fault. */
export class VolumeStorageError extends EngineError {
  readonly code = "volume_storage";
  readonly retryable: boolean;

  constructor(message: string, options: { cause?: unknown; retryable: boolean }) {
    super(message, options);
    this.retryable = options.retryable;
  }
}

/** No space left in the volume storage. */
export class VolumeStorageFullError extends EngineError {
  readonly code = "volume_storage_full";
  readonly retryable = false;
}

/**
 * Restored data reads back differently from what was written, although every object of the backup is intact: the volume's storage is at
 * fault.
 */
export class RestoredWrongError extends EngineError {
  readonly code = "restored_wrong";
  readonly retryable = true;

  /** `at` is the offset of the wrong block. */
  constructor(at: number) {
    super(`The restored volume does not hold what was written to it: the hash of the block at byte ${at} is wrong.`);
  }
}

/** A volume's driver cannot do this at all. The beginning is Cinder's (NotSupportedOperation). */
export class OperationNotSupportedError extends EngineError {
  readonly code = "operation_not_supported";
  readonly retryable = false;

  constructor(operation: string, why: string) {
    super(`Operation not supported: ${operation}. On this backend ${why}.`);
  }
}

/** The folder of a volume backend is missing or not writable. */
export class BackendUnavailableError extends EngineError {
  readonly code = "backend_unavailable";
  readonly retryable = true;
}

/**
 * The storage is at work on what was asked of it, or does not answer at the moment: the same call is to be made again after `retryAfterMs`,
 * and the caller need not stay meanwhile. Who has been told so for `giveUpAfterMs` gives up.
 */
export class NotReadyYetError extends EngineError {
  readonly code = "not_ready_yet";
  readonly retryable = true;
  readonly retryAfterMs: number;
  readonly giveUpAfterMs: number;

  constructor(message: string, options: { cause?: unknown; retryAfterMs: number; giveUpAfterMs: number }) {
    super(message, options);
    this.retryAfterMs = options.retryAfterMs;
    this.giveUpAfterMs = options.giveUpAfterMs;
  }
}

/** A path outside the configured folders, or one that is not a regular file. */
export class PathNotAllowedError extends EngineError {
  readonly code = "path_not_allowed";
  readonly retryable = false;
}

/** An existing file would have been replaced without permission to overwrite. */
export class PathTakenError extends EngineError {
  readonly code = "path_taken";
  readonly retryable = false;
}

/** The name of a volume to read or write is not one that can be understood. */
export class InvalidVolumeUrlError extends EngineError {
  readonly code = "invalid_volume_url";
  readonly retryable = false;
}

/** A hypervisor or guest agent does not respond, or not in time. */
export class HypervisorUnavailableError extends EngineError {
  readonly code = "hypervisor_unavailable";
  readonly retryable = true;
}

/** A hypervisor or guest agent responds but refuses or cannot do this; the message quotes it. */
export class HypervisorRefusedError extends EngineError {
  readonly code = "hypervisor_refused";
  readonly retryable = false;
}

/** A checkpoint has been lost or removed: only a full backup can follow. */
export class CheckpointInvalidError extends EngineError {
  readonly code = "checkpoint_invalid";
  readonly retryable = false;
}

/** Where the overwritten blocks of a machine under backup are kept, there is too little space. */
export class ScratchFullError extends EngineError {
  readonly code = "scratch_full";
  readonly retryable = false;
}

/** The guest could not be frozen, or not for long enough, and a frozen guest was required. Nothing was kept. */
export class GuestNotFrozenError extends EngineError {
  readonly code = "guest_not_frozen";
  readonly retryable = false;

  constructor(reason: string, options?: { cause?: unknown }) {
    super(`The guest was not frozen while its snapshots were taken: ${reason}.`, options);
  }
}

/** A thread of the engine died; the call that used it can be repeated. */
export class ThreadFailedError extends EngineError {
  readonly code = "thread_failed";
  readonly retryable = true;
}

/** The errno name of a system error, or "" for anything else. */
export function errnoOf(error: unknown): string {
  if (error instanceof Error && "code" in error && typeof error.code === "string") return error.code;
  return "";
}

/**
 * What was asked about the files of a disk cannot be told. `invalid`: the request makes no sense; `missing`: there is no such file or
 * partition; `unfit`: it is another thing than was asked for, or one that is not read; `damaged`: what is there makes no sense.
 */
export class FilesError extends EngineError {
  readonly code = "files";
  readonly retryable = false;
  readonly kind: "invalid" | "missing" | "unfit" | "damaged";

  constructor(kind: FilesError["kind"], message: string) {
    super(message);
    this.kind = kind;
  }
}
