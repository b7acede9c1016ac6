import { EncryptionKeyMissingError } from "../errors.ts";
import type { BackupLayout } from "../format/layout.ts";
import type { Repository, RepositoryEncryption } from "../repository/repository.ts";
import type { WriteContext } from "../run/run-context.ts";

/**
 * Does what one caller must do once before any range of a backup is copied: creates the data key if the backup is encrypted. Idempotent.
 * EncryptionKeyMissingError when the repository has no master keys.
 */
export async function beginBackup(
  { repository, layout }: { repository: Repository; layout: BackupLayout },
  ctx: WriteContext,
): Promise<void> {
  const encryption = encryptionFor(repository, layout);
  if (encryption === null) return;
  await repository.ensureContainer(layout.container);
  await encryption.beginBackup(layout, ctx);
}

/** Makes sure that a backup begun as encrypted continues encrypted. Throws the errors of key lookup. */
export async function requireKey(repository: Repository, layout: BackupLayout): Promise<void> {
  await encryptionFor(repository, layout)?.requireKey(layout);
}

/** Null for a backup that is not encrypted. */
export function encryptionFor(repository: Repository, layout: BackupLayout): RepositoryEncryption | null {
  if (layout.encrypted !== true) return null;
  if (repository.encryption === undefined) {
    throw new EncryptionKeyMissingError(
      `Backup ${layout.backupId} is to be encrypted, and no master key is configured for its repository.`,
    );
  }
  return repository.encryption;
}
