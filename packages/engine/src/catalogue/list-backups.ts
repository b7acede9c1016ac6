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
  /** Exact for backups of this service and for full ones; otherwise rounded up to a block. */
  volumeBytes: number;
  /** In GiB, as a record states it. */
  sizeGib: number;
  encryptionKeyId: string | null;
  /** The project of its volume, if the metadata names one. */
  projectId: string | null;
  userId: string | null;
  /** 0 without a hash list. */
  blockBytes: number;
  objects: number;
  /** Total stored size of the data objects. */
  storedBytes: number;
  /** What is wrong with it as far as its metadata shows; null when it looks complete. */
  problem: string | null;
  /** Whether the backup or a part of it could not be read at all: its state is unknown, and a later read may succeed. */
  unreadable: boolean;
}

const gibibyte = 1024 ** 3;
/** Error codes that concern the backup rather than the repository. */
const ownProblems = ["damaged_object", "unsupported_compression", "encryption_key_missing", "encryption_key_wrong"];

/** A backup's data objects according to a listing. */
interface ListedObjects {
  objects: number;
  storedBytes: number;
}

/** A backup, with the listing of its objects if the search already has it. */
export type FoundReference = BackupReference & { listed?: ListedObjects };

/**
 * Finds every backup of a repository by its metadata object, in any order. Each container is listed once; memory holds a small record for
 * each of its backups. What cannot be read is skipped and reported to `onPassedOver`.
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
      // The listing may lag or be incomplete, so the metadata object is looked up by name.
      if (!whole && !(await isStoredOrOdd(reference, onPassedOver))) continue;
      // The plaintext sizes of encrypted objects are known only from a listing of that one backup.
      yield repository.encryption === undefined ? { ...reference, listed: { objects, storedBytes } } : reference;
    }
  }
}

/** Whether the metadata object exists, looked up by name; false when that cannot be determined, which is reported to `onPassedOver`. */
async function isStoredOrOdd(reference: BackupReference, onPassedOver: OnPassedOver): Promise<boolean> {
  try {
    return await isStored(reference);
  } catch (error) {
    if (!(await isOnlyHere(reference.repository, error))) throw error;
    onPassedOver(`${reference.container}/${metadataName(reference.prefix)}`, (error as Error).message);
    return false;
  }
}

/**
 * Possible backups in a container. A container that cannot be listed is skipped if it is not the repository's own and the repository
 * responds.
 */
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

/** Errors that can concern a single object or container while the repository itself works. */
const codesOfOne = ["repository_unavailable", "repository_denied", "invalid_container", "invalid_object_name"];

/** Whether a failure concerns only the requested item: the repository itself responds. */
export async function isOnlyHere(repository: Repository, error: unknown): Promise<boolean> {
  if (!(error instanceof EngineError) || !codesOfOne.includes(error.code)) return false;
  return answers(repository).then(
    () => true,
    () => false,
  );
}

/** Resolves when the repository responds, marked or not; otherwise throws the reason. */
async function answers(repository: Repository): Promise<void> {
  await repository.identity().catch((error: unknown) => {
    if (!(error instanceof RepositoryUnmarkedError)) throw error;
  });
}

/**
 * Reads a backup's description of itself. Damage becomes its `problem`, and so does a read failure while the repository responds;
 * `unreadable` is then true because its state is unknown. A repository failure is still thrown.
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
    // If every object is missing, the repository itself may be missing.
    if (error.cause instanceof ObjectMissingError) await answers(reference.repository);
    described.problem = error.message;
    if (error.code.startsWith("encryption_key_")) Object.assign(described, await describeLocked(reference, signal));
  }
  return described;
}

/**
 * Leaves out what a squash has replaced: of two descriptions of one backup, a full and an incremental one, made of the same volume at the
 * same time, the full one counts, unless something is wrong with it.
 */
export function withoutReplaced(found: readonly ListedBackup[]): ListedBackup[] {
  const replaced = new Set<ListedBackup>();
  const named = Map.groupBy(found, ({ reference }) => reference.backupId);
  for (const same of named.values()) {
    for (const full of same.filter(({ parentId, problem }) => parentId === null && problem === null)) {
      for (const other of same) if (isReplacedBy(full, other)) replaced.add(other);
    }
    for (const whole of same.filter(({ parentId, problem }) => parentId !== null && problem === null)) {
      for (const full of same) if (full.problem !== null && isReplacedBy(full, whole)) replaced.add(full);
    }
  }
  return found.filter((backup) => !replaced.has(backup));
}

const isReplacedBy = (full: ListedBackup, other: ListedBackup): boolean =>
  full.parentId === null &&
  other.parentId !== null &&
  full.volumeId === other.volumeId &&
  full.createdAt === other.createdAt;

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

/** Whether a backup's metadata object exists: without it there is no backup. */
export async function isStored({ repository, container, prefix }: Omit<BackupReference, "backupId">): Promise<boolean> {
  try {
    await repository.stat({ container, name: metadataName(prefix) });
    return true;
  } catch (error) {
    if (error instanceof ObjectMissingError) return false;
    throw error;
  }
}

/** Whether a place is missing, empty or holds only backups in Cinder's layout, so that marking it as a repository is safe. */
export function holdsOnlyBackups(repository: Repository): Promise<boolean> {
  return repository.holdsOnly((name) => prefixOf(name) !== null);
}

/** What an encrypted backup states without its key; not authenticated. */
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
