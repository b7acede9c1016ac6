import { openEngine, openPathTarget } from "@tephra/engine";
import type { Output } from "./engine-output.ts";
import { findChain, openNamedRepository } from "./engine-repository.ts";

interface RestoreOptions {
  repository: string;
  backup: string;
  target: string;
}

/** Restores a backup and all that it builds on to a file or device. A new file appears only when it is whole. */
export async function restoreCommand(options: RestoreOptions, output: Output, signal: AbortSignal): Promise<void> {
  const started = performance.now();
  await using repository = await openNamedRepository(options.repository);
  const { backup, references } = await findChain(repository, options.backup, signal);
  await using engine = openEngine();
  await using opened = new AsyncDisposableStack();
  let publish = async (): Promise<void> => {};
  const openTarget = async (volumeBytes: number) => {
    const path = opened.use(await openPathTarget(options.target, volumeBytes));
    publish = () => path.publish();
    return path.target;
  };
  const bar = output.progress("restore", backup.volumeBytes);
  const onProgress = (progress: { bytesDone: number }): void => bar.update(progress.bytesDone);
  const ctx = { signal, fence: () => {}, onProgress };
  const input = { chain: references, target: null, openTarget };
  const { bytes, warnings } = await engine.restoreWhole(input, ctx).finally(() => bar.stop());
  await publish();
  for (const warning of warnings) output.note(`Warning: ${warning}`);
  const seconds = (performance.now() - started) / 1000;
  output.result({ restore: { id: options.backup, target: options.target, bytes, seconds, warnings } }, [
    `Backup ${options.backup} is restored to ${options.target}: ${bytes} bytes, ${seconds.toFixed(1)} s`,
  ]);
}
