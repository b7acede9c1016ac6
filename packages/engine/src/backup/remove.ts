import { streamEntries } from "../chain/chain.ts";
import { EngineError } from "../errors.ts";
import {
  checkPrefix,
  dataName,
  dataNumber,
  hashListName,
  keyName,
  keyVersion,
  metadataName,
} from "../format/layout.ts";
import { type Repository, stagingContainer } from "../repository/repository.ts";
import type { RunContext } from "../run/run-context.ts";

export interface RemoveInput {
  repository: Repository;
  container: string;
  prefix: string;
}

/**
 * Removes all objects of a backup: `_metadata` first, so that the backup stops existing at once, then `_sha256file`, the data keys if it
 * is encrypted, and the data. No master key is needed. Only names of exactly this prefix are touched: those in the metadata and those in
 * the listing. An object that is already gone counts as success, so it can be run again after a crash. `removed` counts the listed
 * objects. Throws InvalidObjectNameError for an incomplete prefix.
 */
export async function removeBackup(input: RemoveInput, ctx: RunContext): Promise<{ removed: number }> {
  const { repository, container } = input;
  const prefix = checkPrefix(input.prefix);
  const named = await numbersInMetadata(input, ctx.signal);
  let removed = 0;
  const remove = async (name: string): Promise<void> => {
    ctx.signal.throwIfAborted();
    ctx.fence();
    await repository.remove({ container, name });
  };
  const special = [metadataName(prefix), hashListName(prefix)];
  for (const name of special) {
    if (await exists(repository, { container, name })) removed++;
    await remove(name);
  }
  const keys = await Array.fromAsync(repository.list(container, keyName(prefix, "")));
  for (const { name } of keys) {
    if (keyVersion(prefix, name) === null) continue;
    await remove(name);
    removed++;
  }
  for await (const { name } of repository.list(container, prefix)) {
    const number = dataNumber(prefix, name);
    if (number === null && !special.includes(name)) continue;
    await remove(name);
    if (number !== null) named.delete(number);
    removed++;
    ctx.onProgress({ bytesDone: removed, bytesStored: 0 });
  }
  for (const number of named) await remove(dataName(prefix, number));
  return { removed };
}

/** Errors that can make metadata unreadable although the repository itself works. */
const unreadable = ["damaged_object", "unsupported_compression", "encryption_key_missing", "encryption_key_wrong"];

/** Removes everything that an operation has staged; having nothing to remove is success. */
export async function removeStaging(repository: Repository, operationId: string): Promise<void> {
  const container = stagingContainer(operationId);
  const names: string[] = [];
  for await (const { name } of repository.list(container, "")) names.push(name);
  for (const name of names) await repository.remove({ container, name });
}

/** Numbers of the objects named in the metadata, as far as it can be read: a damaged backup must be removable too. */
async function numbersInMetadata(input: RemoveInput, signal: AbortSignal): Promise<Set<number>> {
  const numbers = new Set<number>();
  const reference = { ...input, backupId: input.prefix };
  try {
    for await (const entries of streamEntries(reference, signal)) {
      for (const entry of entries) numbers.add(entry.number);
    }
  } catch (error) {
    if (!(error instanceof EngineError) || !unreadable.includes(error.code)) throw error;
  }
  return numbers;
}

async function exists(repository: Repository, key: { container: string; name: string }): Promise<boolean> {
  try {
    await repository.stat(key);
    return true;
  } catch (error) {
    if (error instanceof EngineError && error.code === "object_missing") return false;
    throw error;
  }
}
