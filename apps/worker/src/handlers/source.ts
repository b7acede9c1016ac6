import type { Database } from "@tephra/control";
import { type BackupPlan, distrustChanges } from "@tephra/control/work";
import {
  type BackupLayout,
  type BackupReference,
  type ChangedParts,
  divideChanges,
  EngineError,
  type Extent,
  readChanges,
  SourceChangedError,
  type SourceReference,
  type VolumeSource,
  WrongChangesError,
} from "@tephra/engine";
import type { Places } from "../sites.ts";

const sourceOf = ({ source, volumeId }: BackupPlan): SourceReference =>
  source.kind === "snapshot" ? { snapshotId: source.id } : { volumeId };

/** Opens the source that the plan names, and requires the planned length. */
export async function openPlannedSource(plan: BackupPlan, sites: Places): Promise<VolumeSource> {
  const backend = await sites.backend(plan.backend);
  const source = await backend.openSource(sourceOf(plan));
  if (source.sizeBytes === plan.volumeBytes) return source;
  await source[Symbol.asyncDispose]();
  throw new SourceChangedError(
    `The source of volume ${plan.volumeId} is ${source.sizeBytes} bytes long, ${plan.volumeBytes} were expected.`,
  );
}

/** @throws SourceChangedError when the source's fingerprint has changed: what was read is not a point in time */
export async function assertUnchanged(source: VolumeSource, fingerprint: string, plan: BackupPlan): Promise<void> {
  if ((await source.fingerprint()) !== fingerprint) {
    throw new SourceChangedError(`The source of volume ${plan.volumeId} changed while it was being backed up.`);
  }
}

/**
 * What of each range may differ from the parent, where the plan believes the storage about that. Null where it does not, or the storage
 * cannot tell: everything is read. Asked once for all ranges, since an answer may take as long for a part as for the whole.
 */
export async function plannedChanges(
  plan: BackupPlan,
  sites: Places,
  ranges: readonly Extent[],
): Promise<ChangedParts[] | null> {
  if (plan.changes === undefined) return null;
  const backend = await sites.backend(plan.backend);
  const volume = { offset: 0, length: plan.volumeBytes };
  try {
    const changes = backend.changedExtents(sourceOf(plan), plan.changes.since, volume);
    return await divideChanges(changes, ranges, plan.blockBytes);
  } catch (error) {
    if (error instanceof EngineError) return null;
    throw error;
  }
}

/** In the form that the engine wants. */
export const told = (changed: ChangedParts | undefined, range: Extent): { changed?: Extent[] } =>
  changed === undefined ? {} : { changed: readChanges(changed, range) };

/** Copies with `copy`; when the storage turns out not to have told the truth, it is not believed about this volume again. */
export async function copyDistrustfully<Result>(
  database: Database,
  plan: BackupPlan,
  copy: () => Promise<Result>,
): Promise<Result> {
  try {
    return await copy();
  } catch (error) {
    if (error instanceof WrongChangesError) await distrustChanges(database, plan.volumeId);
    throw error;
  }
}

/** The plan in the engine's form. */
export const layoutOf = (plan: BackupPlan): BackupLayout => ({
  backupId: plan.backupId,
  volumeId: plan.volumeId,
  container: plan.container,
  prefix: plan.prefix,
  compression: plan.compression,
  level: plan.level,
  zlibEncoder: plan.zlibEncoder ?? "zlib",
  objectBytes: plan.objectBytes,
  blockBytes: plan.blockBytes,
  volumeBytes: plan.volumeBytes,
  createdAt: plan.createdAt,
  name: plan.name,
  description: plan.description,
  volumeMeta: plan.volumeMeta,
  parentId: plan.parentId,
  encrypted: plan.encrypted ?? false,
});

export async function parentReference(plan: BackupPlan, sites: Places): Promise<BackupReference | null> {
  if (!plan.parent) return null;
  const { repository, ...names } = plan.parent;
  return { ...names, repository: await sites.repository(repository) };
}

/** The chain of a restore plan with its repositories opened, newest first. */
export async function openChain(
  chain: readonly { backupId: string; repository: string; container: string; prefix: string }[],
  sites: Places,
): Promise<BackupReference[]> {
  const links: BackupReference[] = [];
  for (const { repository, ...names } of chain)
    links.push({ ...names, repository: await sites.repository(repository) });
  return links;
}
