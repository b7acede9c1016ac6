import { idOfPrefix, prefixOf } from "@tephra/format";
import { type BackupReference, keyOf } from "./backup-reference.ts";
import { findHashList, summarize } from "./chain.ts";
import { readEncryptedLabel } from "./encryption/encrypted-metadata.ts";
import { EngineError, ObjectMissingError } from "./errors.ts";
import { listContainer } from "./find-places.ts";
import { dataNumber, hashListName, metadataName } from "./layout.ts";
import { isOthersFailure, type OnPassedOver } from "./repository/passed-over.ts";
import type { Repository } from "./repository/repository.ts";
import { type StatedColumns, statedColumns, statedVolumeBytes } from "./volume-meta.ts";

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
}

const gibibyte = 1024 ** 3;
const metadataSuffix = "_metadata";
/** Codes of errors that tell of the backup, not of the repository. */
const ownProblems = ["damaged_object", "unsupported_compression", "encryption_key_missing", "encryption_key_wrong"];

/**
 * Where every backup of a repository lies, found by the metadata objects, in any order. Of what is not the repository's own, what cannot be
 * listed is passed over, and `onPassedOver` told.
 */
export async function* findBackups(
  repository: Repository,
  signal: AbortSignal,
  onPassedOver: OnPassedOver = () => {},
): AsyncGenerator<BackupReference> {
  for await (const container of repository.containers(onPassedOver)) {
    for await (const { name } of listContainer(repository, container, onPassedOver)) {
      signal.throwIfAborted();
      if (!name.endsWith(metadataSuffix)) continue;
      const prefix = prefixOf(name);
      if (prefix === null) continue;
      yield { backupId: idOfPrefix(prefix), repository, container, prefix };
    }
  }
}

/**
 * Reads what a backup says about itself. Damage becomes its `problem`, and so does metadata in a container of others that may not be read; a
 * repository that fails still throws.
 */
export async function describeBackup(reference: BackupReference, signal: AbortSignal): Promise<ListedBackup> {
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
  };
  let listed = 0;
  for await (const { name, sizeBytes } of reference.repository.list(reference.container, reference.prefix)) {
    if (dataNumber(reference.prefix, name) === null) continue;
    listed++;
    described.storedBytes += sizeBytes;
  }
  try {
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
    if (!(error instanceof EngineError)) throw error;
    const { repository, container } = reference;
    if (!ownProblems.includes(error.code) && !isOthersFailure(repository, container, error)) throw error;
    described.problem = error.message;
    if (error.code.startsWith("encryption_key_")) Object.assign(described, await describeLocked(reference, signal));
  }
  return described;
}

const ownershipOf = ({ encryptionKeyId, projectId, userId }: StatedColumns) => ({ encryptionKeyId, projectId, userId });

/** Whether the metadata object of a backup is there: without it there is no backup. */
export async function isStored({ repository, container, prefix }: BackupReference): Promise<boolean> {
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
