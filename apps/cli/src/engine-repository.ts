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
import { type Output, UsageError } from "./engine-output.ts";

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
  const url = redactRepositoryUrl(options.repository);
  output.result({ repository: { id, url } }, [`Repository ${url} is ready (id ${id}).`]);
}

/** Makes sure that the repository may be written: marked, or marked now when that cannot be a mistake. */
export async function prepareRepository(repository: Repository, url: string, output: Output): Promise<void> {
  try {
    await repository.identity();
    return;
  } catch (error) {
    const unmarked = error instanceof RepositoryUnmarkedError || error instanceof RepositoryUnavailableError;
    if (!unmarked || !(await holdsOnlyBackups(repository))) throw error;
  }
  const { id } = await repository.initialize();
  output.note(`Marked ${redactRepositoryUrl(url)} as a new repository (id ${id}).`);
}

/** The backup with this id and all that it builds on, newest first. UsageError when the id is not there. */
export async function findChain(
  repository: Repository,
  backupId: string,
  signal: AbortSignal,
): Promise<{ backup: ListedBackup; references: BackupReference[] }> {
  const places = new Map<string, BackupReference>();
  for await (const reference of findBackups(repository, signal)) places.set(reference.backupId, reference);
  const imported = await findRecord(repository, backupId, signal);
  const first = places.get(backupId) ?? imported?.reference;
  if (first === undefined) throw new UsageError(`There is no backup ${backupId} in the repository.`);
  const backup = await describeBackup(first, signal);
  const references = [first];
  let parentId = backup.parentId;
  while (parentId !== null) {
    const parent = places.get(parentId) ?? (await findRecord(repository, parentId, signal))?.reference;
    if (parent === undefined || references.includes(parent)) break;
    references.push(parent);
    parentId = (await describeBackup(parent, signal)).parentId;
  }
  return { backup, references };
}
