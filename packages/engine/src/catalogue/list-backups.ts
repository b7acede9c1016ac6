import { idOfPrefix, prefixOf } from "@tephra/format";
import { type BackupReference, keyOf } from "../chain/backup-reference.ts";
import { findHashList, summarize } from "../chain/chain.ts";
import { readEncryptedLabel } from "../encryption/encrypted-metadata.ts";
import { EngineError, ObjectMissingError, RepositoryUnmarkedError } from "../errors.ts";
import { dataNumber, hashListName, metadataName } from "../format/layout.ts";
import { type StatedColumns, statedColumns, statedVolumeBytes } from "../format/volume-meta.ts";
import type { OnPassedOver } from "../repository/passed-over.ts";
import type { ListedObject, Repository } from "../repository/repository.ts";

/** A backup as its own objects describe it. */
export interface ListedBackup {
  reference: BackupReference;
  volumeId: string | null;
  parentId: string | null;
  name: string | null;
  description: string | null;
  createdAt: string | null;
  /** Exact for backups of this service and for full ones; else rounded up to a block. */
  volumeBytes: number;
  /** In GiB, as a record states it. */
  sizeGib: number;
  encryptionKeyId: string | null;
  /** Whose volume it was, as far as its metadata says so. */
  projectId: string | null;
  userId: string | null;
  /** 0 when there is no list of hashes. */
  blockBytes: number;
  objects: number;
  /** Of the data objects. */
  storedBytes: number;
  /** What is wrong with it, as far as a look at its metadata tells; null when it looks whole. */
  problem: string | null;
  /** Whether it, or a part of it, could not be read at all: what is said about it is not known, and may be right the next time. */
  unreadable: boolean;
}

const gibibyte = 1024 ** 3;
/** Codes of errors that tell of the backup, not of the repository. */
const ownProblems = ["damaged_object", "unsupported_compression", "encryption_key_missing", "encryption_key_wrong"];

/** What a listing shows of a backup's data objects. */
interface ListedObjects {
  objects: number;
  storedBytes: number;
}

/** A backup and, where the search has told already, what there is of it. */
export type FoundReference = BackupReference & { listed?: ListedObjects };

/**
 * Where every backup of a repository lies, found by the metadata objects, in any order. Each container is listed once, and a little is held in
 * memory for each backup of it. What cannot be looked at is passed over, and `onPassedOver` told.
 */
export async function* findBackups(
  repository: Repository,
  signal: AbortSignal,
  onPassedOver: OnPassedOver = () => {},
): AsyncGenerator<FoundReference> {
  for await (const container of repository.containers(onPassedOver)) {
    const places = new Map<string, ListedObjects & { whole: boolean }>();
    for await (const { name, sizeBytes } of listContainer(repository, container, onPassedOver)) {
      signal.throwIfAborted();
      const prefix = prefixOf(name);
      if (prefix === null) continue;
      const place = places.get(prefix) ?? { objects: 0, storedBytes: 0, whole: false };
      places.set(prefix, place);
      place.whole ||= name === metadataName(prefix);
      if (dataNumber(prefix, name) === null) continue;
      place.objects += 1;
      place.storedBytes += sizeBytes;
    }
    for (const [prefix, { objects, storedBytes, whole }] of places) {
      const reference = { backupId: idOfPrefix(prefix), repository, container, prefix };
      // A listing may be behind, or not say all: whether it is a backup is asked by name.
      if (!whole && !(await isStoredOrOdd(reference, onPassedOver))) continue;
      // Sizes of encrypted objects are told by a listing of the backup alone.
      yield repository.encryption === undefined ? { ...reference, listed: { objects, storedBytes } } : reference;
    }
  }
}

/** Whether there is metadata by its name; not where that cannot be told, of which `onPassedOver` hears. */
async function isStoredOrOdd(reference: BackupReference, onPassedOver: OnPassedOver): Promise<boolean> {
  try {
    return await isStored(reference);
  } catch (error) {
    if (!(await isOnlyHere(reference.repository, error))) throw error;
    onPassedOver(`${reference.container}/${metadataName(reference.prefix)}`, (error as Error).message);
    return false;
  }
}

/** What may be of backups in a container. One that cannot be listed is passed over when it is not the repository's own and the repository answers. */
export async function* listContainer(
  repository: Repository,
  container: string,
  onPassedOver: OnPassedOver,
): AsyncGenerator<ListedObject> {
  try {
    yield* repository.list(container, "volume_", onPassedOver);
  } catch (error) {
    if (container === repository.ownContainer || !(await isOnlyHere(repository, error))) throw error;
    onPassedOver(container, (error as Error).message);
  }
}

/** What may be wrong with one object or container while its repository is in order. */
const codesOfOne = ["repository_unavailable", "repository_denied", "invalid_container", "invalid_object_name"];

/** Whether a failure is about what was asked for alone: the repository itself answers. */
export async function isOnlyHere(repository: Repository, error: unknown): Promise<boolean> {
  if (!(error instanceof EngineError) || !codesOfOne.includes(error.code)) return false;
  return answers(repository).then(
    () => true,
    () => false,
  );
}

/** Resolves when the repository is there, marked or not; throws what keeps it from answering. */
async function answers(repository: Repository): Promise<void> {
  await repository.identity().catch((error: unknown) => {
    if (!(error instanceof RepositoryUnmarkedError)) throw error;
  });
}

/**
 * Reads what a backup says about itself. Damage becomes its `problem`, and so does what cannot be read while the repository answers; then
 * `unreadable` is true, for nothing is known about it. A repository that fails still throws.
 */
export async function describeBackup(reference: FoundReference, signal: AbortSignal): Promise<ListedBackup> {
  const described: ListedBackup = {
    reference,
    volumeId: null,
    parentId: null,
    name: null,
    description: null,
    createdAt: null,
    volumeBytes: 0,
    sizeGib: 1,
    encryptionKeyId: null,
    projectId: null,
    userId: null,
    blockBytes: 0,
    objects: 0,
    storedBytes: 0,
    problem: null,
    unreadable: false,
  };
  try {
    const { objects: listed, storedBytes } = reference.listed ?? (await listObjects(reference));
    described.storedBytes = storedBytes;
    const { header, objects, endBytes } = await summarize(reference, signal);
    const { volumeId, parentId, name, description, createdAt } = header;
    Object.assign(described, { volumeId, parentId: parentId ?? null, name, description, createdAt, objects });
    const candidates = [endBytes, statedVolumeBytes(header.volumeMeta) ?? 0];
    const stated = statedColumns(header.volumeMeta);
    const hashes = await findHashList(reference, signal);
    const { count, blockBytes } = hashes ?? { count: 0, blockBytes: 0 };
    const inLastBlock = (bytes: number): boolean => bytes > (count - 1) * blockBytes && bytes <= count * blockBytes;
    described.blockBytes = blockBytes;
    described.volumeBytes =
      hashes === null ? Math.max(...candidates) : (candidates.find(inLastBlock) ?? count * blockBytes);
    described.sizeGib = Math.max(1, stated.sizeGib ?? 0, Math.ceil(described.volumeBytes / gibibyte));
    Object.assign(described, ownershipOf(stated));
    if (hashes === null) described.problem = `its list of hashes ${hashListName(reference.prefix)} is missing`;
    if (listed !== objects) described.problem = `${objects} objects are expected and ${listed} are there`;
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof EngineError)) throw error;
    described.unreadable = !ownProblems.includes(error.code);
    if (described.unreadable && !(await isOnlyHere(reference.repository, error))) throw error;
    // Where everything is missing, the repository may be.
    if (error.cause instanceof ObjectMissingError) await answers(reference.repository);
    described.problem = error.message;
    if (error.code.startsWith("encryption_key_")) Object.assign(described, await describeLocked(reference, signal));
  }
  return described;
}

async function listObjects({ repository, container, prefix }: BackupReference): Promise<ListedObjects> {
  const listed = { objects: 0, storedBytes: 0 };
  for await (const { name, sizeBytes } of repository.list(container, prefix)) {
    if (dataNumber(prefix, name) === null) continue;
    listed.objects += 1;
    listed.storedBytes += sizeBytes;
  }
  return listed;
}

const ownershipOf = ({ encryptionKeyId, projectId, userId }: StatedColumns) => ({ encryptionKeyId, projectId, userId });

/** Whether the metadata object of a backup is there: without it there is no backup. */
export async function isStored({ repository, container, prefix }: Omit<BackupReference, "backupId">): Promise<boolean> {
  try {
    await repository.stat({ container, name: metadataName(prefix) });
    return true;
  } catch (error) {
    if (error instanceof ObjectMissingError) return false;
    throw error;
  }
}

/** Whether a place is missing, empty or holds nothing but backups in Cinder's layout, so that marking it cannot be a mistake. */
export function holdsOnlyBackups(repository: Repository): Promise<boolean> {
  return repository.holdsOnly((name) => prefixOf(name) !== null);
}

/** What an encrypted backup says without its key: nobody vouches for it. */
async function describeLocked(reference: BackupReference, signal: AbortSignal): Promise<Partial<ListedBackup>> {
  const stored = reference.repository.encryption?.stored ?? reference.repository;
  const label = await readEncryptedLabel(stored.get(keyOf(reference, metadataName(reference.prefix)), { signal }));
  if (label === null) return {};
  const { volumeId, parentId, createdAt, volumeBytes, objects } = label;
  return {
    volumeId,
    parentId,
    createdAt,
    volumeBytes,
    objects,
    sizeGib: Math.max(1, Math.ceil(volumeBytes / gibibyte)),
  };
}
