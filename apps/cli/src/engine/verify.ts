import { openEngine } from "@tephra/engine";
import { DamageFoundError, type Output } from "./output.ts";
import { findChain, type NamedRepository, openNamedRepository } from "./repository.ts";

interface VerifyOptions extends NamedRepository {
  backup: string;
  quick?: boolean;
}

/** Verifies that a backup can be restored, and prints any damage. Throws DamageFoundError, after the result, if there is any. */
export async function verifyCommand(options: VerifyOptions, output: Output, signal: AbortSignal): Promise<void> {
  const mode = options.quick === true ? "quick" : "deep";
  await using engine = openEngine({ startNow: mode === "deep" });
  await using repository = await openNamedRepository(options);
  const { backup, references } = await findChain(repository, options.backup, signal);
  if (mode === "deep") engine.startThreads(backup.objects);
  const bar = output.progress("verify", backup.volumeBytes);
  const onProgress = (progress: { bytesDone: number }): void => bar.update(progress.bytesDone);
  const ctx = { signal, fence: () => {}, onProgress };
  const result = await engine.verifyBackup({ chain: references, mode }, ctx).finally(() => bar.stop());
  const { objects, blocks, damaged } = result;
  output.result({ verify: { id: options.backup, mode, objects, blocks, damaged } }, [
    ...damaged.map(({ object, reason }) => `${object}: ${reason}`),
    `Backup ${options.backup} is ${damaged.length === 0 ? "whole" : "damaged"}: ${objects} objects and ${blocks} blocks checked (${mode}).`,
  ]);
  if (damaged.length > 0)
    throw new DamageFoundError(`${damaged.length} objects of backup ${options.backup} are damaged.`);
}
