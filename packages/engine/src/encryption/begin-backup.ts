import { EncryptionKeyMissingError } from "../errors.ts";
import type { BackupLayout } from "../format/layout.ts";
import type { Repository, RepositoryEncryption } from "../repository/repository.ts";
import type { WriteContext } from "../run/run-context.ts";

/**
 * Does what must be done once, by one caller, before ranges of a backup are copied: makes the data key of one that is encrypted.
 * Repeating it changes nothing. EncryptionKeyMissingError when the repository has no master keys.
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

/** Makes sure that a backup that was begun encrypted goes on so. Errors of keys. */
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
