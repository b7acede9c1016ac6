import { isUuid, nilUuid } from "@tephra/control";
import { documents, enterBackups, type FoundBackup, finishRescan } from "@tephra/control/work";
import { type RescannedBackup, rescan } from "@tephra/engine";
import { type Handler, resultOf } from "../context.ts";

const problemsMax = 100;

/** Enters every backup of a repository in the catalogue, from its objects alone. */
export const rescanRepositoryTask: Handler = async (task, { config, database, log, sites }, run) => {
  const input = documents.rescanInput(task.operation.input);
  const repository = await sites.repository(input.repository);
  const passedOver = new Set<string>();
  const rescanned = await rescan(repository, run.signal, (place, reason) => {
    log.warn({ repository: input.repository, place, reason }, "the rescan cannot look there");
    if (passedOver.size < problemsMax) passedOver.add(place);
  });
  const found = rescanned.map((each) => foundOf(each, repository.service));
  // What could not be read is not entered as damaged: the next rescan may find it intact.
  const enterable = found.filter((backup, index) => isUuid(backup.id) && !rescanned[index]?.unreadable);
  const entered = await enterBackups(database, config, task.operation, enterable);
  const problems = found.flatMap(({ id, problem }) => {
    if (!isUuid(id)) return [{ id, problem: "its id is not a UUID" }];
    return problem === null ? [] : [{ id, problem }];
  });
  const result = {
    found: found.length,
    entered,
    problems: problems.slice(0, problemsMax),
    passed_over: [...passedOver],
  };
  await finishRescan(database, task.operation, resultOf(task), result);
};

const uuidOr = <Other>(id: string | null, other: Other): string | Other => (id !== null && isUuid(id) ? id : other);

function foundOf({ backup, problem }: RescannedBackup, service: string): FoundBackup {
  const { reference } = backup;
  return {
    id: reference.backupId,
    projectId: backup.projectId,
    userId: backup.userId,
    volumeId: uuidOr(backup.volumeId, nilUuid),
    parentId: uuidOr(backup.parentId, null),
    name: storable(backup.name),
    description: storable(backup.description),
    sizeGib: Math.min(backup.sizeGib, 2 ** 31 - 1),
    volumeBytes: BigInt(backup.volumeBytes),
    storedBytes: BigInt(backup.storedBytes),
    objectCount: Math.min(backup.objects, 2 ** 31 - 1),
    blockBytes: backup.blockBytes || null,
    container: reference.container,
    serviceMetadata: reference.prefix,
    service,
    encryptionKeyId: backup.encryptionKeyId,
    createdAt: dateOf(backup.createdAt),
    problem,
  };
}

/** As the API would have accepted it: PostgreSQL stores neither NUL nor lone surrogates. */
const storable = (text: string | null): string | null =>
  text?.replaceAll("\0", "").slice(0, 255).toWellFormed() ?? null;

/** `YYYY-MM-DD HH:MM:SS[.ffffff]+00:00`; an invalid date becomes the oldest possible one. */
function dateOf(text: string | null): Date {
  const date = new Date(text?.replace(" ", "T") ?? 0);
  const year = date.getUTCFullYear();
  return year >= 1970 && year <= 9999 ? date : new Date(0);
}
