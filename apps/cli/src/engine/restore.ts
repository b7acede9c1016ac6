import {
  type BackupReference,
  type Engine,
  openEngine,
  openNamedTarget,
  type RunContext,
  writableForever,
} from "@tephra/engine";
import type { Output } from "./output.ts";
import { findChain, type NamedRepository, openNamedRepository } from "./repository.ts";

interface RestoreOptions extends NamedRepository {
  backup: string;
  /** `-` is stdout. */
  target: string;
  offset?: number;
  length?: number;
}

interface Restored {
  bytes: number;
  warnings: string[];
}

/**
 * Restores a backup with all its ancestors, or a part of it, to a file, device or pipe. A new file appears only when complete. A part is
 * written at its own offset, and the rest of an existing target is unchanged; a pipe receives only the part.
 */
export async function restoreCommand(options: RestoreOptions, output: Output, signal: AbortSignal): Promise<void> {
  const started = performance.now();
  const piped = options.target === "-";
  if (piped) output.resultAside();
  await using engine = openEngine({ startNow: true });
  await using repository = await openNamedRepository(options);
  const { backup, references } = await findChain(repository, options.backup, signal);
  engine.startThreads(backup.objects);
  const bar = output.progress("restore", options.length ?? backup.volumeBytes - (options.offset ?? 0));
  const onProgress = (progress: { bytesDone: number }): void => bar.update(progress.bytesDone);
  const ctx = { signal, fence: () => {}, writableUntil: writableForever, onProgress };
  const restore = piped ? restoreToPipe : restoreToPath;
  const { bytes, warnings } = await restore(engine, references, options, ctx).finally(() => bar.stop());
  for (const warning of warnings) output.note(`Warning: ${warning}`);
  const seconds = (performance.now() - started) / 1000;
  output.result({ restore: { id: options.backup, target: options.target, bytes, seconds, warnings } }, [
    `Backup ${options.backup} is restored to ${options.target}: ${bytes} bytes, ${seconds.toFixed(1)} s`,
  ]);
}

function partOf(options: RestoreOptions): { extent?: { offset: number; length: number | null } } {
  if (options.offset === undefined && options.length === undefined) return {};
  return { extent: { offset: options.offset ?? 0, length: options.length ?? null } };
}

async function restoreToPath(
  engine: Engine,
  chain: readonly BackupReference[],
  options: RestoreOptions,
  ctx: RunContext,
): Promise<Restored> {
  await using opened = new AsyncDisposableStack();
  let publish = async (): Promise<void> => {};
  const part = partOf(options);
  const openTarget = async (volumeBytes: number) => {
    const keepLength = part.extent !== undefined;
    const path = opened.use(await openNamedTarget(options.target, volumeBytes, { keepLength }));
    publish = () => path.publish();
    return path.target;
  };
  const restored = await engine.restoreWhole({ chain, target: null, openTarget, ...part }, ctx);
  await publish();
  return restored;
}

function restoreToPipe(
  engine: Engine,
  chain: readonly BackupReference[],
  options: RestoreOptions,
  ctx: RunContext,
): Promise<Restored> {
  // Without a listener, EPIPE would end the process; the failed write reports it anyway.
  process.stdout.on("error", () => {});
  const sink = (chunk: Uint8Array): Promise<void> =>
    new Promise((resolve, reject) => {
      process.stdout.write(chunk, (error) => (error ? reject(error) : resolve()));
    });
  return engine.restoreStream({ chain, sink, ...partOf(options) }, ctx);
}
