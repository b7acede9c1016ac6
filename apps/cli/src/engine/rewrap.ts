import { rewrap } from "@tephra/engine";
import { DamageFoundError, type Output, UsageError } from "./output.ts";
import { type NamedRepository, openNamedRepository } from "./repository.ts";

interface RewrapOptions extends NamedRepository {
  all?: boolean;
  backup?: string;
}

/**
 * Wraps data keys with the newest master key and prints the outcome. Throws DamageFoundError, after the result, when a key could not be
 * unwrapped.
 */
export async function rewrapCommand(options: RewrapOptions, output: Output, signal: AbortSignal): Promise<void> {
  if ((options.all === true) === (options.backup !== undefined))
    throw new UsageError("Specify either --all or --backup.");
  await using repository = await openNamedRepository(options);
  if (repository.encryption === undefined) throw new UsageError("A rewrap needs --key-file or --key-command.");
  const ctx = { signal, fence: () => {}, onProgress: () => {} };
  const { rewrapped, current, failed } = await rewrap({ repository, backupId: options.backup ?? null }, ctx);
  const none = rewrapped.length + current + failed.length === 0;
  if (none && options.backup !== undefined) throw new UsageError(`There is no encrypted backup ${options.backup}.`);
  output.result(
    { rewrap: { rewrapped, current, failed: failed.map(({ backupId, reason }) => ({ id: backupId, reason })) } },
    [
      ...failed.map(({ reason }) => reason),
      `${rewrapped.length} data keys rewrapped, ${current} were already, ${failed.length} could not be opened.`,
    ],
  );
  if (failed.length > 0) throw new DamageFoundError(`${failed.length} data keys could not be opened.`);
}
