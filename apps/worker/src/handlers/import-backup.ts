import { type Config, InvalidError, isUuid, NotFoundError, nilUuid } from "@tephra/control";
import { defaultRepository } from "@tephra/control/process";
import { documents, finishBackupImport, type ImportedBackup, nameImport, readChain } from "@tephra/control/work";
import {
  type BackupReference,
  decodeExportRecord,
  describeBackup,
  type Engine,
  type ImportRecord,
  InvalidBackupError,
  InvalidRecordError,
  isStored,
  type ListedBackup,
  locateRecord,
  type Repository,
  type RunContext,
  serviceMatches,
  verifyListing,
} from "@tephra/engine";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";
import type { Places } from "../sites.ts";
import { openChain } from "./source.ts";

const gibibyte = 1024 ** 3;

interface Place {
  name: string;
  zone: string;
  repository: Repository;
}

/**
 * Finds what a record names, checks that it is a backup, and makes the row available. The author of the record may have written anything:
 * the objects are authoritative, and where the two disagree the import is refused.
 */
export const importBackupTask: Handler = async (task, context, run) => {
  const { config, database, engine, sites } = context;
  const { service, url } = documents.importInput(task.operation.input);
  const record = decodeExportRecord(url);
  const place = await findPlace(record, service, context);
  const reference = await locateRecord(record, place.repository);
  const { container, prefix } = reference;
  await nameImport(database, task.operation, { repository: place.name, container, prefix });
  const backup = await verified(reference, run);
  const imported = importedOf(record, backup, { place, config });
  if (config.import_verify === "deep")
    await verifyDeeply(reference, imported.parentId, { context, engine, sites }, run);
  await finishBackupImport(database, task.operation, resultOf(task), imported);
};

/**
 * The repository of the requested service that has the objects; the default one is tried first. Where none has them, the first that
 * matches, so that the verification reports what is missing.
 *
 * @throws InvalidError when no repository is of that service
 */
async function findPlace(record: ImportRecord, service: string, { config, sites }: WorkerContext): Promise<Place> {
  const first = defaultRepository(config);
  const ordered = [first, ...config.repositories.filter((r) => r !== first)];
  let fitting: Place | null = null;
  let unreachable: unknown = null;
  for (const { name, zone } of ordered) {
    try {
      const repository = await sites.repository(name);
      if (service !== "" && !serviceMatches(service, repository.service)) continue;
      const place = { name, zone, repository };
      if (await isStored(await locateRecord(record, repository))) return place;
      fitting ??= place;
    } catch (error) {
      unreachable ??= error;
    }
  }
  if (unreachable !== null) throw unreachable;
  if (fitting) return fitting;
  const text = `Import record failed, cannot find backup service to perform the import. Request service ${service}.`;
  throw new InvalidError("backup", text);
}

/**
 * The backup as its objects describe it. @throws InvalidBackupError when the metadata cannot be read, or lists other objects than are there
 */
async function verified(reference: BackupReference, { signal }: RunContext): Promise<ListedBackup> {
  const [wrong] = await verifyListing(reference, signal);
  // The reason first: the name of an object is long, and fail_reason is truncated.
  if (wrong) throw new InvalidBackupError(`import_record aborted, ${wrong.reason}: ${wrong.object}`);
  return describeBackup(reference, signal);
}

/** @throws InvalidBackupError, NotFoundError when a parent has not been imported yet */
async function verifyDeeply(
  reference: BackupReference,
  parentId: string | null,
  { context, engine, sites }: { context: WorkerContext; engine: Engine; sites: Places },
  run: RunContext,
): Promise<void> {
  const links = parentId === null ? [] : await readChain(context.database, parentId);
  const missing = parentId === null ? null : links.length === 0 ? parentId : links.at(-1)?.parentId;
  if (missing) throw new NotFoundError("Backup", missing);
  const parents = links.map(({ id, repository, container, serviceMetadata }) => {
    if (!container || !serviceMetadata) throw new NotFoundError("Backup", id);
    return { backupId: id, repository, container, prefix: serviceMetadata };
  });
  const chain = [reference, ...(await openChain(parents, sites))];
  const [wrong] = (await engine.verifyBackup({ chain, mode: "deep" }, run)).damaged;
  if (wrong) throw new InvalidBackupError(`import_record aborted, ${wrong.reason}: ${wrong.object}`);
}

const uuidOrNull = (id: string | null): string | null => (id !== null && isUuid(id) ? id : null);

function importedOf(
  record: ImportRecord,
  backup: ListedBackup,
  { place, config }: { place: Place; config: Config },
): ImportedBackup {
  if (backup.volumeBytes > record.sizeGib * gibibyte) {
    throw new InvalidRecordError(`its size is ${record.sizeGib} GiB, the volume has ${backup.volumeBytes} bytes`);
  }
  if (record.parentId !== null && !isUuid(record.parentId)) throw new InvalidRecordError("parent_id is not a UUID");
  const createdAt = record.createdAt ?? new Date();
  return {
    name: record.name,
    description: record.description,
    volumeId: uuidOrNull(record.volumeId) ?? uuidOrNull(backup.volumeId) ?? nilUuid,
    snapshotId: uuidOrNull(record.snapshotId),
    parentId: record.parentId,
    statedParentId: backup.parentId,
    sizeGib: record.sizeGib,
    volumeBytes: BigInt(backup.volumeBytes),
    storedBytes: BigInt(backup.storedBytes),
    objectCount: backup.objects,
    blockBytes: backup.blockBytes || null,
    service: place.repository.service,
    host: config.hostName,
    availabilityZone: place.zone,
    encryptionKeyId: record.encryptionKeyId,
    metadata: { ...record.metadata },
    dataTimestamp: record.dataAt ?? createdAt,
    createdAt,
  };
}
