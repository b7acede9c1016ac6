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
 * Removes all objects of a backup: `_metadata` first, so that it stops existing at once, then `_sha256file`, the data keys of an
 * encrypted one, and the data. No master key is needed.
 * Only names of exactly this prefix are touched: those in the metadata, and those that a listing shows. What is already gone
 * is success, so it can be run again after a crash. `removed` counts the listed objects. InvalidObjectNameError for a
 * prefix that is not a whole one.
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

/** What may keep metadata from being read while the repository is in order. */
const unreadable = ["damaged_object", "unsupported_compression", "encryption_key_missing", "encryption_key_wrong"];

/** Removes everything that an operation has staged; nothing there is success. */
export async function removeStaging(repository: Repository, operationId: string): Promise<void> {
  const container = stagingContainer(operationId);
  const names: string[] = [];
  for await (const { name } of repository.list(container, "")) names.push(name);
  for (const name of names) await repository.remove({ container, name });
}

/** Numbers of the objects that the metadata names; as far as it can be read, for a damaged backup must be removable too. */
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
