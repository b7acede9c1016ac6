import { prefixOf } from "@tephra/format";
import { EncryptionKeyMissingError, EncryptionKeyWrongError, InvalidBackupError } from "../errors.ts";
import { keyVersion } from "../format/layout.ts";
import type { BackupPlace, Repository } from "../repository/repository.ts";
import type { RunContext } from "../run/run-context.ts";
import { listContainer } from "./list-backups.ts";

export interface RewrapResult {
  /** Backups whose data key is now wrapped by the current master key, and was not before. */
  rewrapped: string[];
  /** Number of backups that needed no change. */
  current: number;
  /** Backups whose key could not be unwrapped; they are unchanged. */
  failed: { backupId: string; reason: string }[];
}

/**
 * Rewraps the data keys of encrypted backups with the current master key: of all backups, including those still being created, or of one.
 * No other object is touched. It can be interrupted at any moment and run again. A master key that no longer wraps any data key may be
 * discarded. EncryptionKeyMissingError when the repository has no master keys.
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

/** Every place that has a data key, once; found by its key objects, so that backups without `_metadata` are included. */
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
