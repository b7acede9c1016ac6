import {
  type BackupReference,
  describeBackup,
  findBackups,
  findRecord,
  holdsOnlyBackups,
  type ListedBackup,
  openRepository,
  type Repository,
  RepositoryConfigError,
  RepositoryUnavailableError,
  RepositoryUnmarkedError,
  redactRepositoryUrl,
  withoutReplaced,
} from "@tephra/engine";
import { type Output, UsageError } from "./output.ts";

/** How a command line specifies a repository and its encryption keys. */
export interface NamedRepository {
  repository: string;
  keyFile?: string;
  keyCommand?: string[];
}

/** Opens the repository named on a command line; an invalid URL or invalid keys count as wrong usage. */
export async function openNamedRepository(named: NamedRepository): Promise<Repository> {
  const { repository: url, keyFile, keyCommand } = named;
  const encryption = keyFile === undefined && keyCommand === undefined ? undefined : { keyFile, keyCommand };
  try {
    return await openRepository(url, { encryption });
  } catch (error) {
    throw error instanceof RepositoryConfigError ? new UsageError(error.message, { cause: error }) : error;
  }
}

export async function initCommand(options: NamedRepository, output: Output): Promise<void> {
  await using repository = await openNamedRepository(options);
  const { id } = await repository.initialize();
  const remarks = await repository.remarks();
  for (const remark of remarks) output.note(`Note: ${remark}`);
  const url = redactRepositoryUrl(options.repository);
  output.result({ repository: { id, url, remarks } }, [`Repository ${url} is ready (id ${id}).`]);
}

/** Checks that the repository can be written: it is marked, or is marked now where that is safe, and these credentials may write. */
export async function prepareRepository(repository: Repository, url: string, output: Output): Promise<void> {
  try {
    await repository.identity();
  } catch (error) {
    const unmarked = error instanceof RepositoryUnmarkedError || error instanceof RepositoryUnavailableError;
    if (!unmarked || !(await holdsOnlyBackups(repository))) throw error;
    const { id } = await repository.initialize();
    output.note(`Marked ${redactRepositoryUrl(url)} as a new repository (id ${id}).`);
    for (const remark of await repository.remarks()) output.note(`Note: ${remark}`);
  }
  await repository.checkWritable();
}

/** Reports what a search could not read: any backup there is missing from the result. */
export const notePassedOver =
  (output: Output) =>
  (place: string, reason: string): void =>
    output.note(`Passed over ${place}: ${reason}`);

/**
 * The backup with this id and all its ancestors, newest first; `missing` is the id at which the chain breaks. UsageError when the id does
 * not exist.
 */
export async function findChain(
  repository: Repository,
  backupId: string,
  signal: AbortSignal,
): Promise<{ backup: ListedBackup; references: BackupReference[]; missing: string | null }> {
  const places = new Map<string, BackupReference[]>();
  const passedOver: string[] = [];
  const note = (place: string): void => void passedOver.push(place);
  for await (const reference of findBackups(repository, signal, note)) {
    places.set(reference.backupId, [...(places.get(reference.backupId) ?? []), reference]);
  }
  const placeOf = async (id: string): Promise<BackupReference | undefined> => {
    const found = places.get(id) ?? [];
    if (found.length < 2) return found[0] ?? (await findRecord(repository, id, signal))?.reference;
    const described = await Array.fromAsync(found, (reference) => describeBackup(reference, signal));
    return withoutReplaced(described)[0]?.reference;
  };
  const first = await placeOf(backupId);
  if (first === undefined) {
    const where = passedOver.length === 0 ? "" : ` Not open to these rights: ${passedOver.join(", ")}.`;
    throw new UsageError(`There is no backup ${backupId} in the repository.${where}`);
  }
  const backup = await describeBackup(first, signal);
  const references = [first];
  let parentId = backup.parentId;
  while (parentId !== null) {
    const parent = await placeOf(parentId);
    if (parent === undefined || references.includes(parent)) break;
    references.push(parent);
    parentId = (await describeBackup(parent, signal)).parentId;
  }
  return { backup, references, missing: parentId };
}
