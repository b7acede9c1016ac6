import { prefixOf } from "@tephra/format";
import { EncryptionKeyMissingError, EncryptionKeyWrongError, InvalidBackupError } from "../errors.ts";
import { keyVersion } from "../format/layout.ts";
import type { BackupPlace, Repository } from "../repository/repository.ts";
import type { RunContext } from "../run/run-context.ts";
import { listContainer } from "./list-backups.ts";

export interface RewrapResult {
  /** Backups whose data key is wrapped by the current master key now, and was not before. */
  rewrapped: string[];
  /** Backups for which nothing had to be done. */
  current: number;
  /** Backups whose key could not be opened: they are as they were. */
  failed: { backupId: string; reason: string }[];
}

/**
 * Wraps the data keys of encrypted backups by the current master key: of all, also of those that are still being made, or of one. No
 * other object is touched. It can be broken off at any moment and run again. Master keys that no data key is wrapped by any more may
 * be thrown away. EncryptionKeyMissingError when the repository has no master keys.
 */
export async function rewrap(
  input: { repository: Repository; backupId: string | null },
  ctx: RunContext,
): Promise<RewrapResult> {
  const { encryption } = input.repository;
  if (encryption === undefined) throw new EncryptionKeyMissingError("A rewrap needs the master keys, old and new.");
  const result: RewrapResult = { rewrapped: [], current: 0, failed: [] };
  for await (const place of placesWithKeys(encryption.stored, ctx.signal)) {
    const backupId = place.prefix.slice(place.prefix.lastIndexOf("_") + 1);
    if (input.backupId !== null && input.backupId !== backupId) continue;
    try {
      if (await encryption.rewrapKey(place, ctx)) result.rewrapped.push(backupId);
      else result.current++;
    } catch (error) {
      const ofKey = error instanceof EncryptionKeyMissingError || error instanceof EncryptionKeyWrongError;
      if (!ofKey && !(error instanceof InvalidBackupError)) throw error;
      result.failed.push({ backupId, reason: error.message });
    }
  }
  return result;
}

/** Every place that has a data key, once; found by the keys, so that a backup without `_metadata` is among them. */
async function* placesWithKeys(stored: Repository, signal: AbortSignal): AsyncGenerator<BackupPlace> {
  for await (const container of stored.containers()) {
    const prefixes = new Set<string>();
    for await (const { name } of listContainer(stored, container, () => {})) {
      signal.throwIfAborted();
      const prefix = prefixOf(name);
      if (prefix !== null && keyVersion(prefix, name) !== null) prefixes.add(prefix);
    }
    for (const prefix of prefixes) yield { container, prefix };
  }
}
