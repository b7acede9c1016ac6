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
} from "@tephra/engine";
import { type Output, UsageError } from "./output.ts";

/** How a command line names a repository, and the keys of what is encrypted there. */
export interface NamedRepository {
  repository: string;
  keyFile?: string;
  keyCommand?: string[];
}

/** Opens the repository that a command line names; a URL that is none, or keys that are none, are wrong usage. */
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

/** Makes sure that the repository may be written: marked, or marked now when that cannot be a mistake, and open to these rights. */
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

/** Says what a search could not look at: what lies there, if it is a backup, is not in the result. */
export const notePassedOver =
  (output: Output) =>
  (place: string, reason: string): void =>
    output.note(`Passed over ${place}: ${reason}`);

/**
 * The backup with this id and all that it builds on, newest first; `missing` is the id at which the chain breaks off. UsageError when the
 * id is not there.
 */
export async function findChain(
  repository: Repository,
  backupId: string,
  signal: AbortSignal,
): Promise<{ backup: ListedBackup; references: BackupReference[]; missing: string | null }> {
  const places = new Map<string, BackupReference>();
  const passedOver: string[] = [];
  const note = (place: string): void => void passedOver.push(place);
  for await (const reference of findBackups(repository, signal, note)) places.set(reference.backupId, reference);
  const imported = await findRecord(repository, backupId, signal);
  const first = places.get(backupId) ?? imported?.reference;
  if (first === undefined) {
    const where = passedOver.length === 0 ? "" : ` Not open to these rights: ${passedOver.join(", ")}.`;
    throw new UsageError(`There is no backup ${backupId} in the repository.${where}`);
  }
  const backup = await describeBackup(first, signal);
  const references = [first];
  let parentId = backup.parentId;
  while (parentId !== null) {
    const parent = places.get(parentId) ?? (await findRecord(repository, parentId, signal))?.reference;
    if (parent === undefined || references.includes(parent)) break;
    references.push(parent);
    parentId = (await describeBackup(parent, signal)).parentId;
  }
  return { backup, references, missing: parentId };
}
